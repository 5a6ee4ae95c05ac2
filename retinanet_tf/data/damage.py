"""Records that turn out damaged while a job runs: named, and on request replaced by others."""

from collections.abc import Callable

import tensorflow as tf

from retinanet_tf.data.reader import RecordReader


def guarded(batches: tf.data.Dataset, assemble: Callable, reader: RecordReader) -> tf.data.Dataset:
    """Maps (bytes (B,), records (B,), places (B,), tall (B,)) elements through `assemble(bytes, places, tall[0])`.

    If a batch can't be assembled, its records are gone through one by one, and the first that can't be used alone is
    an error that names it.
    """

    def one_by_one(records: tf.Tensor, places: tf.Tensor, tall: tf.Tensor) -> tf.data.Dataset:
        singles = tf.data.Dataset.from_tensor_slices((records, places)).flat_map(
            lambda record, place: reader.used_by(lambda data: assemble(data[None], place[None], tall[0]), record)
        )
        return singles.unbatch().batch(tf.shape(records, tf.int64)[0])

    def fast_then_careful(data, records, places, tall) -> tf.data.Dataset:
        fast = tf.data.Dataset.from_tensors((data, places, tall)).map(lambda d, p, t: assemble(d, p, t[0]))
        return fast.ignore_errors().concatenate(one_by_one(records, places, tall)).take(1)

    return batches.interleave(fast_then_careful, cycle_length=2, num_parallel_calls=2, deterministic=True)
