"""Where published weights are kept: RETINANET_TF_HOME, else the platform's cache folder for `retinanet_tf`.

A model has one folder there, called by its name, with the published file and what it was converted into.
"""

import os
from pathlib import Path

import pooch

from retinanet_tf.pretrained.zoo import Entry
from retinanet_tf.version import __version__


def home() -> Path:
    """The folder of all downloaded weights."""
    return Path(os.environ.get("RETINANET_TF_HOME") or pooch.os_cache("retinanet_tf")).expanduser()


def published_file(entry: Entry) -> Path:
    """Where the published file is kept; one that was put there by hand is taken like a downloaded one."""
    return home() / entry.name / entry.filename


def converted_folder(entry: Entry) -> Path:
    """Where this version of the library keeps the converted weights."""
    return home() / entry.name / f"converted-{__version__}"
