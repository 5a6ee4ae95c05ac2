"""Records read from their shards by number, in any order, each checked against the index."""

import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from retinanet_tf.data.records.example import Record, from_example
from retinanet_tf.data.records.index import ShardIndex, find_shards
from retinanet_tf.data.records.shards import FOOTER, HEADER
from retinanet_tf.data.records.tfrecord import payloads
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError


class RecordReader:
    """The records of an index, whose lengths `read_index` has checked, inside a `tf.data` graph."""

    def __init__(self, index: ShardIndex):
        columns = (index.shard, index.offset, index.length, index.number)
        with tf.device("/CPU:0"):  # The pipeline reads them there, whatever the default device is.
            self._files = tf.constant(index.files)
            self._columns = tf.constant(np.stack(columns, axis=1).astype(np.int64))

    def position(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """A record's file and its number in that file."""
        row = tf.gather(self._columns, record)
        return tf.gather(self._files, row[0]), row[3]

    def bytes_of(self, record: tf.Tensor) -> tf.Tensor:
        """A record's bytes, a string scalar; an error if TFRecord's CRC doesn't match them."""
        shard, offset, length, _ = tf.unstack(tf.gather(self._columns, record))
        # The raw op seeks; the public TFRecordDataset begins at a file's start. The buffer is one record: one read.
        rest_of_file = tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.gather(self._files, shard)[None],
            compression_type="",
            buffer_size=HEADER + length + FOOTER,
            byte_offsets=(offset - HEADER)[None],
        )
        records = tf.data.experimental.from_variant(rest_of_file, tf.TensorSpec((), tf.string))
        return records.take(1).get_single_element()

    def refused(self, record: tf.Tensor, spec: object) -> object:
        """The error that names a damaged record; for the graph an element of `spec`, with nothing along open axes."""
        path, number = self.position(record)
        # Without apostrophes, which TensorFlow would show escaped.
        why = (
            " is damaged: it cannot be read, is not as it was written, its image does not decode or has another size, "
            "or it has a category that labels.json lacks. Run `retinanet prepare` again, or pass on_bad_record=skip.>>"
        )
        # In marks, by which models.fit_data.readable_faults finds it in TensorFlow's own text.
        message = tf.strings.join(["<<record ", tf.strings.as_string(number), " of ", path, why])
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.nest.map_structure(lambda part: tf.zeros([size or 0 for size in part.shape], part.dtype), spec)


def labels_beside(pattern: str | os.PathLike, label_map: LabelMap | str | os.PathLike | None = None) -> LabelMap:
    """The label map given, or read from the path given, or from labels.json in the shards' folders.

    Raises:
        InputError: labels.json is missing or isn't one, or folders of shards have different ones.
    """
    if isinstance(label_map, LabelMap):
        return label_map
    if label_map:
        return LabelMap.load(label_map)
    folders = dict.fromkeys(map(os.path.dirname, find_shards(pattern)))
    first, *others = [os.path.join(folder, "labels.json") for folder in folders]
    labels = LabelMap.load(first)
    for other in others:
        if LabelMap.load(other) != labels:
            raise InputError(f"{first} and {other} differ; shards that are used together need the same categories.")
    return labels


def read_records(pattern: str | os.PathLike) -> Iterator[Record]:
    """Yields every `Record` in Python, in the order of the files; raises InputError naming a damaged one."""
    for path in find_shards(pattern):
        number = 0
        try:
            for number, data in enumerate(payloads(path)):
                record: Record = from_example(data)
                yield record
                number += 1
        except ValueError as error:
            raise InputError(f"record {number} of {path} is damaged ({error}); prepare it again.") from None
