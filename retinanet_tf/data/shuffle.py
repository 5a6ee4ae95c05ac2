"""Which record comes at which place of which step: a pure function of (seed, step), computed inside the graph.

Records form one or two pools by orientation (wider, taller), so that a batch has one canvas. Each pool is an endless
row of its own shuffles, epoch after epoch; a batch takes the next records of its pool, across the end of an epoch
if need be, so nothing is left over. Which pool a step takes is spread evenly in proportion to the pools' sizes.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tf.data.records.index import ShardIndex


@dataclass(frozen=True)
class Pools:
    """wide, tall: record numbers of the two pools; `tall` is empty where all share one canvas."""

    wide: np.ndarray
    tall: np.ndarray

    @classmethod
    def by_orientation(cls, width: np.ndarray, height: np.ndarray, square_canvas: bool) -> "Pools":
        """Splits N records, given their sizes, unless one square canvas serves all."""
        tall = np.zeros(len(width), bool) if square_canvas else height > width
        return cls(np.flatnonzero(~tall), np.flatnonzero(tall))

    def is_tall(self, step: tf.Tensor) -> tf.Tensor:
        """Whether a step's batch comes from the `tall` pool: bool scalar for an int64 scalar."""
        return self._tall_before(step + 1) > self._tall_before(step)

    def records(self, step: tf.Tensor, batch_size: int, seed: int) -> tf.Tensor:
        """(batch_size,) int64 record numbers of an int64 scalar step."""
        tall_before = self._tall_before(step)
        tall = self.is_tall(step)
        start = tf.where(tall, tall_before, step - tall_before) * batch_size
        places = start + tf.range(batch_size, dtype=tf.int64)
        if not len(self.tall):
            return shuffled(self.wide, places, seed)
        if not len(self.wide):
            return shuffled(self.tall, places, seed)
        return tf.cond(tall, lambda: shuffled(self.tall, places, seed), lambda: shuffled(self.wide, places, seed))

    def any_record(self, tall: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Some record of a pool, a function of the int64 `number`: what stands in for a damaged one."""
        pools = tf.constant(np.concatenate([self.wide, self.tall]), tf.int64)
        start = tf.where(tall, len(self.wide), 0)
        count = tf.where(tall, len(self.tall), len(self.wide))
        place = tf.math.floormod(_mixed(number), tf.cast(tf.maximum(count, 1), tf.int64))
        return tf.gather(pools, tf.cast(start, tf.int64) + place)

    def _tall_before(self, step: tf.Tensor) -> tf.Tensor:
        total = len(self.wide) + len(self.tall)
        return step * len(self.tall) // total


def share_of_files(
    index: ShardIndex, batch_size: int, seed: int, shard: tuple[int, int]
) -> tuple[ShardIndex, int, int, tuple[int, int]]:
    """What the worker `shard` = (number, count) draws from if each has files of its own: every count-th.

    It draws as a lone worker does, (0, 1), from its own files, for its part of the batch, with a seed of its own.
    Where some worker would have no record, all is as it was given: they share by records.
    """
    worker, count = shard
    if len(np.unique(index.shard % count)) < count:
        logging.warning("%d files are too few for %d workers: they share by records.", len(index.files), count)
        return index, batch_size, seed, shard
    return index.select(index.shard % count == worker), batch_size // count, seed + worker, (0, 1)


def shuffled(records: np.ndarray, places: tf.Tensor, seed: int) -> tf.Tensor:
    """The records at `places` (int64, any number) of the endless row of shuffles of `records`, one an epoch."""
    count = len(records)
    epoch, place = places // count, places % count
    if count > 1:
        # The raw op: its public wrapper pads a matrix of seeds along both axes and then refuses the result. Its cipher
        # spreads little of its key, so seeds of neighbouring epochs are mixed first: unmixed they give like orders.
        key = _mixed(_mixed(tf.constant(seed, tf.int64)) + epoch)
        seeds = tf.stack([key, _mixed(key), _mixed(key + 1)], axis=-1)
        last = tf.constant(count - 1, tf.int64)
        place = tf.raw_ops.RandomIndexShuffle(index=place, seed=seeds, max_index=last, rounds=8)
    return tf.gather(tf.constant(records, tf.int64), place)


def _mixed(value: tf.Tensor) -> tf.Tensor:
    """A bijection of 64-bit integers whose every output bit depends on all input bits (splitmix64's finaliser)."""
    value = value + tf.constant(-0x61C8864680B583EB, tf.int64)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        value = tf.bitwise.bitwise_xor(value, _shifted(value, shift)) * tf.constant(factor, tf.int64)
    return tf.bitwise.bitwise_xor(value, _shifted(value, 31))


def _shifted(value: tf.Tensor, bits: int) -> tf.Tensor:
    """A logical shift to the right; TensorFlow's is arithmetic for signed integers."""
    mask = tf.constant((1 << (64 - bits)) - 1, tf.int64)
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(value, tf.constant(bits, tf.int64)), mask)
