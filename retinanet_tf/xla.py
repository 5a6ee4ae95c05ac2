"""XLA: whether to compile, decided once for `fit`, the training job, `Detector` and export."""

import tensorflow as tf

from retinanet_tf.errors import InputError


def resolve_jit_compile(jit_compile: bool | str | None = "auto") -> bool:
    """Whether to compile with XLA: by default on accelerators and not on CPUs.

    Args:
        jit_compile: True or False, also as the texts 'true' and 'false' of the setting `xla`, decide; 'auto' or None
            compile where there is a GPU or TPU, unless `tf.config.experimental.enable_op_determinism` was called: some
            gradients, max pooling's for one, have no deterministic kernel under XLA.

    Raises:
        InputError: another value.
    """
    if jit_compile in (True, "true", False, "false"):
        return jit_compile in (True, "true")
    if jit_compile not in ("auto", None):
        raise InputError(f"jit_compile={jit_compile!r} must be True, False or 'auto'.")
    return has_accelerator() and not _is_deterministic()


def has_accelerator() -> bool:
    """Whether TensorFlow sees a GPU or TPU: one that `tf.config.set_visible_devices` hides doesn't count."""
    return any(device.device_type != "CPU" for device in tf.config.get_visible_devices())


def _is_deterministic() -> bool:
    """TensorFlow has no function that says so, but refuses random numbers without a seed then."""
    with tf.init_scope():
        try:  # as a new function: TensorFlow keeps the kernels of eager operations
            tf.function(lambda: tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32), autograph=False)()
        except tf.errors.InvalidArgumentError:
            return True
    return False
