"""Ground truth and images to evaluate on, from shards or from a COCO JSON file with a folder of images."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from retinanet_tf.data.records.images import BadImage, ImagePolicy, load_image
from retinanet_tf.data.records.reader import labels_beside, read_records
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.coco import coco_to_xyxy, read_coco, xyxy_to_coco
from retinanet_tf.data.sources.image_files import find_image
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.text import printable


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The objects of one split.

    Attributes:
        instances: the content of a COCO instances file; no two images have the same id.
        label_map: its categories.
        name: for messages.
    """

    instances: dict[str, Any]
    label_map: LabelMap
    name: str

    def boxes_of(self, image_id: int | str) -> np.ndarray:
        """The boxes `(M, 4)` of one image, xyxy pixels."""
        rows = [row["bbox"] for row in self.instances["annotations"] if row["image_id"] == image_id]
        return coco_to_xyxy(np.array(rows, float).reshape(-1, 4))


@dataclasses.dataclass(frozen=True)
class Source(GroundTruth):
    """One split to evaluate on: `encoded()` yields its images as JPEG or PNG bytes, upright RGB, in their order."""

    encoded: Callable[[], Iterator[bytes]]


def open_source(source: str | os.PathLike | Source, images: str | os.PathLike | None = None) -> Source:
    """Opens shards (a glob pattern) or, where `source` ends in .json, COCO annotations with their `images` folder.

    A JSON file without annotations (COCO's image_info files of the test splits) can be detected on, but not scored.

    Raises:
        InputError: nothing matches, something is unreadable, or the images of a JSON file aren't there.
    """
    if isinstance(source, Source):
        return source
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"the source is of type {type(source).__name__}; give a pattern of shards or a COCO JSON file."
        )
    name = os.fspath(source)
    if not name.lower().endswith(".json"):
        truth = read_ground_truth(name)
        return Source(truth.instances, truth.label_map, name, lambda: (one.encoded for one in read_records(name)))
    if images is None:
        raise InputError(f"{name} needs the folder of its images: images=FOLDER.")
    annotations, folder = _read_coco(name), os.fspath(images)
    for image in annotations.images:
        try:
            find_image(folder, image.file_name)
        except BadImage as error:
            raise InputError(f"the image {image.file_name} of {name} {error}.") from None
    # Boxes fit the picture whose size is annotated; where that leaves the orientation open, EXIF decides.
    policy = ImagePolicy(verify="header", exif="upright")

    def encoded() -> Iterator[bytes]:
        for image in annotations.images:
            try:
                yield load_image(folder, image, policy).encoded
            except BadImage as error:
                raise InputError(f"the image {image.file_name} of {name} {error}.") from None

    return Source(to_instances(annotations.images, annotations.label_map, name), annotations.label_map, name, encoded)


def open_validation(source: str | os.PathLike | Source) -> Source:
    """`open_source` where there is no folder of images to be given; raises InputError for a JSON file."""
    if not isinstance(source, Source) and (name := os.fspath(source)).lower().endswith(".json"):
        raise InputError(f"validation={name} must be a pattern of shards; `retinanet prepare` makes them.")
    return open_source(source)


def read_ground_truth(source: str | os.PathLike) -> GroundTruth:
    """The ground truth alone of shards or of a COCO JSON file, enough to score detections."""
    name = os.fspath(source)
    if name.lower().endswith(".json"):
        annotations = _read_coco(name)
        return GroundTruth(to_instances(annotations.images, annotations.label_map, name), annotations.label_map, name)
    label_map = labels_beside(name)
    instances = to_instances((record.annotations for record in read_records(name)), label_map, name)
    if not instances["images"]:
        raise InputError(f"{name} holds no image.")
    return GroundTruth(instances, label_map, name)


def _read_coco(name: str) -> Annotations:
    annotations = read_coco(name, with_objects=False)
    for warning in annotations.warnings:
        logging.warning("%s: %s", name, printable(warning))
    return annotations


def category_ids(label_map: LabelMap, dataset: LabelMap, name: str) -> tuple[int, ...]:
    """A detector's category ids by class index, checked to mean the same in the dataset called `name`.

    Either may have categories that the other one lacks, such as a validation set without the rare ones, but not both.
    """
    missing = sorted(set(label_map.ids) - set(dataset.ids))
    if missing and not set(dataset.ids) < set(label_map.ids):
        raise InputError(
            f"the detector has category {missing[0]} ({label_map.names[label_map.to_index(missing[0])]}), which {name} "
            "doesn't have; evaluate on the dataset whose labels.json the model was trained with."
        )
    names = dict(zip(dataset.ids, dataset.names, strict=True))
    for category, text in zip(label_map.ids, label_map.names, strict=True):
        if names.get(category, text) != text and text != str(category):
            raise InputError(f"category {category} is {text!r} to the detector but {names[category]!r} in {name}.")
    return label_map.ids


def to_instances(images: Iterable[ImageAnnotations], label_map: LabelMap, name: str) -> dict[str, Any]:
    """The content of a COCO instances file, with the dataset's own ids, areas and crowds; annotations count from 1.

    Where an image has no id or another image's, the images are numbered 1, 2, … instead, and a warning says so.
    """
    images = list(images)
    ids = [image.image_id for image in images]
    if "" in ids or len(set(ids)) < len(ids):
        first = next(one for one, count in Counter(ids).items() if count > 1 or one == "")
        logging.warning(
            "%s: ids of images are missing or repeat (%r); the images are numbered 1, 2, … in their order, in the "
            "detections that are written too.",
            *(name, first),
        )
        ids = list(range(1, len(ids) + 1))
    instances: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": label_map.to_json()}
    for image_id, image in zip(ids, images, strict=True):
        size = {"width": image.width, "height": image.height}
        instances["images"].append({"id": image_id, "file_name": image.file_name, **size})
        columns = (xyxy_to_coco(image.boxes), image.category_ids, image.area, image.iscrowd)
        for box, category, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
            number = len(instances["annotations"]) + 1
            row = {"id": number, "image_id": image_id, "category_id": category, "bbox": box}
            instances["annotations"].append({**row, "area": area, "iscrowd": int(crowd)})
    return instances
