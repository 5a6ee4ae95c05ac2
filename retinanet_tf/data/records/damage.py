"""Damaged records met while a job runs: reported, or skipped and replaced by others."""

import os
import threading
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from retinanet_tf.data.records.reader import RecordReader
from retinanet_tf.data.shuffle import Pools

_TRIES = 32  # other records tried in place of a damaged one before giving up
_AT_ONCE = 3  # batches: while one waits for its last image and one is put together, the third keeps the cores busy


class DamageLog:
    """The damaged records met so far: `records`, a list of (file, number in the file); each is logged once.

    Args:
        path: a text file that gets a line "FILE record NUMBER" for each as it is met, None for none.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.records: list[tuple[str, int]] = []
        self._path = path
        self._lock = threading.Lock()

    def add(self, path: str | bytes, number: int) -> bool:
        """Notes a record, and is False, for a filter; called from the pipeline's threads."""
        entry = (path.decode() if isinstance(path, bytes) else path, int(number))
        with self._lock:
            if entry in self.records:
                return False
            self.records.append(entry)
            count = len(self.records)
            if self._path is not None:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(f"{entry[0]} record {entry[1]}\n")
        logging.warning("record %d of %s is damaged and skipped (%d so far).", entry[1], entry[0], count)
        return False


def guarded(
    batches: tf.data.Dataset,
    assemble: Callable,
    check: Callable[[tf.Tensor], object],
    reader: RecordReader,
    pools: Pools,
    log: DamageLog | None = None,
    remote: bool = False,
) -> tf.data.Dataset:
    """Maps (records `(B, P)`, samples `(B,)`, tall `(B,)`) elements through `assemble(read, samples, tall[0])`.

    `read` is a function from a row 0 ≤ i < B of the batch and a place 0 ≤ p < P in it to a record's bytes, which it
    reads when it is called. If a batch can't be assembled, `check` computes what fails on the bytes of a damaged record
    for its records one by one. Without a `log` the first damaged one is an error that names it; with one it is noted
    there (on the standard error where `remote`, since the pipeline then runs in other processes) and replaced by
    another record of the same orientation, a function of the sample's number.
    """

    @tf.function(autograph=False)
    def checked(record: tf.Tensor) -> tf.Tensor:
        """The number of a record that isn't damaged; else an error."""
        with tf.control_dependencies(tf.nest.flatten(check(reader.bytes_of(record)))):
            return tf.identity(record)

    def noted(record: tf.Tensor) -> tf.Tensor:
        """Notes a record; False."""
        path, number = reader.position(record)
        if remote:
            with tf.control_dependencies([tf.print("record", number, "of", path, "is damaged and skipped.")]):
                return tf.constant(False)
        return tf.numpy_function(log.add if log else None, [path, number], tf.bool)

    def usable(record: tf.Tensor, key: tf.Tensor, tall: tf.Tensor) -> tf.data.Dataset:
        """The number of the record, or of another one where that is damaged."""

        def attempt(record: tf.Tensor, stop: bool) -> tf.data.Dataset:
            good = tf.data.Dataset.from_tensors(record).map(checked)
            bad = tf.data.Dataset.from_tensors(record)
            bad = bad if stop else bad.filter(noted)  # which leaves none, so that nothing is refused
            return good.ignore_errors().concatenate(bad.map(lambda number: reader.refused(number, good.element_spec)))

        if log is None:
            return attempt(record, stop=True).take(1)
        others = tf.data.Dataset.range(_TRIES).map(lambda attempt: pools.any_record(tall, tf.stack([key, attempt])))
        tried = tf.data.Dataset.from_tensors(record).concatenate(others)
        tried = tried.flat_map(lambda record: attempt(record, stop=False))
        return tried.concatenate(attempt(record, stop=True)).take(1)

    def one_by_one(records: tf.Tensor, samples: tf.Tensor, tall: tf.Tensor) -> tf.data.Dataset:
        places = tf.shape(records, tf.int64)[1]
        keys = samples[:, None] * places + tf.range(places)
        singles = tf.data.Dataset.from_tensor_slices((tf.reshape(records, [-1]), tf.reshape(keys, [-1])))
        whole = singles.flat_map(lambda record, key: usable(record, key, tall[0])).batch(tf.size(records, tf.int64))
        return whole.map(lambda numbers: fast(tf.reshape(numbers, tf.shape(records)), samples, tall))

    def fast(records: tf.Tensor, samples: tf.Tensor, tall: tf.Tensor):
        return assemble(lambda i, place: reader.bytes_of(records[i, place]), samples, tall[0])

    @tf.autograph.experimental.do_not_convert  # there is no Python branch on a tensor here, and it is slow
    def fast_then_careful(*batch: tf.Tensor) -> tf.data.Dataset:
        whole = tf.data.Dataset.from_tensors(batch).map(fast).ignore_errors()
        return whole.concatenate(one_by_one(*batch)).take(1)

    return batches.interleave(fast_then_careful, cycle_length=_AT_ONCE, num_parallel_calls=_AT_ONCE, deterministic=True)
