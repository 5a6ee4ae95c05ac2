"""What differs between the two Keras lines, each difference named."""

from collections.abc import Iterable

import tensorflow as tf


def tensorflow_variables(variables: Iterable) -> list[tf.Variable]:
    """The `tf.Variable`s behind Keras variables: Keras 2's are ones themselves, Keras 3's hold one in `value`."""
    return [variable if isinstance(variable, tf.Variable) else variable.value for variable in variables]
