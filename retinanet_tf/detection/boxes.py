"""Box geometry: area, IoU, GIoU, the R-CNN coder, clipping, mirroring.

Boxes are `(..., 4)` float tensors x1, y1, x2, y2 in pixels, x to the right, y down, continuous: width is x2 − x1.
"""

import math

import tensorflow as tf

MAX_LOG_SCALE = math.log(1000.0 / 16.0)
"""dw and dh are clamped at this when decoding, so that exp can't overflow (authors' code)."""


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas `(...)` of boxes `(..., 4)` in square pixels; an inverted box has area 0."""
    sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def _overlap(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Intersection and union areas of broadcast boxes, one coordinate at a time: half the passes over all pairs."""
    ax1, ay1, ax2, ay2 = tf.unstack(a, 4, axis=-1)
    bx1, by1, bx2, by2 = tf.unstack(b, 4, axis=-1)
    width = tf.maximum(tf.minimum(ax2, bx2) - tf.maximum(ax1, bx1), 0.0)
    intersection = width * tf.maximum(tf.minimum(ay2, by2) - tf.maximum(ay1, by1), 0.0)
    return intersection, area(a) + area(b) - intersection


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Intersection over union, element by element with broadcasting.

    >>> square = tf.constant([0.0, 0.0, 10.0, 10.0])
    >>> others = tf.constant([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    >>> print(iou(square, others).numpy().round(3))
    [1.    0.333 0.   ]

    Args:
        a: boxes `(..., 4)`.
        b: boxes `(..., 4)`, broadcastable with `a`; use `a[:, None]`, `b[None]` for all pairs.

    Returns:
        `(...)` in [0, 1]; 0 where the union is empty.
    """
    intersection, union = _overlap(a, b)
    return tf.math.divide_no_nan(intersection, union)


def giou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Generalised IoU (Rezatofighi et al. 2019, algorithm 1) of broadcast boxes `(..., 4)` → `(...)` in [−1, 1].

    Unlike IoU it depends on the distance of disjoint boxes:

    >>> square = tf.constant([0.0, 0.0, 10.0, 10.0])
    >>> others = tf.constant([[0.0, 0.0, 10.0, 10.0], [10.0, 0.0, 20.0, 10.0], [30.0, 0.0, 40.0, 10.0]])
    >>> print(giou(square, others).numpy())
    [ 1.   0.  -0.5]
    """
    intersection, union = _overlap(a, b)
    # No concatenation, nor in `decode`: XLA can't compile its gradient inside a loop, which accumulation is.
    ax1, ay1, ax2, ay2 = tf.unstack(a, 4, axis=-1)
    bx1, by1, bx2, by2 = tf.unstack(b, 4, axis=-1)
    width = tf.maximum(tf.maximum(ax2, bx2) - tf.minimum(ax1, bx1), 0.0)
    hull = width * tf.maximum(tf.maximum(ay2, by2) - tf.minimum(ay1, by1), 0.0)
    return tf.math.divide_no_nan(intersection, union) - tf.math.divide_no_nan(hull - union, hull)


def _centre_and_size(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """Boxes as deltas from anchors: the standard R-CNN parameterisation with unit weights (§4).

    dx = (x − x_a) / w_a, dy = (y − y_a) / h_a for the centres, dw = ln(w / w_a), dh = ln(h / h_a).

    >>> anchor = tf.constant([0.0, 0.0, 16.0, 16.0])
    >>> print(encode(tf.constant([4.0, 0.0, 36.0, 16.0]), anchor).numpy().round(3))
    [0.75  0.    0.693 0.   ]

    Args:
        boxes: `(..., 4)` with positive width and height.
        anchors: `(..., 4)`, broadcastable with `boxes`.

    Returns:
        deltas `(..., 4)`: dx, dy, dw, dh.
    """
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    return tf.concat([(centre - anchor_centre) / anchor_size, tf.math.log(size / anchor_size)], axis=-1)


def decode(deltas: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """The inverse of `encode`; dw and dh are clamped at ln(1000/16) (authors' code).

    >>> anchor = tf.constant([0.0, 0.0, 16.0, 16.0])
    >>> print(decode(tf.constant([0.5, 0.0, 0.0, 0.0]), anchor).numpy())
    [ 8.  0. 24. 16.]
    """
    centre, size = _centre_and_size(anchors)
    centre += deltas[..., :2] * size
    half = 0.5 * tf.exp(tf.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * size
    corners = tf.unstack(centre - half, 2, axis=-1) + tf.unstack(centre + half, 2, axis=-1)
    return tf.stack(corners, axis=-1)


def clip(boxes: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Boxes `(..., 4)` cut to the image [0, width] × [0, height]; `height` and `width` broadcast with `(...)`."""
    width, height = tf.cast(width, boxes.dtype), tf.cast(height, boxes.dtype)
    limit = tf.stack([width, height, width, height], axis=-1)
    return tf.clip_by_value(boxes, 0.0, limit)


def mirror(boxes: tf.Tensor, side: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """Boxes `(..., 4)` of the mirrored image: left and right (axis 0, `side` its width) or top and bottom (axis 1)."""
    x1, y1, x2, y2 = tf.unstack(boxes, 4, axis=-1)
    side = tf.cast(side, boxes.dtype)
    return tf.stack([x1, side - y2, x2, side - y1] if axis else [side - x2, y1, side - x1, y2], axis=-1)
