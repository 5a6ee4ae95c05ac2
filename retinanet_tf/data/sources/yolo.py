"""YOLO text files: one per picture, a line `CLASS X Y WIDTH HEIGHT` per object, in shares of the upright picture.

X and Y are the box' centre. A line with more numbers is a polygon or an oriented box, `CLASS X1 Y1 X2 Y2 X3 Y3 …`,
whose bounding box is taken. The label file of a picture lies where the last folder `images` of its path is replaced by
`labels`, or else beside it.
"""

import glob
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from reprlib import repr as shown
from typing import NamedTuple

from retinanet_tf.data.sources.annotations import (
    Annotations,
    ImageAnnotations,
    NamedObject,
    as_number,
    with_categories,
    without_repeats,
)
from retinanet_tf.data.sources.image_files import SUFFIXES, unified
from retinanet_tf.data.sources.labels import LabelMap, is_name
from retinanet_tf.data.sources.shares import PLAINLY_PIXELS, to_pixels
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_bytes, read_text

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
_YAML = (".yaml", ".yml")


class _Pictures(NamedTuple):
    """Pictures of one place, and where their labels may be."""

    paths: list[str]
    labels: str | None = None  # the folder that mirrors theirs; None finds label files by the rule of `_label_files`
    root: str = ""  # of the pictures, if `labels` is given


class _Line(NamedTuple):
    """An object with the place that a message names."""

    where: str
    category: int
    box: list[float]  # xyxy in shares


def is_yolo(path: str | os.PathLike) -> bool:
    """Whether a path is YOLO's: a .yaml file, or a folder with one, with labels or with text files; not Pascal VOC."""
    path = os.fspath(path)
    if not os.path.isdir(path):
        return path.lower().endswith(_YAML)
    inside = os.listdir(path)
    of_voc = (os.path.join(glob.escape(path), *inner, "*.[xX][mM][lL]") for inner in ([], ["*"]))
    if "Annotations" in inside or any(map(glob.glob, of_voc)):
        return False
    folders = {"labels", "images", *(alias for aliases in _SPLITS.values() for alias in aliases)}
    if folders.intersection(inside) or os.path.isdir(_among_labels(os.path.join(os.path.abspath(path), ""))):
        return True
    return any(name.lower().endswith((".txt", *_YAML)) for _, _, files in os.walk(path) for name in files)


def read_yolo(
    path: str | os.PathLike,
    split: str | None = None,
    label_map: LabelMap | None = None,
    images: str | os.PathLike | None = None,
    *,
    names: str | os.PathLike | None = None,
    upright: bool = True,
    skip_bad: bool = False,
) -> tuple[Annotations, str]:
    """Reads a data set of YOLO text files; pictures and objects are numbered from 1 in the order of the paths.

    A picture without a label file has no objects; if more than half have none, or all of one folder, that is an error.
    Category ids are those of the files. Lines that repeat exactly are taken once.

    Args:
        path: a data.yaml of ultralytics or Roboflow, a folder with one, or a folder of pictures and label files, be
            it in `images` and `labels` or side by side.
        split: train, val or test of the data.yaml, or a sub-folder of this name.
        label_map: ids for the names; by default those of the files.
        images: the folder of the pictures, if `path` is one of label files alone, which mirrors it.
        names: a file with the names of the classes, a line each or as the `names` of a YAML file; by default those of
            the data.yaml, or a classes.txt or obj.names in the folder of the labels; failing that, ids are names.
        upright: whether boxes lie on the pictures as viewers show them, or as they are stored.
        skip_bad: see `shares.to_pixels`.

    Returns:
        The annotations and the folder that file names are relative to.

    Raises:
        InputError: naming file and line: what can't be read, an unknown split, a class that isn't among the names, a
            line that isn't a class and shares, two label files of one picture that differ, missing labels.
    """
    path, warnings = os.path.normpath(os.fspath(path)), list[str]()
    file, content = _description(path) or (path, {})
    if not content:
        pictures = [_folder(path, split, images)]
    elif images:
        pictures = [_Pictures(_pictures_of(os.fspath(images)))]
    else:
        pictures = _listed(file, content, split, warnings)
    every = {os.path.abspath(picture): of for of in pictures for picture in of.paths}
    if not every:
        remedy = "" if images else "; if they are elsewhere, give their folder, images=FOLDER"
        raise InputError(f"{images or path} has no picture ({', '.join(SUFFIXES)}){remedy}.")
    label_files = _label_files(every)
    folder = os.fspath(images or os.path.commonpath([os.path.dirname(picture) for picture in every]))
    source, classes = _class_names(names, file, content, label_files, pictures, path)
    notes: dict[str, list[str]] = {}
    parsed = [
        (picture, list(_lines(labels, "kpt_shape" in content, notes)) if labels else [])
        for picture, labels in sorted(label_files.items())
    ]
    warnings += [f"{what}: {len(places)}, the first in {places[0]}." for what, places in notes.items()]
    if not classes:
        source, classes = "the label map", _numbered(parsed, label_map)
    own = LabelMap(list(classes), list(classes.values())) if classes else None
    is_own = label_map is None or label_map == own
    unique = dict(zip(own.ids, own.unique_names, strict=True)) if own and is_own else classes
    found: list[tuple[ImageAnnotations, list[NamedObject]]] = []
    for number, (picture, lines) in enumerate(parsed, 1):
        name = os.path.relpath(picture, folder)
        if not is_name(name):
            raise InputError(f"the name of the file {picture} isn't UTF-8; rename it.")
        for line in lines:
            if line.category not in classes:
                raise InputError(
                    f"{line.where} has class {line.category}, but {source} names {len(classes)} classes "
                    f"({min(classes)} to {max(classes)})."
                )
        found.append((ImageAnnotations(number, name), [NamedObject(unique[i], box) for _, i, box in lines]))
    warnings += filter(None, [without_repeats(found), _orphans(label_files)])
    to_pixels(found, folder, upright, skip_bad)
    known = LabelMap(list(unique), list(unique.values())) if own and is_own else label_map
    annotations = with_categories(f"{path} (pictures in {folder})", found, known)
    annotations.label_map = own if own and is_own else annotations.label_map
    annotations.warnings, annotations.exif = warnings, "upright" if upright else "stored"
    return annotations, folder


def _description(path: str) -> tuple[str, dict] | None:
    """The YAML file of a data set and its content: `path` itself, or the one in the folder that lists pictures."""

    def lists_pictures(content: dict) -> bool:
        return any(content.get(alias) for aliases in _SPLITS.values() for alias in aliases)

    if not os.path.isdir(path):
        content = _read_yaml(path)
        if not lists_pictures(content):
            raise InputError(f"{path} lists no pictures; the data.yaml of a YOLO data set has train, val and names.")
        return path, content
    if os.path.isfile(file := os.path.join(path, "data.yaml")):
        return _description(file)
    for name in sorted(os.listdir(path)):
        if name.lower().endswith(_YAML):
            with suppress(InputError):  # others' files may lie here too
                content = _read_yaml(file := os.path.join(path, name))
                if "names" in content and lists_pictures(content):
                    return file, content
    return None


def _read_yaml(path: str) -> dict:
    """A YAML file whose top level is a mapping; every scalar is the text that stands there, `no` and `1e3` too."""
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
    return content


def _listed(file: str, content: dict, split: str | None, warnings: list[str]) -> list[_Pictures]:
    """The pictures of a split of a data.yaml."""
    given = {key: alias for key, aliases in _SPLITS.items() for alias in aliases if content.get(alias)}
    key = next((key for key, aliases in _SPLITS.items() if split in aliases), split)
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
        pictures.append(_Pictures(_pictures_of(place, bases)))
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
    others += [os.path.join(bases[1], inner, alias) for alias in _SPLITS[key] for inner in ("", "images")]
    found = next((place for place in [*stated, *others] if os.path.exists(place)), None)
    return found and os.path.normpath(found), found not in (stated[0], *others[:2])


def _pictures_of(place: str, bases: list[str] | None = None) -> list[str]:
    """The pictures of a folder and its sub-folders, or those that a text file lists."""
    if os.path.isdir(place):
        found = []
        seen = set()  # links may lead in a circle
        for folder, inner, files in os.walk(place, followlinks=True):
            seen.add(os.path.realpath(folder))
            inner[:] = [
                f for f in sorted(inner) if f[0] != "." and os.path.realpath(os.path.join(folder, f)) not in seen
            ]
            found += [os.path.join(folder, f) for f in files if f.lower().endswith(SUFFIXES) and f[0] != "."]
        return sorted(found)
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


def _folder(path: str, split: str | None, images: str | os.PathLike | None) -> _Pictures:
    """The pictures of a folder without data.yaml."""
    parts = next((aliases for aliases in _SPLITS.values() if split in aliases), (split,)) if split else ("",)

    def first(*names: str) -> str | None:
        places = [os.path.normpath(os.path.join(path, name.format(part))) for part in parts for name in names]
        return next((place for place in places if os.path.isdir(place)), None)

    if images is None:
        place = first("images/{}", "{}") if split else path
        found = _Pictures(_pictures_of(place)) if place else None
    else:
        place = first("labels/{}", "{}/labels", "{}")
        found = _Pictures(_pictures_of(os.fspath(images)), place, os.fspath(images)) if place else None
    if found is None:
        raise InputError(f"{path} has no folder for split={split}, nor a data.yaml that names one.")
    return found


def _among_labels(path: str) -> str:
    """A path whose last folder `images` is `labels` instead, or "" if it has none."""
    before, found, after = path.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}" if found else ""


def _label_files(pictures: dict[str, _Pictures]) -> dict[str, str | None]:
    """The label file of each picture, None if it has none."""
    files: dict[str, str | None] = {}
    tried: dict[str, list[str]] = {}
    for picture, of in pictures.items():
        if of.labels is not None:
            places = [os.path.join(of.labels, os.path.relpath(picture, of.root))]
        else:
            places = [*filter(None, [_among_labels(picture)]), picture]
        tried[picture] = [f"{os.path.splitext(place)[0]}.txt" for place in places]
        present = [place for place in tried[picture] if os.path.isfile(place)]
        if len(present) > 1 and read_bytes(present[0], "the label file") != read_bytes(present[1], "the label file"):
            raise InputError(f"{picture} has two label files that differ: {present[0]} and {present[1]}; remove one.")
        files[picture] = present[0] if present else None
    missing = [picture for picture, file in files.items() if file is None]
    labelled = {os.path.dirname(picture) for picture, file in files.items() if file is not None}
    alone = [picture for picture in missing if os.path.dirname(picture) not in labelled]
    if alone or 2 * len(missing) > len(files):
        where = f"all pictures in {os.path.dirname(alone[0])}" if alone else f"{len(missing)} of {len(files)} pictures"
        first = (alone or missing)[0]
        raise InputError(
            f"{where} lack a label file; for {first} there is no {' and no '.join(tried[first])}. Correct the folders, "
            "or add an empty text file for each picture without objects."
        )
    return files


def _class_names(
    names: str | os.PathLike | None,
    file: str,
    content: dict,
    label_files: dict[str, str | None],
    pictures: list[_Pictures],
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
        for name in _NAME_LISTS:
            if os.path.isfile(place := os.path.join(folder, name)):
                return place, _names_in(place)
    # A split's folder lies beside the data.yaml, and the folders of its pictures and labels are in that.
    beside = next((place for folder in above if os.path.isfile(place := os.path.join(folder, "data.yaml"))), "")
    return (beside, _names_in(beside)) if beside else ("", {})


def _names_in(path: str) -> dict[int, str]:
    """The names of a YAML file, or of a text file with a line for each."""
    if path.lower().endswith(_YAML):
        return _names_of(path, _read_yaml(path))
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


def _numbered(parsed: list[tuple[str, list[_Line]]], label_map: LabelMap | None) -> dict[int, str]:
    """Names of classes that no file names: the label map's, or the ids themselves from 0 to the largest."""
    if label_map is not None:
        return dict(zip(label_map.ids, label_map.names, strict=True))
    largest = max((line.category for _, lines in parsed for line in lines), default=-1)
    return {i: str(i) for i in range(largest + 1)}


def _lines(path: str, keypoints: bool, notes: dict[str, list[str]]) -> Iterator[_Line]:
    """The objects of a label file; `notes` gets the places of what is out of the ordinary."""
    for number, line in enumerate(io.StringIO(read_text(path, "the label file"), newline=None), 1):
        where, cells = f"{path}: line {number}", line.split()
        if not cells:
            continue
        numbers = [value for value in map(as_number, cells) if value is not None]
        count = len(numbers)
        is_polygon = count >= 7 and count % 2 == 1 and not keypoints
        if count < len(cells) or not (count in (5, 6) or is_polygon or (keypoints and count > 5)):
            raise InputError(
                f"{where} is {shown(line.strip())}; a line is a class, x, y, width and height, or a class and the "
                "corners of a polygon."
            )
        category, *values = numbers
        if not category.is_integer() or not 0 <= category < 100_000:
            raise InputError(f"{where} has class {cells[0]}; classes are numbered from 0.")
        if is_polygon:
            notes.setdefault("polygons or oriented boxes, of which the boxes around them are taken", []).append(where)
            xs, ys = values[::2], values[1::2]
            box = [min(xs), min(ys), max(xs), max(ys)]
        else:
            if count == 6:
                notes.setdefault("lines with a score as sixth number, which is left out", []).append(where)
            x, y, width, height = values[:4]
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        if max(map(abs, values[: None if is_polygon else 4])) > PLAINLY_PIXELS:
            raise InputError(
                f"{where} is {shown(line.strip())}; its numbers must be shares of the picture's width and height, "
                "from 0 to 1, not pixels."
            )
        yield _Line(where, int(category), box)


def _orphans(label_files: dict[str, str | None]) -> str:
    """A sentence on label files in folders of their own that belong to no picture, else ''."""
    used = {os.path.abspath(file) for file in label_files.values() if file}
    folders = {os.path.dirname(file) for file in used} - {os.path.dirname(picture) for picture in label_files}
    unused = sorted(
        os.path.join(folder, name)
        for folder in folders
        for name in os.listdir(folder)
        if name.endswith(".txt") and name not in _NAME_LISTS and os.path.join(folder, name) not in used
    )
    return f"label files without a picture: {len(unused)}, the first is {unused[0]}." if unused else ""
