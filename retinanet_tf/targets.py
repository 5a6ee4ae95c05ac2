"""What each anchor should predict: assignment by IoU (§4) and the targets that follow from it."""

from typing import NamedTuple

import tensorflow as tf

from retinanet_tf import boxes as box_geometry
from retinanet_tf.config import AssignConfig

BACKGROUND = -1
IGNORED = -2


class Targets(NamedTuple):
    """Targets of a batch of B images and A anchors."""

    class_targets: tf.Tensor
    """`(B, A)` int32: the object's class 0…K−1, or BACKGROUND, or IGNORED."""
    box_targets: tf.Tensor
    """`(B, A, 4)` float32 dx, dy, dw, dh of the assigned object; zeros where there is none."""
    positive: tf.Tensor
    """`(B, A)` bool: the anchor is assigned to an object."""
    ignored: tf.Tensor
    """`(B, A)` bool: the anchor counts for no loss."""


def assign(anchors: tf.Tensor, boxes: tf.Tensor, labels: tf.Tensor, config: AssignConfig = AssignConfig()) -> Targets:
    """Assigns each anchor to at most one ground-truth box, to the background, or to nothing (§4).

    An anchor whose highest IoU with a box is at least `positive_iou` belongs to that box (to the first of equals);
    one below `negative_iou` is background; between the two it is ignored. With `promote`, an anchor that has the
    highest IoU of all anchors with some box (all of them, on a tie) is positive below `positive_iou` too, for its own
    best box: 'always', or only from `negative_iou` on, which is what is left of it in the authors' code, where the
    background is written last.

    Args:
      anchors: `(A, 4)` float32 xyxy.
      boxes: `(B, M, 4)` float32 xyxy ground truth, padded. M may be 0.
      labels: `(B, M)` int32 classes 0…K−1; negative where `boxes` is padding. A box without area matches nothing.
      config: thresholds and promotion.

    Returns:
      Targets.
    """
    # One box that is never valid, so that an image (or a batch) without objects needs no path of its own.
    boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]])
    labels = tf.pad(tf.cast(labels, tf.int32), [[0, 0], [0, 1]], constant_values=BACKGROUND)
    valid = (labels >= 0) & (box_geometry.area(boxes) > 0.0)

    iou = _pairwise_iou(anchors, boxes)
    iou = tf.where(valid[:, :, None], iou, -1.0)
    best_iou = tf.reduce_max(iou, axis=1)
    best_box = tf.argmax(iou, axis=1, output_type=tf.int32)

    positive = best_iou >= config.positive_iou
    background = best_iou < config.negative_iou
    if config.promote != "never":
        highest = tf.reduce_max(iou, axis=2, keepdims=True)
        promoted = tf.reduce_any((iou == highest) & (highest > 0.0), axis=1)
        if config.promote == "above_negative":
            promoted &= ~background
        positive |= promoted
        background &= ~promoted

    matched_labels = tf.gather(labels, best_box, batch_dims=1)
    matched_boxes = tf.gather(boxes, best_box, batch_dims=1)
    # An anchor without object takes itself for its box: its deltas are zeros, never the logarithm of nothing.
    matched_boxes = tf.where(positive[..., None], matched_boxes, anchors[None])
    return Targets(
        class_targets=tf.where(positive, matched_labels, tf.where(background, BACKGROUND, IGNORED)),
        box_targets=box_geometry.encode(matched_boxes, anchors[None]),
        positive=positive,
        ignored=~(positive | background),
    )


def _pairwise_iou(anchors: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """IoU `(B, M, A)`. Written by coordinate: the (B, M, A, 2) intermediates of `boxes.iou` would cost 3× the time."""
    ax1, ay1, ax2, ay2 = tf.unstack(anchors[None, None], axis=-1)
    bx1, by1, bx2, by2 = tf.unstack(boxes[:, :, None], axis=-1)
    width = tf.maximum(tf.minimum(ax2, bx2) - tf.maximum(ax1, bx1), 0.0)
    height = tf.maximum(tf.minimum(ay2, by2) - tf.maximum(ay1, by1), 0.0)
    intersection = width * height
    areas = box_geometry.area(anchors)[None, None] + box_geometry.area(boxes)[:, :, None]
    return tf.math.divide_no_nan(intersection, areas - intersection)
