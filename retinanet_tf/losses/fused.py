"""Loss kernels that XLA fuses, and the Keras loss that computes in them."""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import keras
import tensorflow as tf


@lru_cache(maxsize=128)
def fused(kernel: Callable, *constants: Hashable) -> Callable:
    """`kernel(*constants, …)` as one `tf.function` of the other arguments, which XLA fuses where there is no GPU.

    A GPU's elementwise kernels run at memory speed by themselves, and XLA needs CUDA's libdevice there, which pip
    installations often lack.
    """
    compiled = not tf.config.get_visible_devices("GPU")
    return tf.function(partial(kernel, *constants), jit_compile=compiled or None)


class FusedLoss(keras.losses.Loss):
    """A loss that computes in `fused` kernels, which have its attributes as constants.

    An attribute that is changed counts from the next call on; in a model, after it is compiled again. Lists become
    tuples, which constants have to be.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(self, name):
            fused.cache_clear()
        super().__setattr__(name, tuple(value) if isinstance(value, list) else value)
