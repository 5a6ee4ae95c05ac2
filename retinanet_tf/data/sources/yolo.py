"""YOLO text files: one per picture, a line `CLASS X Y WIDTH HEIGHT` per object, in shares of the upright picture.

X and Y are the box' centre. A line with more numbers is a polygon or an oriented box, `CLASS X1 Y1 X2 Y2 X3 Y3 …`,
whose bounding box is taken. The label file of a picture lies where the last folder `images` of its path is replaced by
`labels`, or else beside it.
"""

import glob
import io
import os
from collections.abc import Iterator
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
from retinanet_tf.data.sources.image_files import SUFFIXES
from retinanet_tf.data.sources.labels import ONE_MAP, LabelMap, is_name
from retinanet_tf.data.sources.shares import PLAINLY_PIXELS, to_pixels
from retinanet_tf.data.sources.yolo_names import NAME_LISTS, class_names
from retinanet_tf.data.sources.yolo_pictures import Pictures, folder_pictures, listed_pictures, pictures_of
from retinanet_tf.data.sources.yolo_yaml import SPLITS, YAML_SUFFIXES, description
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_bytes, read_text


class _Line(NamedTuple):
    """An object with the place that a message names."""

    where: str
    category: int
    box: list[float]  # xyxy in shares


def is_yolo(path: str | os.PathLike) -> bool:
    """Whether a path is YOLO's: a .yaml file, or a folder with one, with labels or with text files; not Pascal VOC."""
    path = os.fspath(path)
    if not os.path.isdir(path):
        return path.lower().endswith(YAML_SUFFIXES)
    inside = os.listdir(path)
    of_voc = (os.path.join(glob.escape(path), *inner, "*.[xX][mM][lL]") for inner in ([], ["*"], ["*", "*"]))
    if "Annotations" in inside or any(map(glob.glob, of_voc)):
        return False
    folders = {"labels", "images", *(alias for aliases in SPLITS.values() for alias in aliases)}
    if folders.intersection(inside) or os.path.isdir(_among_labels(os.path.join(os.path.abspath(path), ""))):
        return True
    return any(name.lower().endswith((".txt", *YAML_SUFFIXES)) for _, _, files in os.walk(path) for name in files)


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
        split: train, val or test of the data.yaml, or a sub-folder of this name; None where there is one alone.
        label_map: ids for the names; by default those of the files.
        images: the folder of the pictures, if `path` is one of label files alone, which mirrors it.
        names: a file with the names of the classes, a line each or as the `names` of a YAML file; by default those of
            the data.yaml, or a classes.txt or obj.names in the folder of the labels; failing that, ids are names.
        upright: whether boxes lie on the pictures as viewers show them, or as they are stored.
        skip_bad: see `shares.to_pixels`.

    Returns:
        The annotations and the folder that file names are relative to.

    Raises:
        InputError: naming file and line: what can't be read, an unknown split or several, a class that isn't among
            the names, a line that isn't a class and shares, two label files of one picture that differ, missing labels.
    """
    path, warnings = os.path.normpath(os.fspath(path)), list[str]()
    file, content = description(path) or (path, {})
    if not content:
        pictures = [folder_pictures(path, split, images)]
    elif images and split:
        raise InputError(
            f"images={os.fspath(images)} doesn't go with split={split}, whose pictures {file} lists; leave one out."
        )
    elif images:
        pictures = [Pictures(pictures_of(os.fspath(images)))]
    else:
        pictures = listed_pictures(file, content, split, warnings)
    every = {os.path.abspath(picture): of for of in pictures for picture in of.paths}
    if not every:
        remedy = "" if images else "; if they are elsewhere, give their folder, images=FOLDER"
        raise InputError(f"{images or path} has no picture ({', '.join(SUFFIXES)}){remedy}.")
    label_files = _label_files(every)
    folder = os.fspath(images or os.path.commonpath([os.path.dirname(picture) for picture in every]))
    source, classes = class_names(names, file, content, label_files, pictures, path)
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
                remedy = f"; {ONE_MAP}" if source == "the label map" else ""
                raise InputError(
                    f"{line.where} has class {line.category}, but {source} names {len(classes)} classes "
                    f"({min(classes)} to {max(classes)}){remedy}."
                )
        found.append((ImageAnnotations(number, name), [NamedObject(unique[i], box) for _, i, box in lines]))
    warnings += filter(None, [without_repeats(found), _orphans(label_files)])
    to_pixels(found, folder, upright, skip_bad)
    known = LabelMap(list(unique), list(unique.values())) if own and is_own else label_map
    annotations = with_categories(f"{path} (pictures in {folder})", found, known)
    annotations.label_map = own if own and is_own else annotations.label_map
    annotations.warnings, annotations.exif = warnings, "upright" if upright else "stored"
    return annotations, folder


def _among_labels(path: str) -> str:
    """A path whose last folder `images` is `labels` instead, or "" if it has none."""
    before, found, after = path.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}" if found else ""


def _label_files(pictures: dict[str, Pictures]) -> dict[str, str | None]:
    """The label file of each picture, None if it has none."""
    files: dict[str, str | None] = {}
    tried: dict[str, list[str]] = {}
    for picture, of in pictures.items():
        if of.labels is not None:
            tried[picture] = [of.mirrored(picture)]
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
        if name.endswith(".txt") and name not in NAME_LISTS and os.path.join(folder, name) not in used
    )
    return f"label files without a picture: {len(unused)}, the first is {unused[0]}." if unused else ""
