"""The shuffle: which records a training step draws, as a pure function of (seed, step) inside the graph.

Records form one or two pools by orientation (wider, taller), so that a batch has one canvas. Each pool is an endless
sequence of its own shuffles, epoch after epoch; a batch takes the next records of its pool, across the end of an epoch
if need be, so nothing is left over. The steps are spread over the two pools evenly, in proportion to their sizes.

Where records repeat (`data.repeat_factors`), by a factor r of at least 1, an epoch has each of them ⌊r⌋ or ⌈r⌉ times,
so that it comes ⌊e·r + u⌋ times in the first e epochs, u being its own random number from [0, 1). That sum is known for
every e without those before it, and is always less than 1 from e·r, which is its mean over u. Sizes of pools are then
sums of factors. Factors are multiples of 2⁻¹⁶, so that all of it is done in integers.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tf.data.records.index import ShardIndex

_ONE = 2**16
"""A factor of 1."""
_PARTNERS = np.int64(1)  # tells the partners' random numbers from the epochs'


@dataclass(frozen=True)
class Pools:
    """Record numbers of the two pools; `tall` is empty where all share one canvas.

    repeat: (N,) float64 factors of the records by number, at least 1; None for 1.
    """

    wide: np.ndarray
    tall: np.ndarray
    repeat: np.ndarray | None = None

    @classmethod
    def by_orientation(
        cls, width: np.ndarray, height: np.ndarray, square_canvas: bool, repeat: np.ndarray | None = None
    ) -> "Pools":
        """Splits N records, given their sizes, unless one square canvas serves all."""
        tall = np.zeros(len(width), bool) if square_canvas else height > width
        return cls(np.flatnonzero(~tall), np.flatnonzero(tall), repeat)

    def draw(self, steps: tf.Tensor, batch_size: int, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The records of some steps in a row: `(S,)` int64 → `(S, batch_size)` int64 and `(S,)` bool, whether tall."""
        tall_before = self._tall_before(steps)
        tall = self._tall_before(steps + 1) > tall_before

        def draw_from(pool, batches_before):
            positions = batches_before[:, None] * batch_size + tf.range(batch_size, dtype=tf.int64)
            return shuffled(pool, positions, seed, None if self.repeat is None else self.repeat[pool])

        if not len(self.tall):
            return draw_from(self.wide, steps), tall
        if not len(self.wide):
            return draw_from(self.tall, steps), tall
        wide_records, tall_records = draw_from(self.wide, steps - tall_before), draw_from(self.tall, tall_before)
        return tf.where(tall[:, None], tall_records, wide_records), tall

    def draw_groups(self, steps: tf.Tensor, batch_size: int, seed: int, partners: int) -> tuple[tf.Tensor, tf.Tensor]:
        """`draw` with `partners` others of the same pool beside each record, for augmentation that mixes pictures.

        Returns:
            `(S, batch_size, 1 + partners)` int64, the drawn record first, and `(S,)` bool. Partners are drawn evenly
            from the pool's other records, with replacement; a pool's only record is its own partner.
        """
        records, tall = self.draw(steps, batch_size, seed)
        if not partners:
            return records[..., None], tall
        both = np.concatenate([self.wide, self.tall])
        place = np.argsort(both)  # from a record to its place among both
        first, count = (
            tf.where(tall, *(tf.constant(end, tf.int64) for end in ends))[:, None, None]
            for ends in ((len(self.wide), 0), (len(self.tall), len(self.wide)))
        )

        def step_numbers(step: tf.Tensor) -> tf.Tensor:
            key = tf.random.experimental.stateless_fold_in(tf.stack([tf.constant(seed, tf.int64), step]), _PARTNERS)
            shape = (batch_size, partners)
            return tf.random.stateless_uniform(shape, key, 0, np.iinfo(np.int64).max, tf.int64)

        others = tf.map_fn(step_numbers, steps) % tf.maximum(count - 1, 1) + 1
        places = tf.gather(tf.constant(place, tf.int64), records)[..., None] - first
        partners_of = tf.gather(tf.constant(both, tf.int64), first + (places + others) % count)
        return tf.concat([records[..., None], partners_of], axis=-1), tall

    def any_record(self, tall: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random record of a pool, for a stateless `seed` `(2,)`: the replacement of a damaged one."""
        both = tf.constant(np.concatenate([self.wide, self.tall]), tf.int64)
        first, count = tf.unstack(tf.where(tall, [len(self.wide), len(self.tall)], [0, len(self.wide)]))
        return both[first + tf.random.stateless_uniform([], seed, maxval=count, dtype=tf.int32)]

    def _tall_before(self, step: tf.Tensor) -> tf.Tensor:
        repeat = _integers(self.repeat, len(self.wide) + len(self.tall))
        tall, both = int(repeat[self.tall].sum()), int(repeat.sum())
        common = math.gcd(tall, both)
        return step * (tall // common) // (both // common)


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


def shuffled(records: np.ndarray, positions: tf.Tensor, seed: int, repeat: np.ndarray | None = None) -> tf.Tensor:
    """The records at `positions`, ascending int64, of the endless sequence of shuffles of `records`, one per epoch.

    `repeat`: (len(records),) factors of at least 1, None for 1.
    """
    factors = _integers(repeat, len(records))
    total = int(factors.sum())
    # Epochs have keys from 0 on.
    key = tf.constant([seed, -1], tf.int64)
    offsets = tf.random.stateless_uniform([len(records)], key, maxval=_ONE, dtype=tf.int64)

    def counts(epochs: tf.Tensor) -> tf.Tensor:
        """How often each record has come in the first `epochs`."""
        return (epochs * tf.constant(factors) + offsets) // _ONE

    def epoch_of(position: tf.Tensor) -> tf.Tensor:
        # In e epochs come more than (e - 1) and less than (e + 1) times as many as there are on average, so that only
        # three can have the position.
        middle = position * _ONE // total
        begun = [tf.reduce_sum(counts(epoch)) <= position for epoch in (middle, middle + 1)]
        return middle - 1 + tf.reduce_sum(tf.cast(tf.stack(begun), tf.int64))

    def epoch(number: tf.Tensor) -> tf.Tensor:
        entries = tf.repeat(tf.constant(records, tf.int64), counts(number + 1) - counts(number))
        return tf.random.experimental.stateless_shuffle(entries, tf.stack([tf.constant(seed, tf.int64), number]))

    first, last = epoch_of(tf.reduce_min(positions)), epoch_of(tf.reduce_max(positions))
    spec = tf.RaggedTensorSpec([None], tf.int64, ragged_rank=0)
    epochs = tf.map_fn(epoch, tf.range(first, last + 1), fn_output_signature=spec)
    return tf.gather(epochs.values, positions - tf.reduce_sum(counts(first)))


def _integers(repeat: np.ndarray | None, count: int) -> np.ndarray:
    """Factors as int64 in units of 1 / `_ONE`."""
    return np.full(count, _ONE, np.int64) if repeat is None else np.rint(repeat * _ONE).astype(np.int64)
