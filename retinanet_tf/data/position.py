"""Which images a step of training saw, without decoding any."""

import os

import tensorflow as tf

from retinanet_tf.data.records.example import parse_example
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.reader import RecordReader
from retinanet_tf.data.shuffle import Pools, share_of_files


def image_ids(
    pattern: str | os.PathLike,
    step: int,
    *,
    batch_size: int,
    image_size: int,
    max_size: int,
    size_multiple: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    shard_by: str = "records",
) -> list[str]:
    """The dataset's ids of the images in the batch that `load(pattern, training=True, …)` gives at `step` (from 0)."""
    index = read_index(pattern)
    if shard_by == "files":
        index, batch_size, seed, shard = share_of_files(index, batch_size, seed, shard)
    square = -(-image_size // size_multiple) == -(-max_size // size_multiple)
    pools = Pools.by_orientation(index.width, index.height, square)
    reader = RecordReader(index)
    part = batch_size // shard[1]
    records = pools.records(tf.constant(step, tf.int64), batch_size, seed)[shard[0] * part :][:part]
    return [parse_example(reader.bytes_of(record))["image_id"].numpy().decode() for record in records]
