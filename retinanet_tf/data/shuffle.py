"""The shuffle: which records a training step draws, as a pure function of (seed, step) inside the graph.

Records form one or two pools by orientation (wider, taller), so that a batch has one canvas. Each pool is an endless
sequence of its own shuffles, epoch after epoch; a batch takes the next records of its pool, across the end of an epoch
if need be, so nothing is left over. The steps are spread over the two pools evenly, in proportion to their sizes.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tf.data.records.index import ShardIndex


@dataclass(frozen=True)
class Pools:
    """Record numbers of the two pools; `tall` is empty where all share one canvas."""

    wide: np.ndarray
    tall: np.ndarray

    @classmethod
    def by_orientation(cls, width: np.ndarray, height: np.ndarray, square_canvas: bool) -> "Pools":
        """Splits N records, given their sizes, unless one square canvas serves all."""
        tall = np.zeros(len(width), bool) if square_canvas else height > width
        return cls(np.flatnonzero(~tall), np.flatnonzero(tall))

    def draw(self, steps: tf.Tensor, batch_size: int, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The records of some steps in a row: `(S,)` int64 → `(S, batch_size)` int64 and `(S,)` bool, whether tall."""
        tall_before = self._tall_before(steps)
        tall = self._tall_before(steps + 1) > tall_before

        def draw_from(pool, batches_before):
            positions = batches_before[:, None] * batch_size + tf.range(batch_size, dtype=tf.int64)
            return shuffled(pool, positions, seed)

        if not len(self.tall):
            return draw_from(self.wide, steps), tall
        if not len(self.wide):
            return draw_from(self.tall, steps), tall
        wide_records, tall_records = draw_from(self.wide, steps - tall_before), draw_from(self.tall, tall_before)
        return tf.where(tall[:, None], tall_records, wide_records), tall

    def any_record(self, tall: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random record of a pool, for a stateless `seed` `(2,)`: the replacement of a damaged one."""
        both = tf.constant(np.concatenate([self.wide, self.tall]), tf.int64)
        first, count = tf.unstack(tf.where(tall, [len(self.wide), len(self.tall)], [0, len(self.wide)]))
        return both[first + tf.random.stateless_uniform([], seed, maxval=count, dtype=tf.int32)]

    def _tall_before(self, step: tf.Tensor) -> tf.Tensor:
        return step * len(self.tall) // (len(self.wide) + len(self.tall))


def share_of_files(
    index: ShardIndex, batch_size: int, seed: int, shard: tuple[int, int]
) -> tuple[ShardIndex, int, int, tuple[int, int]]:
    """The `load` arguments of worker `shard` = (number, count) that reads files of its own, every count-th.

    It then draws as a single worker does, (0, 1), from its own files, for its share of the batch, with a seed of its
    own. If some worker would have no record, the arguments come back unchanged: the workers share by records.
    """
    worker, count = shard
    if len(np.unique(index.shard % count)) < count:
        logging.warning("%d files are too few for %d workers: they share by records.", len(index.files), count)
        return index, batch_size, seed, shard
    return index.select(index.shard % count == worker), batch_size // count, seed + worker, (0, 1)


def shuffled(records: np.ndarray, positions: tf.Tensor, seed: int) -> tf.Tensor:
    """The records at `positions`, ascending int64, of the endless sequence of shuffles of `records`, one per epoch."""
    first, last = tf.reduce_min(positions) // len(records), tf.reduce_max(positions) // len(records)

    def epoch(number: tf.Tensor) -> tf.Tensor:
        key = tf.stack([tf.constant(seed, tf.int64), number])
        return tf.random.experimental.stateless_shuffle(tf.constant(records, tf.int64), key)

    epochs = tf.map_fn(epoch, tf.range(first, last + 1))
    return tf.gather(tf.reshape(epochs, [-1]), positions - first * len(records))
