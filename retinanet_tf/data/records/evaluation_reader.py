"""Readers for an evaluation: every image once, in the dataset's order, and its ground truth as COCO writes it."""

import os

import tensorflow as tf

from retinanet_tf.data.records.example import decode_image, parse_example
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.reader import RecordReader, labels_beside, read_records
from retinanet_tf.data.sources.coco import xyxy_to_coco
from retinanet_tf.data.sources.labels import LabelMap


def load_for_evaluation(pattern: str | os.PathLike, *, num_parallel: int | None = None) -> tf.data.Dataset:
    """Every image once, in the order of the files, unbatched and at its own size.

    Elements are dicts: `image` (H, W, 3) uint8 RGB, `encoded` string, `image_id` string (the dataset's id),
    `filename` string, `height` and `width` int32. A damaged record is an error that names it.
    """
    index = read_index(pattern)
    reader = RecordReader(index)

    def process(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized)
        keys = ("encoded", "image_id", "filename", "height", "width")
        return {"image": decode_image(example["encoded"]), **{key: example[key] for key in keys}}

    return tf.data.Dataset.range(len(index)).interleave(
        lambda record: reader.used_by(process, record),
        cycle_length=num_parallel or 2 * (os.cpu_count() or 1),
        num_parallel_calls=num_parallel or tf.data.AUTOTUNE,
        deterministic=True,
    )


def ground_truth(pattern: str | os.PathLike, labels: LabelMap | str | os.PathLike | None = None) -> dict:
    """The shards' annotations as a COCO dictionary (images, annotations, categories) for pycocotools.

    Boxes, areas, crowds and ids are those that prepare_data was given (boxes cut at the image's edge); where an
    annotation's id is 0 or used twice, which pycocotools can't have, all annotations are numbered anew from 1.
    """
    images, annotations = [], []
    for record in read_records(pattern):
        image = record.annotations
        size = {"width": image.width, "height": image.height}
        images.append({"id": image.image_id, "file_name": image.file_name, **size})
        for row, box in enumerate(xyxy_to_coco(image.boxes).tolist()):
            annotations.append(
                {
                    "id": int(image.annotation_ids[row]),
                    "image_id": image.image_id,
                    "category_id": int(image.category_ids[row]),
                    "bbox": box,
                    "area": float(image.area[row]),
                    "iscrowd": int(image.iscrowd[row]),
                }
            )
    ids = {annotation["id"] for annotation in annotations}
    if len(ids) != len(annotations) or 0 in ids:
        for place, annotation in enumerate(annotations):
            annotation["id"] = place + 1
    return {"images": images, "annotations": annotations, "categories": labels_beside(pattern, labels).to_json()}
