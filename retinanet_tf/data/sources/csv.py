"""CSV: one object per line, `image,x1,y1,x2,y2,class`; an image without objects is a line with empty cells."""

import csv
import math
import os

import numpy as np

from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.sources.voc import label_map_of, number_objects
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text

_COLUMNS = ["image", "x1", "y1", "x2", "y2", "class"]


def read_csv(path: str | os.PathLike, label_map: LabelMap | None = None) -> Annotations:
    """Reads a CSV file of boxes in pixels, xyxy and continuous (no +1), with or without the header line.

    Images are numbered from 1 in the order of their first line, objects in the order of the lines.

    Args:
        path: of the file, UTF-8.
        label_map: the categories; None numbers the class names that occur from 1 in alphabetical order.

    Raises:
        InputError: naming file and line: a wrong number of cells, a cell that isn't a finite number, a class that
            is empty or that `label_map` lacks; an empty file.
    """
    path = os.fspath(path)
    lines = list(csv.reader(read_text(path, "the annotation file").lstrip("\ufeff").splitlines()))
    rows = [(number, [cell.strip() for cell in cells]) for number, cells in enumerate(lines, 1) if any(cells)]
    if rows and [cell.lower() for cell in rows[0][1]] == _COLUMNS:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path} holds no line {','.join(_COLUMNS)}.")
    objects: dict[str, list[tuple[str, list[float]]]] = {}
    for number, cells in rows:
        if len(cells) != 6 or not cells[0]:
            raise InputError(f"{path}: line {number} has {len(cells)} cells; {','.join(_COLUMNS)} are needed.")
        of_image = objects.setdefault(cells[0], [])
        if any(cells[1:]):
            if not cells[5] or (label_map is not None and cells[5] not in label_map.names):
                raise InputError(
                    f"{path}: line {number} has class {cells[5]!r}, which is empty or not in the label map."
                )
            of_image.append((cells[5], _box(path, number, cells[1:5])))
    label_map = label_map_of((name for of_image in objects.values() for name, _ in of_image), label_map, path)
    id_of = dict(zip(label_map.names, label_map.ids, strict=True))
    images = []
    for number, (name, of_image) in enumerate(objects.items(), 1):
        boxes = np.array([box for _, box in of_image], np.float64).reshape(-1, 4)
        images.append(
            ImageAnnotations(
                number,
                name,
                boxes=boxes,
                category_ids=np.array([id_of[category] for category, _ in of_image], np.int64),
                area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
                iscrowd=np.zeros(len(boxes), bool),
            )
        )
    number_objects(images)
    return Annotations(path, images, label_map)


def _box(path: str, number: int, cells: list[str]) -> list[float]:
    try:
        box = [float(cell) for cell in cells]
    except ValueError:
        box = [math.nan]
    if not all(math.isfinite(value) for value in box):
        raise InputError(f"{path}: line {number} has the box {','.join(cells)}; it must be four finite numbers.")
    return box
