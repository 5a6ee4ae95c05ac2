"""Rounding up to a multiple: canvas sides, feature map sides, equal parts."""

import tensorflow as tf


def round_up(value: int | tf.Tensor, multiple: int) -> int | tf.Tensor:
    """The least multiple that isn't below `value`: an int for an int, a tensor for an integer tensor.

    >>> round_up(600, 32), round_up(608, 32)
    (608, 608)
    """
    return -(-value // multiple) * multiple
