"""Provenance of a result: versions, hardware and git commit."""

import os
import platform
import subprocess
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.version import __version__


def provenance() -> dict[str, str]:
    """Versions, hardware and git commit ('unknown' outside a checkout of this package, or without git)."""
    return {
        "retinanet_tf": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "commit": _commit() or "unknown",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {len(tf.config.list_physical_devices('GPU'))} GPUs",
    }


def _commit() -> str | None:
    checkout = Path(__file__).resolve().parents[1]
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        git = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except OSError:
        return None
    top, _, commit = git.stdout.strip().partition("\n")
    # Installed into an environment, it may lie in somebody else's repository.
    return commit if git.returncode == 0 and Path(top).resolve() == checkout else None
