"""Where the pictures of a YOLO data set are: in the folders and lists of a data.yaml, or in a folder without one."""

import io
import os
import re
from reprlib import repr as shown
from typing import NamedTuple

from retinanet_tf.data.sources.image_files import SUFFIXES, is_predicted, unified
from retinanet_tf.data.sources.labels import is_name
from retinanet_tf.data.sources.yolo_yaml import SPLITS
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text


class Pictures(NamedTuple):
    """Pictures of one place, and where their labels may be."""

    paths: list[str]
    labels: str | None = None  # the folder that mirrors theirs; None finds label files by the rule of `_label_files`
    root: str = ""  # of the pictures, if `labels` is given

    def mirrored(self, picture: str) -> str:
        """The label file of a picture, if `labels` is given."""
        assert self.labels is not None
        return f"{os.path.splitext(os.path.join(self.labels, os.path.relpath(picture, self.root)))[0]}.txt"


def listed_pictures(file: str, content: dict, split: str | None, warnings: list[str]) -> list[Pictures]:
    """The pictures of a split of a data.yaml."""
    given = {key: alias for key, aliases in SPLITS.items() for alias in aliases if content.get(alias)}
    key = next((key for key, aliases in SPLITS.items() if split in aliases), split)
    if split is None and len(given) == 1:
        (key,) = given
    if key not in given:
        fault = f"lists no pictures for split={split}" if split else "lists several splits"
        raise InputError(f"{file} {fault}; give split={' or split='.join(given)}.")
    base, root = os.path.dirname(file), content.get("path", "")
    if not isinstance(root, str):
        raise InputError(f"{file}: path is {shown(root)}; it must be a folder.")
    bases = [os.path.join(base, unified(root)) if root else base, base]
    entries = {name: _texts(file, alias, content[alias]) for name, alias in given.items()}
    pictures = []
    for entry in entries[key]:
        place, moved = _place(entry, bases, key)
        if place is None:
            raise InputError(f"{file}: {given[key]} says {entry}, which isn't there; correct it or path.")
        if moved:
            warnings.append(f"{file}: {given[key]} says {entry}, which isn't there; {place} is taken.")
        pictures.append(Pictures(pictures_of(place, bases)))
    for name, others in entries.items():
        if name != key and others == entries[key]:
            warnings.append(f"{file}: {given[key]} and {given[name]} are the same pictures.")
    return pictures


def _texts(file: str, key: str, value: object) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    texts = [entry for entry in entries if isinstance(entry, str) and is_name(entry)]
    if len(texts) < len(entries):
        raise InputError(f"{file}: {key} is {shown(value)}; it must be a folder, a text file or a list of them.")
    return texts


def _place(entry: str, bases: list[str], key: str) -> tuple[str | None, bool]:
    """Where an entry is, and whether that isn't where it says.

    Roboflow writes `../train/images` for a folder beside the file, and many files still have the absolute paths or the
    `path` of another machine.
    """
    name = unified(entry)
    stated = [os.path.join(base, name) for base in bases]
    bare = re.sub(r"^(\.\./)+", "", name)
    others = [os.path.join(base, bare) for base in bases]
    others += [os.path.join(bases[1], inner, alias) for alias in SPLITS[key] for inner in ("", "images")]
    found = next((place for place in [*stated, *others] if os.path.exists(place)), None)
    return found and os.path.normpath(found), found not in (stated[0], *others[:2])


def pictures_of(place: str, bases: list[str] | None = None) -> list[str]:
    """The pictures of a folder and its sub-folders, `predict`'s left out, or those that a text file lists."""
    if os.path.isdir(place):
        found = []
        seen = set()  # links may lead in a circle
        for folder, inner, files in os.walk(place, followlinks=True):
            seen.add(os.path.realpath(folder))
            inner[:] = [
                f for f in sorted(inner) if f[0] != "." and os.path.realpath(os.path.join(folder, f)) not in seen
            ]
            found += [os.path.join(folder, f) for f in files if f.lower().endswith(SUFFIXES) and f[0] != "."]
        return sorted(path for path in found if not is_predicted(path, place))
    if place.lower().endswith(SUFFIXES):
        return [place]
    lines = [line.strip() for line in io.StringIO(read_text(place, "the list of pictures"), newline=None)]
    roots = [os.path.dirname(place), *(bases or [])]
    paths = []
    for line in filter(None, lines):
        candidates = [os.path.normpath(os.path.join(root, unified(line))) for root in roots]
        paths.append(next((path for path in candidates if os.path.exists(path)), candidates[0]))
    if not paths:
        raise InputError(f"{place} lists no picture.")
    return paths


def folder_pictures(path: str, split: str | None, images: str | os.PathLike | None) -> Pictures:
    """The pictures of a folder without data.yaml."""
    parts = next((aliases for aliases in SPLITS.values() if split in aliases), (split,)) if split else ("",)

    def places(*names: str) -> list[str]:
        folders = (os.path.join(path, name.format(part).lstrip("/")) for part in parts for name in names)
        return [folder for folder in map(os.path.normpath, folders) if os.path.isdir(folder)]

    if images is None:
        place = next(iter(places("images/{}", "{}")), None) if split else path
        found = Pictures(pictures_of(place)) if place else None
    else:
        pictures, root = pictures_of(os.fspath(images)), os.fspath(images)
        choices = [Pictures(pictures, place, root) for place in places("labels/{}", "{}/labels", "{}")]
        with_labels = (one for one in choices if any(os.path.isfile(one.mirrored(picture)) for picture in one.paths))
        found = next(with_labels, choices[0] if choices else None)
    if found is None:
        raise InputError(f"{path} has no folder for split={split}, nor a data.yaml that names one.")
    if not split and images is None:
        tops = {os.path.relpath(p, path).removeprefix(f"images{os.sep}").split(os.sep)[0] for p in found.paths}
        given = [key for key, aliases in SPLITS.items() if tops.intersection(aliases)]
        if len(given) > 1:
            raise InputError(f"{path} has several splits; give split={' or split='.join(given)}.")
    return found
