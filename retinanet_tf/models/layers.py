"""Layers that backbone, pyramid and subnets share: padded convolution, normalisation, pixels."""

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from retinanet_tf.models.grouped import grouped_conv2d


@keras.saving.register_keras_serializable(package="retinanet_tf")
class CoupledDecay(keras.regularizers.Regularizer):
    """weight_decay/2 · Σw², whose gradient is weight_decay·w (§4.1).

    `keras.regularizers.L2(weight_decay / 2)` in fewer passes over the weights, which are many.
    """

    def __init__(self, weight_decay: float):
        self.weight_decay = float(weight_decay)

    def __call__(self, weights):
        """A float32 scalar for weights of any shape."""
        return self.weight_decay * tf.nn.l2_loss(tf.convert_to_tensor(weights))

    def get_config(self) -> dict:
        """What rebuilds the regularizer."""
        return {"weight_decay": self.weight_decay}


def regularizer(weight_decay: float) -> CoupledDecay | None:
    """Coupled weight decay for a kernel, None for 0."""
    return CoupledDecay(weight_decay) if weight_decay else None


Affine = Callable[[], tuple[tf.Tensor, tf.Tensor]]
"""Gives a scale and a shift a channel, each `(C,)` float32."""


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

    affine: a scale and a shift of the outputs, in place of a bias. The scale is folded into the kernel, so that neither
    pass goes over the activations, which are far more than the weights.
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
        padding, strides = "SAME", self.strides[0]
        if strides > 1:
            inputs, padding = pad_symmetrically(inputs, self.kernel_size[0] // 2), "VALID"
        convolve = tf.nn.conv2d if self.groups == 1 else grouped_conv2d
        outputs = convolve(inputs, kernel, strides, padding)
        return outputs if shift is None else tf.nn.bias_add(outputs, shift)

    def compute_output_shape(self, input_shape):
        """⌈size / stride⌉ for each side."""
        height, width = (None if side is None else -(-side // self.strides[0]) for side in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)


def pad_symmetrically(features: tf.Tensor, margin: int) -> tf.Tensor:
    """`(B, H, W, C)` → `(B, H + 2·margin, W + 2·margin, C)` with zeros around."""
    if not margin:
        return features
    return tf.pad(features, [[0, 0], [margin, margin], [margin, margin], [0, 0]])


@keras.saving.register_keras_serializable(package="retinanet_tf")
class StemPool(keras.layers.Layer):
    """3×3 max pooling of stride 2 with symmetric padding; the zeros can't win, since inputs come from a ReLU."""

    def call(self, features):
        """`(B, H, W, C)` → `(B, ⌈H/2⌉, ⌈W/2⌉, C)`."""
        return tf.nn.max_pool2d(pad_symmetrically(features, 1), 3, 2, "VALID")

    def compute_output_shape(self, input_shape):
        """⌈size / 2⌉ for each side."""
        height, width = (None if side is None else -(-side // 2) for side in input_shape[1:3])
        return (input_shape[0], height, width, input_shape[3])


@keras.saving.register_keras_serializable(package="retinanet_tf")
class StopGradient(keras.layers.Layer):
    """The identity; nothing before it is reached by the backward pass."""

    def call(self, features):
        """`features`, cut off from the gradient."""
        return tf.stop_gradient(features)

    def compute_output_shape(self, input_shape):
        """The input's."""
        return input_shape


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FrozenBatchNormalization(keras.layers.Layer):
    """Batch normalisation whose statistics and affine are fixed: one multiply and one add a channel (authors' code).

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
        channels = (input_shape[-1],)
        gamma = keras.initializers.Constant(self.initial_gamma)
        self.gamma = self.add_weight(name="gamma", shape=channels, initializer=gamma, trainable=False)
        self.beta = self.add_weight(name="beta", shape=channels, initializer="zeros", trainable=False)
        self.moving_mean = self.add_weight(name="moving_mean", shape=channels, initializer="zeros", trainable=False)
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=channels, initializer="ones", trainable=False
        )
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
        """The input's."""
        return input_shape

    def get_config(self) -> dict:
        """What rebuilds the layer."""
        return {**super().get_config(), "epsilon": self.epsilon, "initial_gamma": self.initial_gamma}


def normalization(
    kind: str, channels: int, *, name: str, epsilon: float = 1e-5, frozen_gamma: float = 1.0
) -> keras.layers.Layer:
    """The layer for `kind`: 'frozen', 'batch' (momentum 0.9, for short schedules and small batches) or 'group'.

    'group' has 32 groups, or the greatest number below that divides both 32 and `channels`. `frozen_gamma` is the
    gain of a 'frozen' one that no weights are imported into.
    """
    if kind == "frozen":
        return FrozenBatchNormalization(epsilon, frozen_gamma, name=name)
    if kind == "batch":
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)
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
        super().__init__(**{**kwargs, "trainable": False})
        self.mean, self.std, self.channel_order = tuple(mean), tuple(std), channel_order

    def call(self, images):
        """Normalises in float32, then casts to the compute dtype."""
        pixels = (tf.cast(images, tf.float32) - self.mean) / self.std
        if self.channel_order == "bgr":
            pixels = pixels[..., ::-1]
        return tf.cast(pixels, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        """The input's."""
        return input_shape

    def get_config(self) -> dict:
        """What rebuilds the layer."""
        return {**super().get_config(), "mean": self.mean, "std": self.std, "channel_order": self.channel_order}
