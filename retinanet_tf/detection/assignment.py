"""Assignment of anchors to ground truth by IoU (§4), and the class and box targets."""

from typing import NamedTuple

import tensorflow as tf

from retinanet_tf.config.config import AssignConfig
from retinanet_tf.detection import boxes as box_geometry

BACKGROUND = -1
IGNORED = -2


class Targets(NamedTuple):
    """Targets of a batch of B images and A anchors."""

    class_targets: tf.Tensor
    """`(B, A)` int32: the object's class 0…K−1, or BACKGROUND, or IGNORED."""
    box_targets: tf.Tensor
    """`(B, A, 4)` float32 dx, dy, dw, dh of the assigned object; zeros where `positive` is False."""
    positive: tf.Tensor
    """`(B, A)` bool: the anchor is assigned to an object."""
    ignored: tf.Tensor
    """`(B, A)` bool: the anchor is left out of the losses."""


def assign(anchors: tf.Tensor, boxes: tf.Tensor, labels: tf.Tensor, config: AssignConfig = AssignConfig()) -> Targets:
    """Assigns each anchor to at most one ground-truth box, to the background, or to nothing (§4).

    An anchor whose highest IoU with a box is at least `positive_iou` belongs to that box (to the first of equals);
    one below `negative_iou` is background; between the two it is ignored. With `promote`, an anchor that has the
    highest IoU of all anchors with some box (all of them, on a tie) is positive below `positive_iou` too, for its own
    best box: 'always', or 'above_negative' only at IoU ≥ `negative_iou`, as in the authors' code, which assigns the
    background last.

    >>> anchors = tf.constant([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 72.0], [64.0, 64.0, 96.0, 96.0]])
    >>> boxes = tf.constant([[[0.0, 0.0, 32.0, 32.0]]])
    >>> targets = assign(anchors, boxes, labels=tf.constant([[7]]))
    >>> print(targets.class_targets.numpy())  # IoU 1: class 7; IoU 0.44: ignored; IoU 0: background
    [[ 7 -2 -1]]
    >>> print(targets.box_targets[0, 0].numpy())
    [0. 0. 0. 0.]

    Args:
        anchors: `(A, 4)` float32 xyxy.
        boxes: `(B, M, 4)` float32 xyxy ground truth, padded. M may be 0.
        labels: `(B, M)` int32 classes 0…K−1; negative where `boxes` is padding. A box without area matches nothing.
        config: thresholds and promotion.

    Returns:
        Targets.
    """
    # One invalid box more: images and batches without objects need no separate path.
    boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]])
    labels = tf.pad(tf.cast(labels, tf.int32), [[0, 0], [0, 1]], constant_values=BACKGROUND)
    valid = (labels >= 0) & (box_geometry.area(boxes) > 0.0)
    best_iou, best_box, champion = _best_boxes(anchors, boxes, valid)

    positive = best_iou >= config.positive_iou
    background = best_iou < config.negative_iou
    if config.promote == "above_negative":
        champion &= ~background
    if config.promote != "never":
        positive |= champion
        background &= ~champion

    matched_labels = tf.gather(labels, best_box, batch_dims=1)
    matched_boxes = tf.gather(boxes, best_box, batch_dims=1)
    # Unmatched anchors are encoded against themselves: targets of 0 instead of log(0).
    matched_boxes = tf.where(positive[..., None], matched_boxes, anchors[None])
    return Targets(
        class_targets=tf.where(positive, matched_labels, tf.where(background, BACKGROUND, IGNORED)),
        box_targets=box_geometry.encode(matched_boxes, anchors[None]),
        positive=positive,
        ignored=~(positive | background),
    )


def _best_boxes(anchors: tf.Tensor, boxes: tf.Tensor, valid: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Each anchor's highest IoU `(B, A)`, the first box that has it, and whether the anchor is the best of any box.

    Loops over the boxes, up to the fullest image's count: memory stays at `(B, A)` for any number of objects.
    """
    shape = (tf.shape(boxes)[0], tf.shape(anchors)[0])
    count = tf.reduce_max(tf.where(valid, tf.range(1, tf.shape(boxes)[1] + 1), 0))

    def compare(index, best_iou, best_box, champion):
        iou = box_geometry.iou(anchors[None], boxes[:, index, None])
        iou = tf.where(valid[:, index, None], iou, -1.0)
        better = iou > best_iou
        highest = tf.reduce_max(iou, axis=1, keepdims=True)
        return (
            index + 1,
            tf.where(better, iou, best_iou),
            tf.where(better, index, best_box),
            champion | ((iou == highest) & (highest > 0.0)),
        )

    start = (tf.constant(0), tf.fill(shape, -1.0), tf.zeros(shape, tf.int32), tf.zeros(shape, tf.bool))
    _, *result = tf.while_loop(lambda index, *_: index < count, compare, start)
    return tuple(result)
