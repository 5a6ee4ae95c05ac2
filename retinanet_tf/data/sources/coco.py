"""COCO instances JSON: read into numpy and checked."""

import gc
import json
import math
import os
from contextlib import suppress
from typing import Any

import numpy as np

from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_bytes

# COCO's bounds of small, medium and large objects: [low, high) square pixels of the original image.
SIZE_BOUNDS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
_INTEGER_FIELDS = ("image_id", "category_id", "id", "iscrowd")


def coco_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """COCO's [x, y, width, height] boxes (..., 4) as xyxy of the same dtype: continuous pixels, no +1."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_coco(boxes: np.ndarray) -> np.ndarray:
    """xyxy boxes (..., 4) as COCO's [x, y, width, height]; the inverse of `coco_to_xyxy` up to rounding."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def read_coco(path: str | os.PathLike, with_objects: bool = True) -> Annotations:
    """Reads a COCO instances JSON; images keep the file's order, images without objects included.

    Boxes are unchanged (overhanging, zero-size and duplicate ones too: `box_rules` handles them).

    Args:
        path: local or remote.
        with_objects: if false, the list "annotations" may be missing, as in COCO's image_info files of the test splits.

    Raises:
        InputError: naming file and entry: a file that can't be read or isn't such a JSON, an image or annotation id
            that is missing, not an integer or used twice, a box that isn't four finite numbers, an annotation of an
            undefined image or category.
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
    _attach(path, images, label_map, content["annotations"])
    return Annotations(path, images, label_map)


def _parse(path: str) -> dict:
    # Each annotation becomes a row as soon as it is parsed: masks (nine tenths of COCO's files) don't accumulate, and
    # a million annotations take far less memory than as dictionaries.
    def compact(entry: dict):
        if "bbox" in entry and "image_id" in entry:
            crowd = entry.get("iscrowd", 0)
            return entry["image_id"], entry.get("category_id"), entry.get("id"), crowd, entry["bbox"], entry.get("area")
        return entry

    text = read_bytes(path, "the annotation file")
    collecting = gc.isenabled()
    gc.disable()  # nothing here is cyclic, and the collector would visit all rows repeatedly
    try:
        content = json.loads(text, object_hook=compact)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); was its download complete?") from None
    finally:
        if collecting:
            gc.enable()
    if not isinstance(content, dict):
        raise InputError(f"{path} is JSON but not a COCO instances file: its top level must be an object.")
    return content


def _image(path: str, number: int, entry) -> ImageAnnotations:
    if not isinstance(entry, dict) or not _is_integer(entry.get("id")):
        raise InputError(f"{path}: images[{number}] has no integer id.")
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: image {entry['id']} has no file_name.")
    size: list[Any] = []
    for key in ("width", "height"):
        value = entry.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (not _is_integer(value) or value <= 0):
            raise InputError(f"{path}: image {entry['id']} has {key} {value!r}; it must be a whole number above 0.")
        size.append(value)
    return ImageAnnotations(entry["id"], name, *size)


def _attach(path: str, images: list[ImageAnnotations], label_map: LabelMap, rows: list) -> None:
    """Checks all annotation rows and assigns them to their images, in the order of the file."""
    for number, row in enumerate(rows):
        if not isinstance(row, tuple):
            raise InputError(f"{path}: annotations[{number}] has no bbox or no image_id.")
    columns = {}
    for column, key in enumerate(_INTEGER_FIELDS):
        values = [row[column] for row in rows]
        for number, value in enumerate(values):
            if not _is_integer(value) and not (key == "iscrowd" and isinstance(value, bool)):
                raise InputError(
                    f"{path}: annotations[{number}] (id {rows[number][2]}) has {key} {value!r}, no integer."
                )
        try:
            columns[key] = np.array(values, np.int64)
        except OverflowError:
            raise InputError(f"{path}: an annotation's {key} is beyond 64 bits.") from None
    _refuse_repeats(path, "annotation", columns["id"])
    boxes = coco_to_xyxy(_boxes(path, rows))
    area = _areas(path, rows, boxes)
    image_ids = np.array([image.image_id for image in images], np.int64)
    for key, ids, phrase in (
        ("image_id", image_ids, "belongs to image id {}, which isn't among its images"),
        ("category_id", label_map.ids, "has category id {}, which isn't among its categories"),
    ):
        unknown = np.flatnonzero(~np.isin(columns[key], ids))
        if len(unknown):
            which = phrase.format(columns[key][unknown[0]])
            raise InputError(
                f"{path}: annotation {columns['id'][unknown[0]]} {which} ({len(unknown)} such annotations)."
            )
    by_image = np.argsort(columns["image_id"], kind="stable")
    sorted_ids = columns["image_id"][by_image]
    starts, ends = (np.searchsorted(sorted_ids, image_ids, side) for side in ("left", "right"))
    for image, start, end in zip(images, starts, ends, strict=True):
        selected = by_image[start:end]
        image.boxes = boxes[selected]
        image.category_ids = columns["category_id"][selected]
        image.area = area[selected]
        image.iscrowd = columns["iscrowd"][selected] != 0
        image.annotation_ids = columns["id"][selected]


def _boxes(path: str, rows: list) -> np.ndarray:
    with suppress(TypeError, ValueError):  # all at once; if that fails, the loop names the culprit
        boxes = np.array([row[4] for row in rows]).reshape(len(rows), 4)
        if boxes.dtype.kind in "fiu" and np.isfinite(boxes).all():
            return boxes.astype(np.float64)
    for row in rows:
        box = row[4]
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            raise InputError(f"{path}: annotation {row[2]} has bbox {box!r}; it must be four finite numbers.")
    raise InputError(f"{path}: a bbox is beyond 64 bits.")


def _areas(path: str, rows: list, boxes: np.ndarray) -> np.ndarray:
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for number, row in enumerate(rows):
        if row[5] is not None:
            if not _is_number(row[5]):
                raise InputError(f"{path}: annotation {row[2]} has area {row[5]!r}; it must be a finite number.")
            area[number] = row[5]
    return area


def _refuse_repeats(path: str, kind: str, ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) != len(ids):
        raise InputError(
            f"{path}: {kind} id {values[counts > 1][0]} is used {counts.max()} times; ids must be unique "
            f"({int((counts > 1).sum())} ids repeat)."
        )


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
