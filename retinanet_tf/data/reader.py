"""Records read from their shards by number, checked; and readers that go through a dataset once, in its order."""

import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from retinanet_tf.data.checksum import checksum_op
from retinanet_tf.data.coco import xyxy_to_coco
from retinanet_tf.data.index import ShardIndex, find_shards, read_index
from retinanet_tf.data.labels import LabelMap
from retinanet_tf.data.tfrecord import Record, decode_image, from_example, parse_example
from retinanet_tf.errors import InputError


def labels_beside(pattern: str | os.PathLike, labels: LabelMap | str | os.PathLike | None = None) -> LabelMap:
    """The label map given, or read from the path given, or from labels.json in the shards' folder."""
    if isinstance(labels, LabelMap):
        return labels
    return LabelMap.load(labels or os.path.join(os.path.dirname(find_shards(pattern)[0]), "labels.json"))


def to_labels(category_ids: tf.Tensor, labels: LabelMap) -> tf.Tensor:
    """(N,) int64 category ids as int32 labels 0..K-1; an id that the label map lacks is an error."""
    ids = tf.constant(labels.ids, tf.int64)
    found = tf.minimum(tf.searchsorted(ids, category_ids), labels.num_classes - 1)
    known = tf.debugging.Assert(
        tf.reduce_all(tf.equal(tf.gather(ids, found), category_ids)),
        ["a category id isn't in labels.json:", category_ids],
    )
    with tf.control_dependencies([known]):
        return tf.identity(found)


def read_one(index: ShardIndex, process: Callable[[tf.Tensor], object]) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """A function from a record's number (int64 scalar) to a dataset of one element, `process(serialized)`.

    To be interleaved. A record that can't be read, whose bytes don't give its checksum, or that `process` can't use
    is an error that names the file and the record.
    """
    table = _Table(index)

    def failed(record: tf.Tensor):
        message = tf.strings.format(
            "record {} of {} is damaged: it can't be read, isn't what was written, or its image doesn't decode. Run "
            "prepare_data again, or go on without such records by on_bad_record=skip.",
            (tf.gather(table.number, record), table.path(record)),
        )
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.constant(b"")

    def read(record: tf.Tensor) -> tf.data.Dataset:
        good = table.bytes_of(record).map(process).ignore_errors()
        bad = tf.data.Dataset.from_tensors(record).map(lambda number: process(failed(number)))
        return good.concatenate(bad).take(1)

    return read


class _Table:
    """The index as constants of the graph."""

    def __init__(self, index: ShardIndex):
        self.files = tf.constant(index.files)
        self.number = tf.constant(index.number, tf.int64)
        self._columns = tf.constant(
            np.stack([index.shard, index.offset, index.length, index.checksum, index.bytes[index.shard]], axis=1)
        )

    def path(self, record: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.files, tf.gather(self._columns, record)[0])

    def bytes_of(self, record: tf.Tensor) -> tf.data.Dataset:
        """A dataset of the record's serialised example, its checksum verified."""
        shard, offset, length, expected, size = tf.unstack(tf.gather(self._columns, record))
        raw = tf.data.FixedLengthRecordDataset(
            tf.gather(self.files, shard)[None], length, offset, size - offset - length, buffer_size=length
        )

        def check(data: tf.Tensor) -> tf.Tensor:
            with tf.control_dependencies([tf.debugging.Assert(tf.equal(checksum_op(data), expected), ["checksum"])]):
                return tf.identity(data)

        return raw.map(check)


def load_for_evaluation(pattern: str | os.PathLike, *, num_parallel: int | None = None) -> tf.data.Dataset:
    """Every image once, in the order of the files, unbatched and at its own size.

    Elements are dicts: `image` (H, W, 3) uint8 RGB, `encoded` string, `image_id` string (the dataset's id),
    `filename` string, `height` and `width` int32.
    """
    index = read_index(pattern)

    def process(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized)
        keys = ("encoded", "image_id", "filename", "height", "width")
        return {"image": decode_image(example["encoded"]), **{key: example[key] for key in keys}}

    return tf.data.Dataset.range(len(index)).interleave(
        read_one(index, process),
        cycle_length=2 * (os.cpu_count() or 1),
        num_parallel_calls=num_parallel or tf.data.AUTOTUNE,
        deterministic=True,
    )


def read_records(pattern: str | os.PathLike) -> Iterator[Record]:
    """Every record in Python, in the order of the files; raises InputError naming a damaged one."""
    for path in find_shards(pattern):
        number = 0
        try:
            for serialized in tf.data.TFRecordDataset(path):
                yield from_example(serialized.numpy())
                number += 1
        except (ValueError, tf.errors.OpError) as error:
            reason = getattr(error, "message", None) or str(error)
            raise InputError(f"record {number} of {path} is damaged ({reason}); run prepare_data again.") from None


def ground_truth(pattern: str | os.PathLike, labels: LabelMap | str | os.PathLike | None = None) -> dict:
    """The shards' annotations as a COCO dictionary (images, annotations, categories) for pycocotools.

    Boxes, areas, crowds and ids are those that prepare_data was given (boxes cut at the image's edge); an annotation
    whose id is unknown or used twice makes all ids 1..N.
    """
    images, annotations = [], []
    for record in read_records(pattern):
        image = record.annotations
        images.append(
            {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
        )
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
    # pycocotools takes an annotation of id 0 for a missed object.
    ids = {annotation["id"] for annotation in annotations}
    if len(ids) != len(annotations) or 0 in ids:
        for place, annotation in enumerate(annotations):
            annotation["id"] = place + 1
    return {"images": images, "annotations": annotations, "categories": labels_beside(pattern, labels).to_json()}
