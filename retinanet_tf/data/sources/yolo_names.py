"""What the classes of a YOLO data set are called: the names of its data.yaml, or of a list of classes."""

import io
import os
import re
from reprlib import repr as shown

from retinanet_tf.data.sources.labels import is_name
from retinanet_tf.data.sources.yolo_pictures import Pictures
from retinanet_tf.data.sources.yolo_yaml import YAML_SUFFIXES, read_yaml
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text

NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
"""Files with a line for each class."""


def class_names(
    names: str | os.PathLike | None,
    file: str,
    content: dict,
    label_files: dict[str, str | None],
    pictures: list[Pictures],
    path: str,
) -> tuple[str, dict[int, str]]:
    """(the file that names the classes, their names by id), or ("", {}) if there is none."""
    if names:
        names = os.fspath(names)
        return names, _names_in(names)
    if "names" in content:
        return file, _names_of(file, content)
    if "nc" in content:
        if not re.fullmatch(r"[1-9]\d{0,4}", str(content["nc"])):
            raise InputError(f"{file}: nc is {shown(content['nc'])}; it must be the number of classes.")
        return file, {i: str(i) for i in range(int(content["nc"]))}
    above = [os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.dirname(os.path.abspath(path)))]
    folders = [os.path.dirname(labels) for labels in label_files.values() if labels]
    folders += [*(of.labels for of in pictures if of.labels), path, *above]
    for folder in dict.fromkeys(folders):
        for name in NAME_LISTS:
            if os.path.isfile(place := os.path.join(folder, name)):
                return place, _names_in(place)
    # A split's folder lies beside the data.yaml, and the folders of its pictures and labels are in that.
    beside = next((place for folder in above if os.path.isfile(place := os.path.join(folder, "data.yaml"))), "")
    return (beside, _names_in(beside)) if beside else ("", {})


def _names_in(path: str) -> dict[int, str]:
    """The names of a YAML file, or of a text file with a line for each."""
    if path.lower().endswith(YAML_SUFFIXES):
        return _names_of(path, read_yaml(path))
    lines = [line.strip() for line in io.StringIO(read_text(path, "the list of classes"), newline=None)]
    while lines and not lines[-1]:
        lines.pop()
    return _checked(path, dict(enumerate(lines)))


def _names_of(file: str, content: dict) -> dict[int, str]:
    """The names of a data.yaml, a list or a mapping from ids, which may have gaps."""
    names = content.get("names")
    if isinstance(names, list):
        found = dict(enumerate(names))
    elif isinstance(names, dict) and all(re.fullmatch(r"\d{1,9}", str(key)) for key in names):
        found = {int(key): name for key, name in names.items()}
    else:
        raise InputError(f"{file}: names is {shown(names)}; it must be a list of names, or ids with their names.")
    count = content.get("nc", str(len(found)))
    if str(len(found)) != count:
        raise InputError(f"{file} says nc: {count}, but has {len(found)} names; correct one of them.")
    return _checked(file, found)


def _checked(file: str, names: dict[int, str]) -> dict[int, str]:
    if not names:
        raise InputError(f"{file} names no class.")
    if wrong := [number for number, name in names.items() if not is_name(name)]:
        raise InputError(f"{file}: class {wrong[0]} is called {shown(names[wrong[0]])}; give it a name.")
    return names
