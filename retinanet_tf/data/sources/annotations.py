"""Annotations of a dataset, of any format: images with boxes, in numpy."""

from dataclasses import dataclass, field, replace

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
        columns = ("boxes", "category_ids", "area", "iscrowd", "annotation_ids")
        return replace(self, **{column: getattr(self, column)[keep] for column in columns})


@dataclass
class Annotations:
    """A dataset: its images in the source's order, its categories, and the file or folder it was read from."""

    source: str
    images: list[ImageAnnotations]
    label_map: LabelMap

    @property
    def num_boxes(self) -> int:
        """Objects in all images, crowds included."""
        return sum(len(image) for image in self.images)
