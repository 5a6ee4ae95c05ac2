"""Annotations of a dataset, of any format: images with boxes, in numpy."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from retinanet_tf.data.sources.labels import LabelMap


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

    def __len__(self) -> int:
        """N, the number of objects."""
        return len(self.boxes)

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
    """

    source: str
    images: list[ImageAnnotations]
    label_map: LabelMap
    warnings: list[str] = field(default_factory=list)

    @property
    def num_boxes(self) -> int:
        """Objects in all images, crowds included."""
        return sum(len(image) for image in self.images)

    @property
    def num_crowds(self) -> int:
        """Objects that are marked iscrowd (COCO) or difficult (Pascal VOC): neither learned nor counted."""
        return sum(int(image.iscrowd.sum()) for image in self.images)


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


def whole_size(text: str) -> int | None:
    """The width or height in pixels that a text is, None if it is none."""
    number = as_number(text)
    return int(number) if number and number > 0 and number.is_integer() else None
