"""XLA fusion of the loss kernels on CPUs."""

from collections.abc import Callable

import tensorflow as tf


def fused(kernel: Callable) -> Callable:
    """The kernel as one `tf.function`, which XLA fuses where there is no GPU.

    A GPU's elementwise kernels run at memory speed by themselves, and XLA needs CUDA's libdevice there, which pip
    installations often lack.
    """
    compiled = not tf.config.get_visible_devices("GPU")
    return tf.function(kernel, jit_compile=compiled or None)
