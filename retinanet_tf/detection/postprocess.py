"""Post-processing: threshold, top-k per level, decoding, clipping, per-class NMS (§4.1).

`candidates` does everything up to NMS for one image, `suppress` the rest; test-time augmentation merges the
candidates of several passes in between.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig, DetectConfig
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
    anchor_config: AnchorConfig = AnchorConfig(),
) -> dict[str, tf.Tensor]:
    """Detections, in the original images' pixels, from a batch of network outputs.

    On every level the `pre_nms_top_k` highest (anchor, class) pairs above `score_threshold` are decoded; levels are
    merged, boxes divided by the image's scale and clipped to it; of two boxes of one class with IoU above `nms_iou`
    the lower scoring one is dropped; the `max_detections` best remain, best first. Of equal scores the finer level's,
    then the lower anchor's, then the lower class's comes first.

    Args:
        class_logits: one `(B, A_l, K)` per level, any float dtype.
        box_deltas: one `(B, A_l, 4)` per level.
        anchors: one `(A_l, 4)` per level.
        scales: `(B, 2)` float32, resized over original size, y then x.
        sizes: `(B, 2)` original height and width.
        config: thresholds and counts.
        anchor_config: of the anchors. With anchor_style='detectron' the coarsest level has no score threshold, as in
          the authors' code.

    Returns:
        {"boxes": `(B, D, 4)` float32 xyxy, "scores": `(B, D)` float32, "labels": `(B, D)` int32, "num_detections":
        `(B,)` int32} with D = max_detections; beyond num_detections boxes and scores are 0 and labels −1.
    """
    depth, num_classes = config.max_detections, class_logits[0].shape[-1]
    scales, sizes = tf.cast(scales, tf.float32), tf.cast(sizes, tf.float32)

    def detect_image(index):
        # Slices share memory with their batch; mapping over the tensors themselves would copy each of them.
        logits, deltas = ([level[index] for level in levels] for levels in (class_logits, box_deltas))
        merged = candidates(logits, deltas, anchors, scales[index], sizes[index], config, anchor_config)
        return suppress(merged, sizes[index], num_classes, config)

    signature = {
        "boxes": tf.TensorSpec([depth, 4], tf.float32),
        "scores": tf.TensorSpec([depth], tf.float32),
        "labels": tf.TensorSpec([depth], tf.int32),
        "num_detections": tf.TensorSpec([], tf.int32),
    }
    return tf.map_fn(detect_image, tf.range(tf.shape(sizes)[0]), fn_output_signature=signature)


def candidates(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    scale: tf.Tensor,
    size: tf.Tensor,
    config: DetectConfig,
    anchor_config: AnchorConfig,
) -> Candidates:
    """One image's decoded candidates of all levels, `(A_l, K)` logits and `(A_l, 4)` deltas per level; finest first."""
    thresholds = [config.score_threshold] * len(anchors)
    if anchor_config.anchor_style == "detectron":
        thresholds[-1] = 0.0
    levels = [
        _level_candidates(logits, deltas, boxes, threshold, config.pre_nms_top_k, anchor_config.anchors_per_cell)
        for logits, deltas, boxes, threshold in zip(class_logits, box_deltas, anchors, thresholds, strict=True)
    ]
    boxes, logits, labels = (tf.concat(values, axis=0) for values in zip(*levels, strict=True))
    boxes = boxes / tf.stack([scale[1], scale[0], scale[1], scale[0]])
    return Candidates(box_geometry.clip(boxes, size[0], size[1]), logits, labels)


def suppress(merged: Candidates, size: tf.Tensor, num_classes: int, config: DetectConfig) -> dict[str, tf.Tensor]:
    """Per-class NMS and the best `max_detections` of one image: boxes `(D, 4)`, scores, labels `(D,)`, their number."""
    tiled = _class_tiles(merged.boxes, merged.labels, size, num_classes)
    # One call for all classes takes the best first and stops at D. Logits also rank scores that round to 1.
    kept = tf.image.non_max_suppression(tiled, merged.logits, config.max_detections, config.nms_iou)
    count = tf.shape(kept)[0]
    missing = config.max_detections - count
    return {
        "boxes": tf.pad(tf.gather(merged.boxes, kept), [[0, missing], [0, 0]]),
        "scores": tf.pad(tf.sigmoid(tf.gather(merged.logits, kept)), [[0, missing]]),
        "labels": tf.pad(tf.gather(merged.labels, kept), [[0, missing]], constant_values=-1),
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

    Few cells have any logit above the threshold: one maximum per cell, about the cost of reading the logits once,
    spares the later steps all others.
    """
    threshold, num_classes = logit_threshold(score), logits.shape[-1]
    cells = tf.reshape(logits, [-1, anchors_per_cell * num_classes])
    rows = tf.where(tf.cast(tf.reduce_max(cells, axis=1), tf.float32) > threshold)[:, 0]
    row_logits = tf.cast(tf.gather(cells, rows), tf.float32)
    pairs = tf.where(row_logits > threshold)
    pair_logits = tf.gather_nd(row_logits, pairs)
    best, order = tf.math.top_k(pair_logits, tf.minimum(top_k, tf.shape(pair_logits)[0]))
    pairs = tf.gather(pairs, order)
    indices = tf.gather(rows, pairs[:, 0]) * anchors_per_cell + pairs[:, 1] // num_classes
    boxes = box_geometry.decode(tf.cast(tf.gather(deltas, indices), tf.float32), tf.gather(anchors, indices))
    return boxes, best, tf.cast(pairs[:, 1] % num_classes, tf.int32)


def _class_tiles(boxes: tf.Tensor, labels: tf.Tensor, size: tf.Tensor, num_classes: int) -> tf.Tensor:
    """The boxes with each class moved to a tile of its own, which makes NMS over all of them NMS per class.

    Boxes are first rounded to multiples of a power of two that float32 holds exactly on the whole plane of tiles
    (1/1024 pixel for an image of 1,000 pixels and 80 classes), so that differences of coordinates, and with them IoUs
    near the threshold, are the same in each tile to the bit.
    """
    tiles = math.ceil(math.sqrt(num_classes))
    tile = tf.math.ceil(tf.reduce_max(size)) + 1.0
    exponent = 1 + tf.cast(tf.floor(tf.math.log(tile * tiles) / math.log(2.0)), tf.int32)
    # 2^(exponent − 24) from its bits: a float32 power may not be exact.
    quantum = tf.bitcast(tf.bitwise.left_shift(exponent - 24 + 127, 23), tf.float32)
    corner = tile * tf.cast(tf.stack([labels % tiles, labels // tiles], axis=-1), tf.float32)
    return tf.round(boxes / quantum) * quantum + tf.concat([corner, corner], axis=-1)
