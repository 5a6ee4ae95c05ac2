"""Annotations of a dataset, of any format: images with boxes, in numpy."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from reprlib import repr as shown
from typing import ClassVar, NamedTuple

import numpy as np

from retinanet_tf.data.sources.labels import ONE_MAP, LabelMap
from retinanet_tf.errors import InputError


@dataclass
class ImageAnnotations:
    """One image and its N objects.

    Attributes:
        image_id: the dataset's integer id (other tools' TFRecords may have a text).
        file_name: relative to the image folder.
        width, height: pixels as annotated; None where the source has no size.
        boxes: `(N, 4)` float64 xyxy pixels, continuous.
        category_ids: `(N,)` int64, the dataset's.
        area: `(N,)` float64 (COCO: of the mask).
        iscrowd: `(N,)` bool.
        annotation_ids: `(N,)` int64.
    """

    COLUMNS: ClassVar = ("boxes", "category_ids", "area", "iscrowd", "annotation_ids")

    image_id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    category_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    area: np.ndarray = field(default_factory=lambda: np.zeros(0))
    iscrowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    annotation_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        """Makes arrays of lists; areas, crowd marks and ids that are left out are the boxes', False and 1 to N."""
        self.file_name = os.fspath(self.file_name)
        self.boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        count = len(self.boxes)
        left_out = {"area": np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)}
        left_out |= {"iscrowd": np.zeros(count, bool), "annotation_ids": np.arange(1, count + 1)}
        types = {"category_ids": np.int64, "area": np.float64, "iscrowd": bool, "annotation_ids": np.int64}
        for column, dtype in types.items():
            values = np.asarray(getattr(self, column), dtype)
            if not len(values) and column in left_out:
                values = left_out[column]
            if values.shape != (count,):
                raise InputError(f"{self.file_name} has {count} boxes, but {column} of shape {values.shape}.")
            setattr(self, column, values)

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def present(self) -> np.ndarray:
        """The ids of the categories that it has an object of, crowds left out: int64, ascending."""
        return np.unique(self.category_ids[~self.iscrowd])

    def select(self, keep: np.ndarray) -> "ImageAnnotations":
        """The image with only the objects that `keep` (bool mask or indices) selects."""
        return replace(self, **{column: getattr(self, column)[keep] for column in self.COLUMNS})


@dataclass
class Annotations:
    """A dataset of one source.

    Attributes:
        source: the file or folder that it was read from.
        images: in the source's order.
        label_map: its categories.
        warnings: sentences on what was not taken as it stands.
        exif: "upright" or "stored" where boxes are known to lie on the picture as viewers show it or as it is stored
            (those in shares); None leaves it to `ImagePolicy.exif`.
    """

    source: str
    images: list[ImageAnnotations]
    label_map: LabelMap
    warnings: list[str] = field(default_factory=list)
    exif: str | None = None

    @property
    def num_boxes(self) -> int:
        """Objects in all images, crowds included."""
        return sum(len(image) for image in self.images)

    @property
    def num_crowds(self) -> int:
        """Objects that are marked iscrowd (COCO) or difficult (Pascal VOC): neither learned nor counted."""
        return sum(int(image.iscrowd.sum()) for image in self.images)


class NamedObject(NamedTuple):
    """An object of a format whose categories have names alone: its box is xyxy; `crowd` as in COCO."""

    name: str
    box: list[float]
    crowd: bool = False


def with_categories(
    source: str, images: list[tuple[ImageAnnotations, list[NamedObject]]], label_map: LabelMap | None
) -> Annotations:
    """The dataset of images, whose columns are filled with their objects, numbered from 1 in their order.

    Without `label_map` the names that occur are numbered from 1 in alphabetical order. Raises InputError if there are
    none, or one that `label_map` lacks or has under several ids.
    """
    names = sorted({item.name for _, objects in images for item in objects})
    if label_map is None:
        if not names:
            raise InputError(f"{source} has no object, so no categories; prepare a split that has them first.")
        label_map = LabelMap(range(1, len(names) + 1), names)
    for name in names:
        if label_map.names.count(name) != 1:
            fault = "has under several ids" if name in label_map.names else f"lacks; {ONE_MAP}"
            raise InputError(f"{source} has objects named {name!r}, which the label map {fault}.")
    id_of = dict(zip(label_map.names, label_map.ids, strict=True))
    count = 0
    for image, objects in images:
        image.boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
        image.category_ids = np.array([id_of[item.name] for item in objects], np.int64)
        image.area = np.prod(image.boxes[:, 2:] - image.boxes[:, :2], axis=1)
        image.iscrowd = np.array([item.crowd for item in objects], bool)
        image.annotation_ids = np.arange(count + 1, count + 1 + len(objects), dtype=np.int64)
        count += len(objects)
    return Annotations(source, [image for image, _ in images], label_map)


def without_repeats(
    images: Iterable[tuple[ImageAnnotations, list[NamedObject]]],
) -> str:
    """Leaves one of every name and box that an image has several times; a sentence that counts the others, or ''."""
    count, first = 0, ""
    for image, objects in images:
        unique = {(item.name, *item.box, item.crowd): item for item in objects}
        if len(unique) < len(objects):
            count += len(objects) - len(unique)
            first = first or image.file_name
            objects[:] = unique.values()
    return (
        f"objects that repeat another one exactly: {count}, the first on {first}; each is kept once." if count else ""
    )


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float within 64 bits, the range of all numbers of an annotation."""
    return type(value) in (int, float) and -(2**63) <= value < 2**63  # type: ignore[operator]


def as_number(text: str) -> float | None:
    """The number that a text is, None if it is none by `is_number`."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if is_number(number) else None


def is_marked(where: str, text: str) -> bool:
    """Whether a cell marks its object: 1 or true; 0, -1, false, VOC's "Unspecified" and nothing don't, others raise."""
    number = {"true": 1.0, "false": 0.0, "unspecified": 0.0, "": 0.0}.get(text.strip().lower(), as_number(text))
    if number not in (1, 0, -1):
        raise InputError(f"{where} {shown(text)}; it must be 1 or 0, true or false.")
    return number == 1


def whole_size(text: str) -> int | None:
    """The width or height in pixels that a text is, None if it is none."""
    number = as_number(text)
    return int(number) if number and number > 0 and number.is_integer() else None
