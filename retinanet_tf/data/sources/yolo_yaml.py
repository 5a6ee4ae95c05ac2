"""The YAML file of a YOLO data set, data.yaml: found and read."""

import os
from contextlib import suppress

from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Splits and what files and folders call them."""
_NULL = ("", "~", "null", "Null", "NULL")
YAML_SUFFIXES = (".yaml", ".yml")


def description(path: str) -> tuple[str, dict] | None:
    """The YAML file of a data set and its content: `path` itself, or the one in the folder that lists pictures."""

    def lists_pictures(content: dict) -> bool:
        return any(content.get(alias) for aliases in SPLITS.values() for alias in aliases)

    if not os.path.isdir(path):
        content = read_yaml(path)
        if not lists_pictures(content):
            raise InputError(f"{path} lists no pictures; the data.yaml of a YOLO data set has train, val and names.")
        return path, content
    if os.path.isfile(file := os.path.join(path, "data.yaml")):
        return description(file)
    for name in sorted(os.listdir(path)):
        if name.lower().endswith(YAML_SUFFIXES):
            with suppress(InputError):  # others' files may lie here too
                content = read_yaml(file := os.path.join(path, name))
                if "names" in content and lists_pictures(content):
                    return file, content
    return None


def read_yaml(path: str) -> dict:
    """A YAML file whose top level is a mapping; every scalar is the text that stands there, `no` and `1e3` too.

    Keys with YAML's null are left out, but `names`, which must be given.
    """
    import yaml  # here, since the runtime of exported files has none

    try:
        content = yaml.load(read_text(path, "the data set's description"), yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "can't be read"
        raise InputError(f"{path} isn't YAML:{line} {problem}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} isn't the description of a data set, which has train, val and names.")
    return {key: value for key, value in content.items() if key == "names" or value not in _NULL}
