"""Padded and grouped convolutions, normalisation, weight decay, precision: shared by backbone, pyramid and heads."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import tensorflow as tf


def regularizer(weight_decay: float) -> keras.regularizers.Regularizer | None:
    """Coupled weight decay of a kernel (§4.1): the gradient of this penalty is weight_decay·w. None for 0."""
    return keras.regularizers.L2(weight_decay / 2) if weight_decay else None


Affine = Callable[[], tuple[tf.Tensor, tf.Tensor]]
"""Returns a scale and a shift per channel, each `(C,)` float32."""


def conv(
    filters: int, kernel_size: int, strides: int = 1, *, name: str, affine: Affine | None = None, **kwargs
) -> keras.layers.Layer:
    """A convolution padded by (kernel_size − 1) / 2 on every side, whatever its stride and the input's size.

    TensorFlow's own "same" pads stride 2 on the right and bottom alone when sizes are even, which no published weight
    was trained with. `affine`: see `PaddedConv2D`.
    """
    if strides == 1 and affine is None and kwargs.get("groups", 1) == 1:
        return keras.layers.Conv2D(filters, kernel_size, padding="same", name=name, **kwargs)
    return PaddedConv2D(filters, kernel_size, affine=affine, strides=strides, name=name, **kwargs)


@keras.saving.register_keras_serializable(package="retinanet_tf")
class PaddedConv2D(keras.layers.Conv2D):
    """Conv2D `(B, H, W, C)` → `(B, ⌈H/s⌉, ⌈W/s⌉, filters)` with symmetric explicit zero padding.

    Args:
        affine: a scale and a shift of the outputs, in place of a bias. The scale is folded into the kernel: the
            activations, which are far larger, are not passed over again.
    """

    def __init__(self, filters: int, kernel_size: int, affine: Affine | None = None, **kwargs):
        kwargs["padding"] = "valid"
        super().__init__(filters, kernel_size, **kwargs)
        self.affine = affine

    def call(self, inputs):
        """Pads, then convolves. Keras 2's own `call` would hold the output to the padded input's computed shape."""
        kernel = tf.convert_to_tensor(self.kernel)
        shift = tf.convert_to_tensor(self.bias) if self.use_bias else None
        if self.affine:
            scale, shift = (tf.cast(part, kernel.dtype) for part in self.affine())
            kernel *= scale
        padding, strides, margin = "SAME", self.strides[0], self.kernel_size[0] // 2
        if strides > 1 and margin:
            inputs, padding = tf.pad(inputs, [[0, 0], [margin, margin], [margin, margin], [0, 0]]), "VALID"
        convolve = tf.nn.conv2d if self.groups == 1 else grouped_conv2d
        outputs = convolve(inputs, kernel, strides, padding)
        return outputs if shift is None else tf.nn.bias_add(outputs, shift)

    def compute_output_shape(self, input_shape):
        height, width = (None if side is None else -(-side // self.strides[0]) for side in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)


@keras.saving.register_keras_serializable(package="retinanet_tf")
class StopGradient(keras.layers.Layer):
    """The identity with a gradient of zero: the layers before it are not trained."""

    def call(self, features):
        return tf.stop_gradient(features)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FrozenBatchNormalization(keras.layers.Layer):
    """Batch normalisation whose statistics and affine are fixed: one multiply and one add per channel (authors' code).

    Where it follows a convolution, `fold` gives it to that convolution and leaves the identity here.

    The weights (gamma, beta, moving_mean, moving_variance, each `(C,)`) are those of Keras' BatchNormalization in its
    order, none of them trainable. They are meant to be imported; `initial_gamma` only keeps a network without
    imported weights from growing its activations from block to block.
    """

    def __init__(self, epsilon: float = 1e-5, initial_gamma: float = 1.0, **kwargs):
        super().__init__(**{**kwargs, "trainable": False})
        self.epsilon, self.initial_gamma, self.folded = epsilon, initial_gamma, False

    def fold(self, channels: int) -> Affine:
        """Makes the weights, and `call` the identity; returns what the convolution before has to apply."""
        with tf.name_scope(self.name):
            self.build((None, None, None, channels))
        self.folded = True
        return self.affine

    def build(self, input_shape):
        """Creates the four vectors."""
        initial = {"gamma": self.initial_gamma, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}
        for name, value in initial.items():
            initializer = keras.initializers.Constant(value)
            weight = self.add_weight(name=name, shape=(input_shape[-1],), initializer=initializer, trainable=False)
            setattr(self, name, weight)
        super().build(input_shape)

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Scale and shift `(C,)`, computed in float32."""
        mean, variance, gamma, beta = (
            tf.cast(tf.convert_to_tensor(weight), tf.float32)
            for weight in (self.moving_mean, self.moving_variance, self.gamma, self.beta)
        )
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        return scale, beta - mean * scale

    def call(self, features):
        """`(B, H, W, C)` → the same shape and dtype."""
        if self.folded:
            return features
        scale, shift = (tf.cast(part, features.dtype) for part in self.affine())
        return features * scale + shift

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "epsilon": self.epsilon, "initial_gamma": self.initial_gamma}


def normalization(
    kind: str, channels: int, *, name: str, epsilon: float = 1e-5, frozen_gamma: float = 1.0
) -> keras.layers.Layer:
    """The layer for `kind`: 'frozen', 'batch' (momentum 0.9, for short schedules and small batches) or 'group'.

    'batch' takes its statistics from the images of all replicas of the strategy in whose scope it is made.
    'group' has 32 groups, or the greatest number below that divides both 32 and `channels`. `frozen_gamma` is the
    gain of a 'frozen' one that no weights are imported into.
    """
    if kind == "frozen":
        return FrozenBatchNormalization(epsilon, frozen_gamma, name=name)
    if kind == "batch":
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1  # on one, Keras 2 has a faster kernel
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=epsilon, synchronized=several, name=name)
    return keras.layers.GroupNormalization(groups=math.gcd(32, channels), epsilon=epsilon, name=name)


@keras.saving.register_keras_serializable(package="retinanet_tf")
class PixelNormalization(keras.layers.Layer):
    """The model's first layer: RGB 0–255 `(B, H, W, 3)` of any dtype → what the backbone was trained on.

    Args:
        mean: subtracted from R, G, B.
        std: divides R, G, B.
        channel_order: 'rgb', or 'bgr' to reverse the channels afterwards.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channel_order: str = "rgb", **kwargs):
        # Autocast would round the pixels to whole levels before their mean is subtracted.
        super().__init__(**{"autocast": False, **kwargs, "trainable": False})
        self.mean, self.std, self.channel_order = tuple(mean), tuple(std), channel_order

    def call(self, images):
        """Normalises in float32, then casts to the compute dtype."""
        pixels = (tf.cast(images, tf.float32) - self.mean) / self.std
        if self.channel_order == "bgr":
            pixels = pixels[..., ::-1]
        return tf.cast(pixels, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "mean": self.mean, "std": self.std, "channel_order": self.channel_order}


@contextmanager
def precision_policy(name: str) -> Iterator[None]:
    """Layers created inside the block compute in `name`; half precision is mixed: their variables stay float32."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(f"mixed_{name}" if name in ("float16", "bfloat16") else name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)


def grouped_conv2d(features: tf.Tensor, kernel: tf.Tensor, strides: int, padding: str) -> tf.Tensor:
    """`tf.nn.conv2d` of features `(B, H, W, C)` and a kernel `(k, k, C / groups, filters)`, with a gradient anywhere.

    padding: "SAME" or "VALID". Where TensorFlow lacks the gradient it is put together group by group.
    """
    convolve = tf.nn.conv2d if _has_gradient() else _convolve_with_gradient
    outputs = convolve(features, kernel, strides, padding)
    # A no-op that stops Grappler from fusing Conv2D + BiasAdd + ReLU, which ignores groups on CPUs without oneDNN
    # (TensorFlow leaves it off on servers without AVX-512 VNNI): the graph would refuse every request. There the
    # convolution has no gradient either, hence `_convolve_with_gradient`.
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
