"""Anchors: the boxes that predictions are relative to (§4)."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig
from retinanet_tf.errors import InputError


class AnchorStyle(NamedTuple):
    """Conventions of a program's anchors."""

    offset: float = 0.5
    """The anchors' centre within their cell, in strides."""
    rounding: str = "none"
    """'none', 'base' (sides rounded at stride size, before scaling) or 'corners' (integer sizes, rounded corners)."""
    ratio_major: bool = False
    """Order at a position: ratio·scales + scale instead of scale·ratios + ratio."""
    whole_strides: bool = False
    """Strides are image size // grid size instead of 2^level."""


STYLES = {
    "paper": AnchorStyle(),
    "detectron": AnchorStyle(rounding="base"),
    "detectron2": AnchorStyle(offset=0.0),
    "torchvision": AnchorStyle(offset=0.0, rounding="corners", ratio_major=True, whole_strides=True),
}
"""By `anchor_style`."""


def cell_anchors(config: AnchorConfig, level: int) -> np.ndarray:
    """The anchors of one cell of one pyramid level, centred on the origin.

    Without rounding, size s and ratio r give width s/√r and height s·√r: the area is s² for every ratio (§4).

    Returns:
        `(A, 4)` float64 xyxy pixels, in the style's order.
    """
    style, stride = STYLES[config.anchor_style], 2.0**level
    sizes = config.anchor_multiplier * stride * np.asarray(config.anchor_scales, np.float64)[:, None]
    roots = np.sqrt(np.asarray(config.anchor_ratios, np.float64))
    if style.rounding == "base":
        base_widths = np.round(stride / roots)
        widths, heights = sizes / stride * base_widths, sizes / stride * np.round(base_widths * roots**2)
    else:
        if style.rounding == "corners":
            sizes = np.floor(sizes)
        widths, heights = sizes / roots, sizes * roots
    if style.ratio_major:
        widths, heights = widths.T, heights.T
    half = np.stack([widths.reshape(-1), heights.reshape(-1)], axis=-1) / 2
    if style.rounding == "corners":
        half = np.round(half)
    return np.concatenate([-half, half], axis=-1)


def grid_sizes(height: tf.Tensor, width: tf.Tensor, config: AnchorConfig) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Rows and columns per level: ⌈size / 2^level⌉, as symmetrically padded stride-2 convolutions give."""
    return [(-(-height // 2**level), -(-width // 2**level)) for level in config.levels]


def anchors_by_level(height: tf.Tensor, width: tf.Tensor, config: AnchorConfig) -> list[tf.Tensor]:
    """All anchors of an image of the given size (ints or int32 scalars), not clipped to it.

    Returns:
        A list, finest level first, of `(rows·columns·A, 4)` float32 xyxy pixels; row, then column, then anchor.
    """
    result, style = [], STYLES[config.anchor_style]
    for level, (rows, columns) in zip(config.levels, grid_sizes(height, width, config), strict=True):
        stride_y = stride_x = 2.0**level
        if style.whole_strides:
            stride_y, stride_x = tf.cast(height // rows, tf.float32), tf.cast(width // columns, tf.float32)
        y = (tf.cast(_range(rows), tf.float32) + style.offset) * stride_y
        x = (tf.cast(_range(columns), tf.float32) + style.offset) * stride_x
        xs, ys = tf.meshgrid(x, y)
        centres = tf.stack([xs, ys, xs, ys], axis=-1)[:, :, None, :]
        result.append(tf.reshape(centres + tf.constant(cell_anchors(config, level), tf.float32), [-1, 4]))
    return result


def _range(count: int | tf.Tensor) -> tf.Tensor:
    """0…count − 1, which no graph optimizer takes for a constant.

    Else the anchors of images of a known size, and all that follows from them, are 20 MB of constants in a step.
    """
    indices = tf.range(count)
    feedable = tf.compat.v1.placeholder_with_default(indices, [None])
    feedable.set_shape(indices.shape)
    return feedable


@keras.saving.register_keras_serializable(package="retinanet_tf")
class Anchors(keras.layers.Layer):
    """The anchor layer: images `(B, H, W, C)` in, their anchors `(A, 4)` float32 xyxy pixels out.

    Only the images' size is read. Order: level from P3, row, column, anchor of the cell.

    >>> anchors = Anchors()(tf.zeros((1, 64, 64, 3)))
    >>> anchors.shape[0] == 9 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
    True
    >>> print(anchors[1].numpy())  # the square of 32 pixels around the first cell of P3
    [-12. -12.  20.  20.]
    """

    def __init__(self, config: AnchorConfig = AnchorConfig(), **kwargs):
        super().__init__(**{**kwargs, "trainable": False})
        self.config = config if isinstance(config, AnchorConfig) else AnchorConfig(**config)

    def by_level(self, images: tf.Tensor) -> list[tf.Tensor]:
        """The same anchors as one `(A_l, 4)` tensor per level."""
        if images.shape.rank not in (4, None):
            raise InputError(f"images has shape {images.shape}; anchors are those of a batch (B, H, W, C).")
        height, width = images.shape[1], images.shape[2]
        if height is None or width is None:
            shape = tf.shape(images)
            height, width = shape[1], shape[2]
        return anchors_by_level(height, width, self.config)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return tf.concat(self.by_level(images), axis=0)

    def compute_output_shape(self, input_shape) -> tuple:
        height, width = input_shape[1], input_shape[2]
        if height is None or width is None:
            return (None, 4)
        cells = sum(rows * columns for rows, columns in grid_sizes(height, width, self.config))
        return (cells * self.config.anchors_per_cell, 4)

    def get_config(self) -> dict:
        return {**super().get_config(), "config": dict(vars(self.config))}
