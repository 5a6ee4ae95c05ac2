"""COCO's instance annotations: JSON to numpy, checked. No TensorFlow needed, nothing dropped here."""

import gc
import json
import math
import os
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

    Without `with_objects` the list "annotations" may be missing, as in COCO's image_info files of the test splits.

    Boxes come out as they stand (overhanging, zero-size and duplicate ones too: `rules.py` decides about those).
    Raises InputError, naming the file and the entry, for: a file that can't be read or isn't such a JSON, an image or
    annotation id that is missing, not an integer or used twice, a box that isn't four finite numbers, an annotation
    whose image or category isn't defined.
    """
    path = os.fspath(path)
    content = _parse(path)
    if not with_objects:
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f"{path} has no list {key!r}; a COCO instances file has images, annotations, categories.")
    label_map = LabelMap.from_json(content["categories"], f"{path}: categories")
    images = [_image(path, place, entry) for place, entry in enumerate(content["images"])]
    _refuse_repeats(path, "image", np.array([image.image_id for image in images], np.int64))
    _attach(path, images, label_map, content["annotations"])
    return Annotations(path, images, label_map)


def _parse(path: str) -> dict:
    # Each annotation is turned into a row as soon as the parser has closed it: masks (nine tenths of COCO's files)
    # never pile up, and a million annotations stay far below their size as dictionaries.
    def compact(entry: dict):
        if "bbox" in entry and "image_id" in entry:
            crowd = entry.get("iscrowd", 0)
            return entry["image_id"], entry.get("category_id"), entry.get("id"), crowd, entry["bbox"], entry.get("area")
        return entry

    text = read_bytes(path, "the annotation file")
    collecting = gc.isenabled()
    gc.disable()  # nothing here is cyclic, and the collector would walk all rows again and again
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


def _image(path: str, place: int, entry) -> ImageAnnotations:
    if not isinstance(entry, dict) or not _is_integer(entry.get("id")):
        raise InputError(f"{path}: images[{place}] has no integer id.")
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
    """Checks all annotation rows and gives each image its own, in the order of the file."""
    for place, row in enumerate(rows):
        if not isinstance(row, tuple):
            raise InputError(f"{path}: annotations[{place}] has no bbox or no image_id.")
    columns = {}
    for column, key in enumerate(_INTEGER_FIELDS):
        values = [row[column] for row in rows]
        for place, value in enumerate(values):
            if not _is_integer(value) and not (key == "iscrowd" and isinstance(value, bool)):
                raise InputError(f"{path}: annotations[{place}] (id {rows[place][2]}) has {key} {value!r}, no integer.")
        try:
            columns[key] = np.array(values, np.int64)
        except OverflowError:
            raise InputError(f"{path}: an annotation's {key} is beyond 64 bits.") from None
    _refuse_repeats(path, "annotation", columns["id"])
    boxes = coco_to_xyxy(_boxes(path, rows))
    known = np.array([image.image_id for image in images], np.int64)
    order = np.argsort(known, kind="stable")
    spot = np.searchsorted(known[order], columns["image_id"]) if len(known) else np.zeros(len(rows), np.int64)
    found = (spot < len(known)) & (known[order][np.minimum(spot, len(known) - 1)] == columns["image_id"])
    if not len(known):
        found = np.zeros(len(rows), bool)
    if not found.all():
        place = int(np.argmin(found))
        raise InputError(
            f"{path}: annotation {columns['id'][place]} belongs to image id {columns['image_id'][place]}, "
            f"which isn't among its images ({int((~found).sum())} such annotations)."
        )
    known_category = np.isin(columns["category_id"], label_map.ids)
    if not known_category.all():
        place = int(np.argmin(known_category))
        raise InputError(
            f"{path}: annotation {columns['id'][place]} has category id {columns['category_id'][place]}, "
            f"which isn't among its categories ({int((~known_category).sum())} such annotations)."
        )
    area = _areas(path, rows, boxes)
    image_of = order[spot] if len(rows) else spot
    by_image = np.argsort(image_of, kind="stable")
    bounds = np.searchsorted(image_of[by_image], np.arange(len(images) + 1))
    for place, image in enumerate(images):
        mine = by_image[bounds[place] : bounds[place + 1]]
        image.boxes = boxes[mine]
        image.category_ids = columns["category_id"][mine]
        image.area = area[mine]
        image.iscrowd = columns["iscrowd"][mine] != 0
        image.annotation_ids = columns["id"][mine]


def _boxes(path: str, rows: list) -> np.ndarray:
    try:
        boxes = np.array([row[4] for row in rows]).reshape(len(rows), 4)
        if not rows or (boxes.dtype.kind in "fiu" and np.isfinite(boxes).all()):
            return boxes.astype(np.float64)
    except (TypeError, ValueError):
        pass  # the loop below finds and names the culprit
    for row in rows:
        box = row[4]
        good = isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)
        if not good:
            raise InputError(f"{path}: annotation {row[2]} has bbox {box!r}; it must be four finite numbers.")
    raise AssertionError("a box that numpy refuses passed every check")


def _areas(path: str, rows: list, boxes: np.ndarray) -> np.ndarray:
    sizes = boxes[:, 2:] - boxes[:, :2]
    area = sizes[:, 0] * sizes[:, 1]
    for place, row in enumerate(rows):
        if row[5] is not None:
            if not _is_number(row[5]):
                raise InputError(f"{path}: annotation {row[2]} has area {row[5]!r}; it must be a finite number.")
            area[place] = row[5]
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
