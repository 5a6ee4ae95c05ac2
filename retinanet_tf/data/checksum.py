"""A checksum that numpy and a TensorFlow graph compute alike, so that records read out of order are still checked.

TFRecord's own CRC is only checked by sequential readers. This one is a sum of the bytes as 64-bit words, each times
its odd place number, modulo 2^64: any change within one word, any exchange of two words and any cut alters it.
"""

import numpy as np
import tensorflow as tf


def checksum(data: bytes) -> int:
    """The checksum of `data` as a signed 64-bit integer."""
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), "<i8")
    with np.errstate(over="ignore"):
        return int(np.sum(words * np.arange(1, 2 * len(words), 2, dtype=np.int64), dtype=np.int64))


def checksum_op(data: tf.Tensor) -> tf.Tensor:
    """The same of a scalar string tensor, as an int64 scalar."""
    padded = (tf.strings.length(data) + 7) // 8 * 8
    words = tf.io.decode_raw(data, tf.int64, fixed_length=tf.maximum(padded, 8))
    return tf.reduce_sum(words * (2 * tf.range(tf.size(words), dtype=tf.int64) + 1))
