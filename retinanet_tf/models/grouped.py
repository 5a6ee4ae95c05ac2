"""Grouped convolutions on the CPUs where TensorFlow has only half of them.

Without oneDNN, which TensorFlow leaves off on CPUs without AVX-512 VNNI, they have no gradient, and a graph that adds a
bias and a ReLU after one doesn't run: its optimizer makes the three one operation that knows no groups.
"""

import functools

import tensorflow as tf


def grouped_conv2d(features: tf.Tensor, kernel: tf.Tensor, strides: int, padding: str) -> tf.Tensor:
    """`tf.nn.conv2d` of features `(B, H, W, C)` and a kernel `(k, k, C / groups, filters)`, with a gradient anywhere.

    padding: "SAME" or "VALID". Where TensorFlow lacks the gradient it is put together group by group.
    """
    convolve = tf.nn.conv2d if _has_gradient() else _convolve_with_gradient
    outputs = convolve(features, kernel, strides, padding)
    # Nothing is checked that wasn't known: an operation in between keeps the graph's optimizer from joining the others.
    return tf.ensure_shape(outputs, (None, None, None, None))


def _convolve_with_gradient(features: tf.Tensor, kernel: tf.Tensor, strides: int, padding: str) -> tf.Tensor:
    groups = features.shape[-1] // kernel.shape[2]

    @tf.custom_gradient
    def convolve(features, kernel):
        def gradient(upstream):
            parts = (tf.split(features, groups, 3), tf.split(kernel, groups, 3), tf.split(upstream, groups, 3))
            of_features, of_kernel = [], []
            for inputs, weights, gradients in zip(*parts, strict=True):
                how = {"out_backprop": gradients, "strides": [1, strides, strides, 1], "padding": padding}
                of_features.append(tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(inputs), filter=weights, **how))
                of_kernel.append(tf.raw_ops.Conv2DBackpropFilter(input=inputs, filter_sizes=tf.shape(weights), **how))
            return tf.concat(of_features, 3), tf.concat(of_kernel, 3)

        return tf.nn.conv2d(features, kernel, strides, padding), gradient

    return convolve(features, kernel)


@functools.cache
def _has_gradient() -> bool:
    """Whether the device that this process computes on by default has it: tried once, on a few pixels."""
    with tf.init_scope():
        image, kernel = tf.ones((1, 3, 3, 4)), tf.ones((3, 3, 2, 4))
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=image.shape, filter=kernel, out_backprop=image, strides=[1, 1, 1, 1], padding="SAME"
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True
