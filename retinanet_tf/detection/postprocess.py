"""Post-processing: threshold, top-k per level, decoding, clipping, per-class NMS (§4.1), on a whole batch at once.

`candidates` does everything up to NMS, `suppress` the rest; test-time augmentation merges the candidates of several
passes in between.

Both have two forms with equal results. With `static_shapes` every shape is known when the graph is built, as XLA,
ONNX and LiteRT need: a place without a candidate has the logit −∞. Otherwise, for CPUs, as many candidates are kept
as are above the threshold, and NMS is TensorFlow's kernel.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig, DetectConfig
from retinanet_tf.detection import boxes as box_geometry


class Candidates(NamedTuple):
    """Candidates of B images, N each, in the order in which ties are resolved."""

    boxes: tf.Tensor
    """`(B, N, 4)` float32 xyxy in the original image's pixels, clipped to it."""
    logits: tf.Tensor
    """`(B, N)` float32; −∞ where there is no candidate."""
    labels: tf.Tensor
    """`(B, N)` int32."""


def select_detections(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    scales: tf.Tensor,
    sizes: tf.Tensor,
    config: DetectConfig = DetectConfig(),
    anchor_config: AnchorConfig = AnchorConfig(),
    static_shapes: bool = False,
) -> dict[str, tf.Tensor]:
    """Detections, in the original images' pixels, from a batch of network outputs.

    On every level the `pre_nms_top_k` highest (anchor, class) pairs above `score_threshold` are decoded; levels are
    merged, boxes divided by the image's scale and clipped to it; of two boxes of one class with IoU above `nms_iou`
    the lower scoring one is dropped; the `max_detections` best remain, best first. Of equal scores the finer level's,
    then the lower anchor's, then the lower class's comes first. A NaN logit is below every threshold; a box with a NaN
    delta is dropped.

    Args:
        class_logits: one `(B, A_l, K)` per level, any float dtype.
        box_deltas: one `(B, A_l, 4)` per level.
        anchors: one `(A_l, 4)` per level.
        scales: `(B, 2)` float32, resized over original size, y then x.
        sizes: `(B, 2)` original height and width.
        config: thresholds and counts.
        anchor_config: of the anchors. With anchor_style='detectron' the coarsest level has no score threshold, as in
          the authors' code.
        static_shapes: build a graph without data-dependent shapes, for inputs whose shapes are known.

    Returns:
        {"boxes": `(B, D, 4)` float32 xyxy, "scores": `(B, D)` float32, "labels": `(B, D)` int32, "num_detections":
        `(B,)` int32} with D = max_detections; beyond num_detections boxes and scores are 0 and labels −1.
    """
    scales, sizes = tf.cast(scales, tf.float32), tf.cast(sizes, tf.float32)
    merged = candidates(class_logits, box_deltas, anchors, scales, sizes, config, anchor_config, static_shapes)
    return suppress(merged, sizes, class_logits[0].shape[-1], config, static_shapes)


def candidates(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    scales: tf.Tensor,
    sizes: tf.Tensor,
    config: DetectConfig,
    anchor_config: AnchorConfig,
    static_shapes: bool = False,
) -> Candidates:
    """Decoded candidates of all levels, finest first; see `select_detections`."""
    thresholds = [config.score_threshold] * len(anchors)
    if anchor_config.anchor_style == "detectron":
        thresholds[-1] = 0.0
    top_k, per_cell = config.pre_nms_top_k, anchor_config.anchors_per_cell
    levels = [
        _level_candidates(logits, deltas, boxes, logit_threshold(score), top_k, per_cell, static_shapes)
        for logits, deltas, boxes, score in zip(class_logits, box_deltas, anchors, thresholds, strict=True)
    ]
    boxes, logits, labels = (tf.concat(values, axis=1) for values in zip(*levels, strict=True))
    boxes /= tf.concat([scales[:, ::-1]] * 2, axis=-1)[:, None]
    return Candidates(box_geometry.clip(boxes, sizes[:, None, 0], sizes[:, None, 1]), logits, labels)


def suppress(
    merged: Candidates, sizes: tf.Tensor, num_classes: int, config: DetectConfig, static_shapes: bool = False
) -> dict[str, tf.Tensor]:
    """Per-class NMS and each image's best `max_detections`; see `select_detections`."""
    tile, tiles = tf.math.ceil(tf.reduce_max(sizes, axis=1)) + 1.0, math.ceil(math.sqrt(num_classes))
    rounded = _round_boxes(merged.boxes, tile, tiles)
    # With each class in a tile of its own, NMS over all boxes is NMS per class.
    corner = tf.cast(tf.stack([merged.labels % tiles, merged.labels // tiles], axis=-1), tf.float32)
    corner *= tile[:, None, None]
    tiled = rounded + tf.concat([corner, corner], axis=-1)
    kept = (_greedy_nms if static_shapes else _kernel_nms)(tiled, merged.logits, config)
    # One candidate more, at index N, for the places that stay empty.
    boxes = tf.pad(merged.boxes, [[0, 0], [0, 1], [0, 0]])
    # TensorFlow's kernel rounds the last elements of an array otherwise than the rest: of equal logits some would have
    # another score, and come after a lower one.
    precise = merged.logits if static_shapes else tf.cast(merged.logits, tf.float64)
    scores = tf.pad(tf.cast(tf.sigmoid(precise), tf.float32), [[0, 0], [0, 1]])
    labels = tf.pad(merged.labels, [[0, 0], [0, 1]], constant_values=-1)
    return {
        "boxes": tf.gather(boxes, kept, batch_dims=1),
        "scores": tf.gather(scores, kept, batch_dims=1),
        "labels": tf.gather(labels, kept, batch_dims=1),
        "num_detections": tf.math.count_nonzero(kept < tf.shape(merged.logits)[1], axis=1, dtype=tf.int32),
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
    logits: tf.Tensor,
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    threshold: float,
    top_k: int,
    anchors_per_cell: int,
    static_shapes: bool,
) -> Candidates:
    """The level's `top_k` highest (anchor, class) pairs above the threshold, in the order of anchors and classes.

    No such pair lies outside the `top_k` cells of highest maximum, nor outside their `top_k` anchors of highest
    maximum: one maximum per cell, about the cost of reading the logits once, spares the later steps all others.
    Chosen cells and anchors stay in their order, so that ties fall to the lower one in every step.
    """
    shape = _shape(logits, static_shapes)
    batch, cells, classes = shape[0], shape[1] // anchors_per_cell, logits.shape[-1]
    by_cell = tf.reshape(logits, [batch, cells, anchors_per_cell * classes])
    by_cell, maxima = _without_nan(by_cell) if static_shapes else _without_rare_nan(by_cell)
    rows = _highest(tf.cast(maxima, tf.float32), top_k, threshold, static_shapes)
    by_cell = tf.cast(tf.gather(by_cell, rows, batch_dims=1), tf.float32)
    count = _shape(rows, static_shapes)[1]

    by_anchor = tf.reshape(by_cell, [batch, count * anchors_per_cell, classes])
    places = _highest(tf.reduce_max(by_anchor, axis=2), top_k, threshold, static_shapes)
    indices = tf.gather(rows, places // anchors_per_cell, batch_dims=1) * anchors_per_cell + places % anchors_per_cell
    count = _shape(places, static_shapes)[1]

    pairs = tf.reshape(tf.gather(by_anchor, places, batch_dims=1), [batch, count * classes])
    order = _highest(pairs, top_k, threshold, static_shapes)
    best = tf.gather(pairs, order, batch_dims=1)
    indices = tf.gather(indices, order // classes, batch_dims=1)
    chosen_deltas = tf.cast(tf.gather(deltas, indices, batch_dims=1), tf.float32)
    # Of the deltas, since runtimes differ in what limiting a NaN gives.
    undefined = tf.reduce_any(tf.math.is_nan(chosen_deltas), axis=-1)
    return Candidates(
        box_geometry.decode(chosen_deltas, tf.gather(anchors, indices)),
        tf.where((best > threshold) & ~undefined, best, -math.inf),
        order % classes,
    )


def _highest(values: tf.Tensor, top_k: int, threshold: float, static_shapes: bool) -> tf.Tensor:
    """Indices `(B, n)` of each row's `top_k` highest of `(B, N)`, ascending; of equal ones the first.

    Without static shapes n is the number above the threshold in the row that has most, if that is less.
    """
    if static_shapes:
        count = min(top_k, values.shape[1])
    else:
        above = tf.math.count_nonzero(values > threshold, axis=1, dtype=tf.int32)
        count = tf.minimum(top_k, tf.reduce_max(tf.pad(above, [[0, 1]])))
    return tf.sort(tf.math.top_k(values, count).indices, axis=1)


def _without_nan(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits with −∞ for NaN, and their maxima over the last axis."""
    finite = tf.where(tf.math.is_nan(logits), tf.constant(-math.inf, logits.dtype), logits)
    return finite, tf.reduce_max(finite, axis=-1)


def _without_rare_nan(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The same, reading logits without any NaN once only: TensorFlow's maximum over a NaN is NaN."""
    maxima = tf.reduce_max(logits, axis=-1)
    has_nan = tf.reduce_any(tf.math.is_nan(maxima))
    return tf.cond(has_nan, lambda: _without_nan(logits), lambda: (logits, maxima))


def _shape(tensor: tf.Tensor, static_shapes: bool) -> Sequence:
    """The sides; with static shapes only the batch may be unknown, which is −1 then, as `tf.reshape` takes it."""
    return [-1 if side is None else side for side in tensor.shape] if static_shapes else tf.unstack(tf.shape(tensor))


_EXPONENTS = np.arange(32)
_SMALLEST_AREA = 1e-30  # less than any that isn't 0


def _round_boxes(boxes: tf.Tensor, tile: tf.Tensor, tiles: int) -> tf.Tensor:
    """Boxes in multiples of a power of two that float32 holds exactly on a plane of tiles × tiles images.

    1/1024 pixel for an image of 1,000 pixels and 80 classes. Differences of coordinates, and with them IoUs near the
    threshold, are then the same in each tile to the bit.

    Args:
        boxes: `(B, N, 4)`.
        tile: `(B,)`, side of the images' tiles.
        tiles: tiles per side.
    """
    exponent = tf.reduce_sum(tf.cast(tile[:, None] * tiles >= 2.0 ** _EXPONENTS[1:], tf.int32), axis=1)
    quantum = tf.gather(tf.constant(2.0 ** (_EXPONENTS - 23.0), tf.float32), exponent)[:, None, None]
    return tf.round(boxes / quantum) * quantum


def _kernel_nms(boxes: tf.Tensor, logits: tf.Tensor, config: DetectConfig) -> tf.Tensor:
    """`_greedy_nms` by TensorFlow's kernel."""
    depth, none = config.max_detections, tf.shape(logits)[1]

    def of_image(image):
        # One call for all classes takes the best first and stops at D. Logits also rank scores that round to 1.
        kept = tf.image.non_max_suppression(*image, depth, config.nms_iou)
        return tf.pad(kept, [[0, depth - tf.shape(kept)[0]]], constant_values=none)

    return tf.map_fn(of_image, (boxes, logits), fn_output_signature=tf.TensorSpec([depth], tf.int32))


def _greedy_nms(boxes: tf.Tensor, logits: tf.Tensor, config: DetectConfig) -> tf.Tensor:
    """Indices `(B, D)` of the candidates that NMS keeps, best first; N where there is none.

    D turns on all images at once, in each of which every image takes its best candidate left and drops those that
    overlap it. A turn too many, as some runtimes make, changes nothing. A turn has as few operators as can be: in
    ONNX Runtime and LiteRT each has its price, whatever it computes.
    """
    batch, count, depth = tf.shape(logits)[0], logits.shape[1], config.max_detections
    turns, indices, rows = tf.range(depth)[None], tf.range(count)[None], tf.range(batch)[:, None]
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    areas = (x2 - x1) * (y2 - y1)
    packed = tf.stack([x1, y1, x2, y2, areas], axis=-1)

    def take_best(turn, left, kept):
        best = tf.argmax(left, axis=1, output_type=tf.int32)[:, None]
        exists = tf.reduce_max(left, axis=1, keepdims=True) > -math.inf
        first, top, right, bottom, area = tf.split(tf.gather_nd(packed, tf.concat([rows, best], axis=1)), 5, axis=1)
        width = tf.nn.relu(tf.minimum(x2, right) - tf.maximum(x1, first))
        height = tf.nn.relu(tf.minimum(y2, bottom) - tf.maximum(y1, top))
        shared = width * height
        # Two boxes without an area have no overlap; NaN isn't left to the runtimes, which differ.
        union = tf.maximum(areas + area - shared, _SMALLEST_AREA)
        dropped = (shared / union > config.nms_iou) | (indices == best)
        return turn + 1, tf.where(dropped, -math.inf, left), tf.where(exists & (turns == turn), best, kept)

    start = (tf.constant(0), logits, tf.fill([batch, depth], count))
    return tf.while_loop(lambda turn, *_: turn < depth, take_best, start, maximum_iterations=depth)[2]
