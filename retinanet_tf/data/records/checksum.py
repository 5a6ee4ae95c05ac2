"""A checksum that numpy and a TensorFlow graph compute alike, so that records read out of order are still checked.

TFRecord's own CRC is only checked by sequential readers. This one is the sum of the bytes as little-endian 64-bit
words, modulo 2^64: a changed word always alters it, and larger damage (blocks of zeros, foreign data, a cut) passes
only if all its changes cancel, which for random ones is one chance in 2^64.
"""

import numpy as np
import tensorflow as tf

VERSION = 2  # raised when the same bytes would give another checksum; an index of another version is not used


def checksum(data: bytes) -> int:
    """The checksum of `data` as a signed 64-bit integer."""
    return int(np.frombuffer(data + b"\0" * (-len(data) % 8), "<i8").sum(dtype=np.int64))


def checksum_op(data: tf.Tensor) -> tf.Tensor:
    """The same of a scalar string tensor, as an int64 scalar."""
    padded = (tf.strings.length(data) + 7) // 8 * 8
    return tf.reduce_sum(tf.io.decode_raw(data, tf.int64, fixed_length=tf.maximum(padded, 8)))
