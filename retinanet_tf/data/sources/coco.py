"""COCO instances JSON: read into numpy and checked."""

import gc
import itertools
import os
from collections import Counter
from reprlib import repr as shown
from typing import Any, NamedTuple

import numpy as np

from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations, is_number
from retinanet_tf.data.sources.image_files import unified
from retinanet_tf.data.sources.labels import LabelMap, is_id, is_name
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_json

# COCO's bounds of small, medium and large objects: [low, high) square pixels of the original image.
SIZE_BOUNDS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}


class _Row(NamedTuple):
    """An entry of "annotations" without its mask."""

    image_id: Any
    category_id: Any
    id: Any
    iscrowd: Any
    bbox: Any
    area: Any


def coco_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """COCO's [x, y, width, height] boxes (..., 4) as xyxy of the same dtype: continuous pixels, no +1."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_coco(boxes: np.ndarray) -> np.ndarray:
    """xyxy boxes (..., 4) as COCO's [x, y, width, height]; the inverse of `coco_to_xyxy` up to rounding."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def read_coco(path: str | os.PathLike, with_objects: bool = True, skip_bad: bool = False) -> Annotations:
    """Reads a COCO instances JSON; images keep the file's order, images without objects included.

    Boxes are unchanged (overhanging, zero-size and duplicate ones too: `box_rules` handles them). A missing or negative
    area is that of the box, a missing iscrowd is 0, and annotations without an id are numbered. Several entries of one
    file, by `image_files.unified`, become one image with the id of the first and the objects of all.

    Args:
        path: local or remote.
        with_objects: if false, the list "annotations" may be missing, as in COCO's image_info files of the test splits.
        skip_bad: leave out annotations whose bbox isn't four finite numbers, with a warning.

    Raises:
        InputError: naming file and entry: a file that can't be read or isn't such a JSON, an image or annotation id
            that isn't an integer or is used twice, a name that is no text, a box that isn't four finite numbers, an
            annotation of an undefined image or category, entries of one file that disagree on its size.
    """
    path = os.fspath(path)
    content = _parse(path)
    if not with_objects:
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f"{path} has no list {key!r}; a COCO instances file has images, annotations, categories.")
    label_map = LabelMap.from_json(content["categories"], f"{path}: categories")
    images = [_image(path, number, entry) for number, entry in enumerate(content["images"])]
    _refuse_repeats(path, "image", np.array([image.image_id for image in images], np.int64))
    annotations = Annotations(path, images, label_map)
    if shared := sorted(name for name, count in Counter(label_map.names).items() if count > 1):
        annotations.warnings.append(f"several categories are named {shared[0]!r}; they are kept apart by their ids.")
    _attach(annotations, content["annotations"], skip_bad)
    _merge_copies(annotations)
    return annotations


def _parse(path: str) -> dict:
    # Each annotation becomes a row as soon as it is parsed: masks (nine tenths of COCO's files) don't accumulate, and
    # a million annotations take far less memory than as dictionaries.
    def compact(entry: dict):
        is_row = "image_id" in entry and ("file_name" not in entry or "bbox" in entry)
        return _Row(*map(entry.get, _Row._fields)) if is_row else entry

    collecting = gc.isenabled()
    gc.disable()  # nothing here is cyclic, and the collector would visit all rows repeatedly
    try:
        content = read_json(path, "the annotation file", compact)
    finally:
        if collecting:
            gc.enable()
    if not isinstance(content, dict):
        raise InputError(f"{path} is JSON but not a COCO instances file: its top level must be an object.")
    return content


def _image(path: str, number: int, entry) -> ImageAnnotations:
    if not isinstance(entry, dict) or not is_id(entry.get("id")):
        raise InputError(f"{path}: images[{number}] has no integer id of 64 bits.")
    name = entry.get("file_name")
    if not is_name(name):
        raise InputError(f"{path}: image {entry['id']} has the file_name {shown(name)}; it must be the name of a file.")
    size: dict[str, int | None] = {}
    for key in ("width", "height"):
        value = entry.get(key)
        if value is not None and not (is_number(value) and value > 0 and value == int(value)):
            raise InputError(
                f"{path}: image {entry['id']} has {key} {shown(value)}; it must be a whole number above 0."
            )
        size[key] = None if value is None else int(value)
    return ImageAnnotations(entry["id"], str(name), size["width"], size["height"])


def _attach(annotations: Annotations, rows: list, skip_bad: bool) -> None:
    """Checks all annotation rows and assigns them to their images, in the order of the file."""
    path, images, usable = annotations.source, annotations.images, []
    skipped = ""
    for number, row in enumerate(rows):
        if not isinstance(row, _Row):
            raise InputError(f"{path}: annotations[{number}] has no image_id.")
        which = f"annotation {row.id}" if is_id(row.id) else f"annotations[{number}]"
        for key, value in (("image_id", row.image_id), ("category_id", row.category_id), ("id", row.id)):
            if not is_id(value) and not (key == "id" and value is None):
                raise InputError(f"{path}: {which} has {key} {shown(value)}; it must be an integer of 64 bits.")
        if row.iscrowd not in (0, 1, None):
            raise InputError(f"{path}: {which} has iscrowd {shown(row.iscrowd)}; it must be 0 or 1.")
        if not (type(row.bbox) is list and len(row.bbox) == 4 and all(map(is_number, row.bbox))):
            if not skip_bad:
                raise InputError(
                    f"{path}: {which} has bbox {shown(row.bbox)}; it must be four finite numbers of 64 bits. Correct "
                    "it, or give on_bad_image=skip to leave such annotations out."
                )
            skipped = skipped or which
            continue
        if row.area is not None and not is_number(row.area):
            raise InputError(f"{path}: {which} has area {shown(row.area)}; it must be a finite number of 64 bits.")
        usable.append(row)
    if skipped:
        count = len(rows) - len(usable)
        annotations.warnings.append(f"annotations left out for their bbox: {count}, the first is {skipped}.")
    given = {row.id for row in usable if row.id is not None}
    unused = (i for i in itertools.count(1) if i not in given)
    ids = np.array([next(unused) if row.id is None else row.id for row in usable], np.int64)
    _refuse_repeats(path, "annotation", ids)
    boxes = coco_to_xyxy(np.array([row.bbox for row in usable], np.float64).reshape(-1, 4))
    area = np.array([-1 if row.area is None else row.area for row in usable], np.float64)
    area = np.where(area < 0, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), area)
    iscrowd = np.array([row.iscrowd for row in usable], bool)
    of_image = np.array([row.image_id for row in usable], np.int64)
    categories = np.array([row.category_id for row in usable], np.int64)
    image_ids = np.array([image.image_id for image in images], np.int64)
    for values, known, phrase in (
        (of_image, image_ids, "belongs to image id {}, which isn't among its images"),
        (categories, annotations.label_map.ids, "has category id {}, which isn't among its categories"),
    ):
        unknown = np.flatnonzero(~np.isin(values, known))
        if len(unknown):
            which = phrase.format(values[unknown[0]])
            raise InputError(f"{path}: annotation {ids[unknown[0]]} {which} ({len(unknown)} such annotations).")
    by_image = np.argsort(of_image, kind="stable")
    starts, ends = (np.searchsorted(of_image[by_image], image_ids, side) for side in ("left", "right"))
    for image, start, end in zip(images, starts, ends, strict=True):
        for column, values in zip(ImageAnnotations.COLUMNS, (boxes, categories, area, iscrowd, ids), strict=True):
            setattr(image, column, values[by_image[start:end]])


def _merge_copies(annotations: Annotations) -> None:
    """Makes one image of several entries of one file; an object that repeats in another entry is kept once."""
    groups: dict[str, list[ImageAnnotations]] = {}
    for image in annotations.images:
        groups.setdefault(unified(image.file_name), []).append(image)
    copied = {name: group for name, group in groups.items() if len(group) > 1}
    if not copied:
        return
    for group in copied.values():
        first = group[0]
        for key in ("width", "height"):
            values = {getattr(image, key) for image in group} - {None}
            if len(values) > 1:
                raise InputError(
                    f"{annotations.source}: images {', '.join(str(image.image_id) for image in group)} are all "
                    f"{first.file_name}, but differ in {key}; correct or remove all but one."
                )
            setattr(first, key, min(values, default=None))
        for column in ImageAnnotations.COLUMNS:
            setattr(first, column, np.concatenate([getattr(image, column) for image in group]))
        rows = np.column_stack([first.boxes, first.category_ids, first.iscrowd])
        group[0] = first.select(np.sort(np.unique(rows, axis=0, return_index=True)[1]))
    annotations.images = [group[0] for group in groups.values()]
    name, group = next(iter(copied.items()))
    annotations.warnings.append(
        f"images listed more than once: {len(copied)}, such as {name} ({len(group)} times); each became one image with "
        "the objects of all its entries."
    )


def _refuse_repeats(path: str, kind: str, ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) != len(ids):
        raise InputError(
            f"{path}: {kind} id {values[counts > 1][0]} is used {counts.max()} times; ids must be unique "
            f"({int((counts > 1).sum())} ids repeat)."
        )
