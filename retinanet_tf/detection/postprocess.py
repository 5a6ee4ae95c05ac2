"""From the network's outputs to detections: threshold, top-k a level, decode, clip, per-class NMS (§4.1).

`candidates` does everything up to NMS for one image, `suppress` the rest; between them test-time augmentation puts
the candidates of several passes together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.detection import boxes as box_geometry


class Candidates(NamedTuple):
    """Boxes `(N, 4)` xyxy in the original image's pixels, clipped to it; logits `(N,)` float32; labels `(N,)` int32."""

    boxes: tf.Tensor
    logits: tf.Tensor
    labels: tf.Tensor


def select_detections(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    scales: tf.Tensor,
    sizes: tf.Tensor,
    config: DetectConfig = DetectConfig(),
    anchors_per_cell: int = 1,
) -> dict[str, tf.Tensor]:
    """Turns a batch of network outputs into detections in the original images' pixels.

    On every level the `pre_nms_top_k` highest (anchor, class) pairs above `score_threshold` are decoded; levels are
    merged, boxes divided by the image's scale and clipped to it; of two boxes of one class with IoU above `nms_iou`
    the lower scoring one is dropped; the `max_detections` best remain, best first. Of equal scores the finer level's,
    then the lower anchor's, then the lower class's comes first.

    Args:
      class_logits: one `(B, A_l, K)` a level, any float dtype.
      box_deltas: one `(B, A_l, 4)` a level.
      anchors: one `(A_l, 4)` a level.
      scales: `(B, 2)` float32, resized over original size, y then x.
      sizes: `(B, 2)` original height and width.
      config: thresholds and counts.
      anchors_per_cell: a divisor of every A_l. It changes no result; the model's own makes the search faster.

    Returns:
      {"boxes": `(B, D, 4)` float32 xyxy, "scores": `(B, D)` float32, "labels": `(B, D)` int32, "num_detections":
      `(B,)` int32} with D = max_detections; beyond num_detections boxes and scores are 0 and labels −1.
    """
    depth, num_classes = config.max_detections, class_logits[0].shape[-1]

    scales, sizes = tf.cast(scales, tf.float32), tf.cast(sizes, tf.float32)

    def one(index):
        # Slices share memory with their batch; mapping over the tensors themselves would copy each of them.
        logits, deltas = ([level[index] for level in part] for part in (class_logits, box_deltas))
        found = candidates(logits, deltas, anchors, scales[index], sizes[index], config, anchors_per_cell)
        return suppress(found, sizes[index], num_classes, config)

    signature = {
        "boxes": tf.TensorSpec([depth, 4], tf.float32),
        "scores": tf.TensorSpec([depth], tf.float32),
        "labels": tf.TensorSpec([depth], tf.int32),
        "num_detections": tf.TensorSpec([], tf.int32),
    }
    return tf.map_fn(one, tf.range(tf.shape(sizes)[0]), fn_output_signature=signature)


def candidates(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    scale: tf.Tensor,
    size: tf.Tensor,
    config: DetectConfig,
    anchors_per_cell: int = 1,
) -> Candidates:
    """One image's decoded candidates of all levels, `(A_l, K)` logits and `(A_l, 4)` deltas a level; finest first."""
    thresholds = [config.score_threshold] * len(anchors)
    if config.coarsest_score_threshold >= 0.0:
        thresholds[-1] = config.coarsest_score_threshold
    levels = [
        _level_candidates(logits, deltas, boxes, threshold, config.pre_nms_top_k, anchors_per_cell)
        for logits, deltas, boxes, threshold in zip(class_logits, box_deltas, anchors, thresholds, strict=True)
    ]
    boxes, logits, labels = (tf.concat(parts, axis=0) for parts in zip(*levels, strict=True))
    boxes = boxes / tf.stack([scale[1], scale[0], scale[1], scale[0]])
    return Candidates(box_geometry.clip(boxes, size[0], size[1]), logits, labels)


def suppress(found: Candidates, size: tf.Tensor, num_classes: int, config: DetectConfig) -> dict[str, tf.Tensor]:
    """Per-class NMS and the best `max_detections` of one image: boxes `(D, 4)`, scores, labels `(D,)`, their number."""
    apart = _apart(found.boxes, found.labels, size, num_classes)
    # All boxes of the image are suppressed in one call, which takes the best first and stops when it has D of them:
    # they are the D best that remain. Ranking by logits tells apart what would round to one score near 1.
    kept = tf.image.non_max_suppression(apart, found.logits, config.max_detections, config.nms_iou)
    count = tf.shape(kept)[0]
    missing = config.max_detections - count
    return {
        "boxes": tf.pad(tf.gather(found.boxes, kept), [[0, missing], [0, 0]]),
        "scores": tf.pad(tf.sigmoid(tf.gather(found.logits, kept)), [[0, missing]]),
        "labels": tf.pad(tf.gather(found.labels, kept), [[0, missing]], constant_values=-1),
        "num_detections": count,
    }


def logit_threshold(score: float) -> float:
    """The largest float32 t for which a float32 logit is above t exactly when its score is above `score`."""
    if score <= 0.0:
        return -math.inf
    exact = math.log(score) - math.log1p(-score)
    rounded = np.float32(exact)
    # As Python floats: numpy 2 would compare a float32 with `exact` in float32.
    return float(rounded) if float(rounded) <= exact else float(np.nextafter(rounded, np.float32(-np.inf)))


def _level_candidates(
    logits: tf.Tensor, deltas: tf.Tensor, anchors: tf.Tensor, score: float, top_k: int, anchors_per_cell: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The level's `top_k` highest (anchor, class) pairs above the score: boxes `(n, 4)`, logits and labels `(n,)`.

    Few cells have any logit above the threshold, so one maximum a cell, which costs about as much as reading the
    logits once, spares all later steps the rest.
    """
    threshold, num_classes = logit_threshold(score), logits.shape[-1]
    cells = tf.reshape(logits, [-1, anchors_per_cell * num_classes])
    rows = tf.where(tf.cast(tf.reduce_max(cells, axis=1), tf.float32) > threshold)[:, 0]
    row_logits = tf.cast(tf.gather(cells, rows), tf.float32)
    pairs = tf.where(row_logits > threshold)
    pair_logits = tf.gather_nd(row_logits, pairs)
    best, order = tf.math.top_k(pair_logits, tf.minimum(top_k, tf.shape(pair_logits)[0]))
    pairs = tf.gather(pairs, order)
    places = tf.gather(rows, pairs[:, 0]) * anchors_per_cell + pairs[:, 1] // num_classes
    boxes = box_geometry.decode(tf.cast(tf.gather(deltas, places), tf.float32), tf.gather(anchors, places))
    return boxes, best, tf.cast(pairs[:, 1] % num_classes, tf.int32)


def _apart(boxes: tf.Tensor, labels: tf.Tensor, size: tf.Tensor, num_classes: int) -> tf.Tensor:
    """The boxes, each class moved to a tile of its own, so that NMS over all is NMS by class.

    Large coordinates usually lose the bits that decide an IoU near the threshold. Here boxes are first rounded to
    the multiples of a power of two that float32 holds exactly on the whole plane of tiles (1/1024 of a pixel for an
    image of 1,000 pixels and 80 classes): every difference of coordinates is then the same in each tile, to the bit.
    """
    tiles = math.ceil(math.sqrt(num_classes))
    tile = tf.math.ceil(tf.reduce_max(size)) + 1.0
    exponent = 1 + tf.cast(tf.floor(tf.math.log(tile * tiles) / math.log(2.0)), tf.int32)
    # 2^(exponent − 24), from its bits: a power computed in float32 could be off by one of them.
    quantum = tf.bitcast(tf.bitwise.left_shift(exponent - 24 + 127, 23), tf.float32)
    place = tile * tf.cast(tf.stack([labels % tiles, labels // tiles], axis=-1), tf.float32)
    return tf.round(boxes / quantum) * quantum + tf.concat([place, place], axis=-1)
