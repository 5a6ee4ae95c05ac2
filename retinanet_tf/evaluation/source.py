"""What an evaluation runs on: shards, or a COCO JSON file with its images; the ground truth and encoded images."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from retinanet_tf.data.records.images import BadImage, ImagePolicy, prepare_image
from retinanet_tf.data.records.reader import labels_beside, read_records
from retinanet_tf.data.sources.annotations import ImageAnnotations
from retinanet_tf.data.sources.coco import read_coco, xyxy_to_coco
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_bytes


@dataclasses.dataclass(frozen=True)
class Source:
    """One split to evaluate on.

    ground_truth: a COCO instances dict. labels: its categories. encoded: a function that starts a pass over the
    images in the order of ground_truth["images"], each as JPEG or PNG bytes, upright RGB; None where they aren't
    known. name: for messages.
    """

    ground_truth: dict[str, Any]
    labels: LabelMap
    encoded: Callable[[], Iterator[bytes]] | None
    name: str


def read_source(source: str | os.PathLike, images: str | os.PathLike | None = None) -> Source:
    """Opens shards (a glob pattern) or, where `source` ends in .json, COCO annotations with their `images` folder.

    Without the folder there is the ground truth of a JSON file alone: enough to score detections. A JSON without
    annotations (COCO's image_info files of the test splits) has images to detect on, and nothing to score with.

    Raises:
      InputError: nothing matches, or something is unreadable.
    """
    name = os.fspath(source)
    return _coco(name, images) if name.endswith(".json") else _shards(name)


def category_ids(detector_labels: LabelMap, dataset_labels: LabelMap, name: str) -> tuple[int, ...]:
    """The dataset's category ids by the detector's class index, once they are known to mean the same categories."""
    for category, text in zip(detector_labels.ids, detector_labels.names, strict=True):
        if category not in dataset_labels.ids:
            raise InputError(
                f"the detector knows category {category} ({text}), which {name} doesn't have; "
                f"evaluate on the dataset whose labels.json the model was trained with."
            )
        there = dataset_labels.names[dataset_labels.to_index(category)]
        if there != text and text != str(category):
            raise InputError(f"category {category} is {text!r} to the detector but {there!r} in {name}.")
    return detector_labels.ids


def to_ground_truth(images: Iterable[ImageAnnotations], labels: LabelMap) -> dict[str, Any]:
    """A COCO instances dict of what was read, with the dataset's own ids, areas and crowds."""
    truth: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": labels.to_json()}
    for image in images:
        size = {"width": image.width, "height": image.height}
        truth["images"].append({"id": image.image_id, "file_name": image.file_name, **size})
        boxes = xyxy_to_coco(image.boxes).tolist()
        rows = zip(boxes, image.category_ids.tolist(), image.area.tolist(), image.iscrowd.tolist(), strict=True)
        for box, category, area, crowd in rows:
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image.image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return truth


def _coco(name: str, images: str | os.PathLike | None) -> Source:
    annotations = read_coco(name, with_objects=False)
    truth = to_ground_truth(annotations.images, annotations.labels)
    if images is None:
        return Source(truth, annotations.labels, None, name)
    folder = Path(images)
    missing = [image.file_name for image in annotations.images if not (folder / image.file_name).is_file()]
    if missing:
        raise InputError(f"{name} names {len(missing)} images that {folder} doesn't hold, the first is {missing[0]}.")
    # Boxes are on the picture whose size is annotated; where that doesn't settle an orientation, viewers turn it.
    policy = ImagePolicy(verify="header", exif="upright")

    def encoded() -> Iterator[bytes]:
        for image in annotations.images:
            path = folder / image.file_name
            try:
                yield prepare_image(read_bytes(path, "the image"), (image.width, image.height), policy).encoded
            except BadImage as error:
                raise InputError(f"{path} {error}.") from None

    return Source(truth, annotations.labels, encoded, name)


def _shards(pattern: str) -> Source:
    labels = labels_beside(pattern)
    truth = to_ground_truth((record.annotations for record in read_records(pattern)), labels)
    if not truth["images"]:
        raise InputError(f"{pattern} holds no image.")
    return Source(truth, labels, lambda: (record.encoded for record in read_records(pattern)), pattern)
