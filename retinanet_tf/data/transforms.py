"""Pure functions on an image and its boxes that give one result eagerly and inside `tf.data`.

Images are (H, W, 3), uint8 or float32 RGB in 0..255; boxes (N, 4) float32 xyxy in pixels of that image. Random
transforms take a stateless `seed`, an int tensor (2,), and are functions of it.
"""

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

from retinanet_tf.detection import boxes as geometry

Size: TypeAlias = int | tf.Tensor
"""A side in pixels."""


def resized_shape(
    height: Size, width: Size, short_side: int, long_side: int, rule: str = "shorter_side"
) -> tuple[Size, Size]:
    """The paper's rule (§4.1): shorter side to `short_side`, but the longer one at most `long_side`.

    The rule 'stretch' gives (`short_side`, `short_side`) whatever the proportions.

    Returns (height, width): Python ints for ints, int32 tensors for tensors; rounded half to even, at least 1.
    """
    if rule == "stretch":
        return short_side, short_side
    if isinstance(height, int) and isinstance(width, int):
        scale = min(short_side / min(height, width), long_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))
    size = tf.cast(tf.stack([height, width]), tf.float64)  # as Python computes, so that both give the same size
    scale = tf.minimum(short_side / tf.reduce_min(size), long_side / tf.reduce_max(size))
    size = tf.maximum(tf.cast(tf.round(size * scale), tf.int32), 1)
    return size[0], size[1]


def resize(
    image: tf.Tensor, short_side: int, long_side: int, rule: str = "shorter_side"
) -> tuple[tf.Tensor, tf.Tensor]:
    """Resizes by a rule of `resized_shape`, bilinear with half-pixel centres, no antialiasing.

    Returns the image as float32 and the scale really applied, (2,) float32 = (y, x): new size over old size, each
    side rounded to whole pixels. Boxes follow with `scale_boxes`.
    """
    old = tf.shape(image)[:2]
    new = tf.stack(resized_shape(old[0], old[1], short_side, long_side, rule))
    return resize_to(image, new), tf.cast(new / old, tf.float32)


def resize_to(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resizes to `size` (height, width) exactly; float32, bilinear with half-pixel centres, no antialiasing."""
    # TensorFlow resizes float32 with vector instructions but uint8 pixel by pixel, so the cast comes first.
    return tf.image.resize(tf.cast(image, tf.float32), size, method="bilinear", antialias=False)


def scale_boxes(boxes: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Boxes (N, 4) of an image resized by `scale` (2,) = (y, x)."""
    return boxes * tf.stack([scale[1], scale[0], scale[1], scale[0]])


def flip(image: tf.Tensor, boxes: tf.Tensor, axis: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors along an axis of the image: left and right (1) or top and bottom (0); twice gives the original."""
    return tf.reverse(image, [axis]), geometry.mirror(boxes, tf.shape(image)[axis], 1 - axis)


def random_flip(
    image: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor, horizontal: float = 0.5, vertical: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Flips with the two probabilities, independently."""
    chance = tf.random.stateless_uniform((2,), seed)
    if horizontal:
        image, boxes = tf.cond(chance[0] < horizontal, lambda: flip(image, boxes, 1), lambda: (image, boxes))
    if vertical:
        image, boxes = tf.cond(chance[1] < vertical, lambda: flip(image, boxes, 0), lambda: (image, boxes))
    return image, boxes


def shift_into(
    image: tf.Tensor, boxes: tf.Tensor, offset: tf.Tensor, height: Size, width: Size, pixel_mean: Sequence[float]
) -> tuple[tf.Tensor, tf.Tensor]:
    """The (height, width) window of an unbounded plane that is `pixel_mean` except where the image lies.

    offset: (2,) int32 (y, x), where in the window the image's top left corner lands; negative crops it. Boxes move
    along, unclipped.
    """
    size = tf.shape(image)[:2]
    window = tf.stack([height, width])
    start = tf.maximum(-offset, 0)
    end = tf.clip_by_value(window - offset, 0, size)
    visible = image[start[0] : end[0], start[1] : end[1]]
    before = tf.minimum(tf.maximum(offset, 0), window)
    shown = tf.shape(visible)[:2]
    after = window - before - shown
    mean = tf.cast(tf.constant(pixel_mean, tf.float32), image.dtype)
    rows = tf.concat([_plain(shown[0], before[1], mean), visible, _plain(shown[0], after[1], mean)], 1)
    canvas = tf.concat([_plain(before[0], width, mean), rows, _plain(after[0], width, mean)], 0)
    y, x = tf.unstack(tf.cast(offset, boxes.dtype))
    return canvas, boxes + tf.stack([x, y, x, y])


def cut(boxes: tf.Tensor, height: Size, width: Size) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes (N, 4) clipped to the image, and the share (N,) of each one's area that is left; 0 for an empty box."""
    clipped = geometry.clip(boxes, height, width)
    return clipped, tf.math.divide_no_nan(geometry.area(clipped), geometry.area(boxes))


def visible(boxes: tf.Tensor, share: tf.Tensor, least: float) -> tf.Tensor:
    """Which objects (N,) bool count after augmentation: the rule for all of it.

    boxes: (N, 4), clipped; each side must have a pixel. share: (N,), what can be seen of an object's area; `least` at
    least, less a thousandth for rounding.
    """
    return tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= 1.0, axis=-1) & (share >= least - 1e-3)


def random_jitter(
    image: tf.Tensor,
    boxes: tf.Tensor,
    seed: tf.Tensor,
    short_side: int,
    long_side: int,
    scale: tuple[float, float],
    translate: float,
    pixel_mean: Sequence[float],
    rule: str = "shorter_side",
    frame: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Resizes by a rule of `resized_shape` times a random factor, shifts at random, and crops to a frame.

    The frame (height, width) is by default `short_side` by `long_side` along the image's orientation. The factor is
    uniform in log between scale[0] and scale[1]. An image larger than the frame is cropped at a random place; a smaller
    one is moved by at most `translate` times the frame's side within the free room.

    Returns image float32, boxes clipped to the frame, and the `share` (N,) of each box's area that is left.
    """
    size = tf.shape(image)[:2]
    uniform = tf.random.stateless_uniform((3,), seed)
    low, high = tf.math.log(float(scale[0])), tf.math.log(float(scale[1]))
    factor = tf.exp(low + (high - low) * uniform[0])
    base = tf.stack(resized_shape(size[0], size[1], short_side, long_side, rule))
    new = tf.maximum(tf.cast(tf.round(tf.cast(base, tf.float32) * factor), tf.int32), 1)
    image = resize_to(image, new)
    boxes = scale_boxes(boxes, tf.cast(new / size, tf.float32))
    if frame is None:
        landscape = size[1] >= size[0]
        frame = tf.where(landscape, tf.constant([short_side, long_side]), tf.constant([long_side, short_side]))
    room = tf.cast(frame - new, tf.float32)
    # Larger than the frame: any crop. Smaller: moved right and down, within the room and at most `translate`.
    reach = tf.where(room < 0.0, room, tf.minimum(room, translate * tf.cast(frame, tf.float32)))
    offset = tf.cast(tf.round(reach * uniform[1:]), tf.int32)
    shown = tf.minimum(tf.maximum(offset, 0) + new + tf.minimum(offset, 0), frame)
    image, boxes = shift_into(image, boxes, offset, shown[0], shown[1], pixel_mean)
    return image, *cut(boxes, shown[0], shown[1])


def random_colour(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Brightness, contrast and saturation, each changed by at most `strength` (0.2: ±20 %); float32 in 0..255."""
    image = tf.cast(image, tf.float32)
    brightness, contrast, saturation = tf.unstack(
        tf.random.stateless_uniform((3,), seed, 1.0 - strength, 1.0 + strength)
    )
    image = image * brightness
    mean = tf.reduce_mean(image)
    image = mean + (image - mean) * contrast
    gray = tf.tensordot(image, tf.constant([0.299, 0.587, 0.114]), 1)[..., None]  # luma of ITU-R BT.601
    return tf.clip_by_value(gray + (image - gray) * saturation, 0.0, 255.0)


def pad_to(image: tf.Tensor, height: Size, width: Size, pixel_mean: Sequence[float]) -> tf.Tensor:
    """Puts the image at the top left of a (height, width) canvas of `pixel_mean`, zero after normalisation."""
    mean = tf.cast(tf.constant(pixel_mean, tf.float32), image.dtype)
    size = tf.shape(image)
    rows = tf.concat([image, _plain(size[0], width - size[1], mean)], 1)
    canvas = tf.concat([rows, _plain(height - size[0], width, mean)], 0)
    if isinstance(height, int) and isinstance(width, int):
        canvas = tf.ensure_shape(canvas, (height, width, 3))
    return canvas


def _plain(height, width, colour: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(colour, tf.stack([height, width, 3]))
