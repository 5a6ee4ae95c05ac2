"""From the network's outputs to detections: threshold, top-k a level, decode, clip, per-class NMS (§4.1)."""

import math

import tensorflow as tf

from retinanet_tf import boxes as box_geometry
from retinanet_tf.config import DetectConfig


def select_detections(
    class_logits: tf.Tensor,
    box_deltas: tf.Tensor,
    anchors: list[tf.Tensor],
    scales: tf.Tensor,
    sizes: tf.Tensor,
    config: DetectConfig = DetectConfig(),
) -> dict[str, tf.Tensor]:
    """Turns a batch of network outputs into detections in the original images' pixels.

    On every level the `pre_nms_top_k` highest (anchor, class) pairs above `score_threshold` are decoded; levels are
    merged, boxes divided by the image's scale and clipped to it; of two boxes of one class with IoU above `nms_iou`
    the lower scoring one is dropped; the `max_detections` best remain, best first. Of equal scores the finer level's,
    then the lower anchor's, then the lower class's comes first.

    Args:
      class_logits: `(B, A, K)`, any float dtype.
      box_deltas: `(B, A, 4)`.
      anchors: one `(A_l, 4)` a level, together A.
      scales: `(B, 2)` float32, resized over original size, y then x.
      sizes: `(B, 2)` original height and width.
      config: thresholds and counts.

    Returns:
      {"boxes": `(B, D, 4)` float32 xyxy, "scores": `(B, D)` float32, "labels": `(B, D)` int32, "num_detections":
      `(B,)` int32} with D = max_detections; beyond num_detections boxes and scores are 0 and labels −1.
    """
    depth = config.max_detections
    signature = {
        "boxes": tf.TensorSpec([depth, 4], tf.float32),
        "scores": tf.TensorSpec([depth], tf.float32),
        "labels": tf.TensorSpec([depth], tf.int32),
        "num_detections": tf.TensorSpec([], tf.int32),
    }
    return tf.map_fn(
        lambda image: _detections_of_image(*image, anchors=anchors, config=config),
        (class_logits, box_deltas, tf.cast(scales, tf.float32), tf.cast(sizes, tf.float32)),
        fn_output_signature=signature,
    )


def _detections_of_image(logits, deltas, scale, size, *, anchors, config):
    """One image of `select_detections`."""
    counts = [tf.shape(level)[0] for level in anchors]
    candidates = [
        _candidates(level_logits, level_deltas, level_anchors, config)
        for level_logits, level_deltas, level_anchors in zip(
            tf.split(logits, counts), tf.split(deltas, counts), anchors, strict=True
        )
    ]
    boxes, scores, labels = (tf.concat(parts, axis=0) for parts in zip(*candidates, strict=True))
    boxes = boxes / tf.stack([scale[1], scale[0], scale[1], scale[0]])
    boxes = box_geometry.clip(boxes, size[0], size[1])

    kept = _nms_by_class(boxes, scores, labels, config)
    best, order = tf.math.top_k(tf.gather(scores, kept), tf.minimum(config.max_detections, tf.shape(kept)[0]))
    kept = tf.gather(kept, order)
    count = tf.shape(kept)[0]
    missing = config.max_detections - count
    return {
        "boxes": tf.pad(tf.gather(boxes, kept), [[0, missing], [0, 0]]),
        "scores": tf.pad(best, [[0, missing]]),
        "labels": tf.pad(tf.gather(labels, kept), [[0, missing]], constant_values=-1),
        "num_detections": count,
    }


def _logit(probability: float) -> float:
    if probability <= 0.0:
        return -math.inf
    return math.inf if probability >= 1.0 else math.log(probability / (1.0 - probability))


def _candidates(logits, deltas, anchors, config):
    """The level's highest (anchor, class) pairs above the threshold: boxes `(n, 4)`, scores `(n,)`, labels `(n,)`.

    Few anchors have any class above the threshold, so one maximum over classes spares all later steps the rest.
    """
    threshold = tf.cast(_logit(config.score_threshold), logits.dtype)
    rows = tf.where(tf.reduce_max(logits, axis=1) > threshold)[:, 0]
    row_logits = tf.gather(logits, rows)
    pairs = tf.where(row_logits > threshold)
    pair_logits = tf.gather_nd(row_logits, pairs)
    best, order = tf.math.top_k(pair_logits, tf.minimum(config.pre_nms_top_k, tf.shape(pair_logits)[0]))
    pairs = tf.gather(pairs, order)
    rows = tf.gather(rows, pairs[:, 0])
    boxes = box_geometry.decode(tf.cast(tf.gather(deltas, rows), tf.float32), tf.gather(anchors, rows))
    return boxes, tf.sigmoid(tf.cast(best, tf.float32)), tf.cast(pairs[:, 1], tf.int32)


def _nms_by_class(boxes, scores, labels, config):
    """Indices `(n,)` of the boxes that no better box of their class suppresses, in ascending order.

    Class by class over the classes that are there. Shifting boxes apart by class in one call would be shorter, but
    large coordinates lose the bits that decide IoUs near the threshold.
    """
    classes, _ = tf.unique(labels)

    def of_class(label):
        members = tf.cast(tf.where(labels == label)[:, 0], tf.int32)
        kept = tf.image.non_max_suppression(
            tf.gather(boxes, members), tf.gather(scores, members), config.max_detections, config.nms_iou
        )
        return tf.pad(tf.gather(members, kept), [[0, config.max_detections - tf.shape(kept)[0]]], constant_values=-1)

    kept = tf.map_fn(of_class, classes, fn_output_signature=tf.TensorSpec([config.max_detections], tf.int32))
    kept = tf.reshape(kept, [-1])
    return tf.sort(tf.boolean_mask(kept, kept >= 0))
