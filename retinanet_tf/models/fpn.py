"""The feature pyramid P3–P7 on C3–C5 (§4; Lin et al., "Feature Pyramid Networks", §3)."""

from typing import Any

import keras
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig, ModelConfig
from retinanet_tf.models.layers import conv, regularizer


@keras.saving.register_keras_serializable(package="retinanet_tf")
class UpsampleAdd(keras.layers.Layer):
    """Adds the coarser map, enlarged ×2 by nearest neighbours, to the lateral one.

    Where the lateral map has an odd side, the enlarged one is cut to it at the right and bottom.
    """

    def call(self, inputs):
        """`[lateral (B, H, W, C), coarser (B, ⌈H/2⌉, ⌈W/2⌉, C)]` → `(B, H, W, C)`."""
        lateral, coarser = inputs
        enlarged = tf.repeat(tf.repeat(coarser, 2, axis=1), 2, axis=2)
        shape = tf.shape(lateral)
        return lateral + enlarged[:, : shape[1], : shape[2]]

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])


def feature_pyramid(stages: list, config: ModelConfig, anchors: AnchorConfig) -> list:
    """Builds the pyramid on symbolic stages.

    1×1 laterals on C3–C5, top-down nearest ×2 and addition, a 3×3 on each sum. P6 is a 3×3 stride-2 convolution on C5
    (or P5), P7 the same on ReLU(P6). All convolutions have a bias, uniform fan-in initialisation (the FPN authors'
    code) and no normalisation.

    Args:
        stages: [C3, C4, C5].
        config: `fpn_channels`, `p6_from` and `weight_decay` are read.
        anchors: `max_level` is read.

    Returns:
        One map `(B, ⌈H/2^l⌉, ⌈W/2^l⌉, fpn_channels)` per level, finest first.
    """

    def layer(kernel_size, strides, name):
        return conv(
            config.fpn_channels,
            kernel_size,
            strides,
            name=name,
            kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "uniform"),
            kernel_regularizer=regularizer(config.weight_decay),
        )

    merged: dict[int, Any] = {}
    for level in (5, 4, 3):
        lateral = layer(1, 1, f"fpn_lateral{level}")(stages[level - 3])
        merged[level] = lateral if level == 5 else UpsampleAdd(name=f"fpn_add{level}")([lateral, merged[level + 1]])
    pyramid = [layer(3, 1, f"fpn_output{level}")(merged[level]) for level in (3, 4, 5)]
    if anchors.max_level >= 6:
        source = stages[2] if config.p6_from == "c5" else pyramid[2]
        pyramid.append(layer(3, 2, "fpn_p6")(source))
    if anchors.max_level >= 7:
        pyramid.append(layer(3, 2, "fpn_p7")(keras.layers.ReLU(name="fpn_p6_relu")(pyramid[3])))
    return pyramid
