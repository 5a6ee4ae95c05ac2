"""Anchor coverage: the best IoU of every object with any anchor, and settings that would improve it."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig, ModelConfig
from retinanet_tf.data.transforms import resized_shape
from retinanet_tf.detection.anchors import STYLES, cell_anchors
from retinanet_tf.detection.boxes import iou

_CHUNK = 50_000  # boxes whose anchors are in memory


def best_iou(boxes: np.ndarray, sizes: np.ndarray, config: AnchorConfig) -> np.ndarray:
    """The highest IoU of each box with any anchor of its image.

    Of the anchors of one shape, the one with the nearest centre has the highest IoU (along each axis the overlap falls
    with the distance), so one anchor per shape and level is enough.

    Args:
        boxes: `(N, 4)` xyxy pixels of the resized image.
        sizes: `(N, 2)` its (height, width).
        config: the anchors.

    Returns:
        `(N,)` float64.
    """
    if len(boxes) > _CHUNK:
        parts = [slice(start, start + _CHUNK) for start in range(0, len(boxes), _CHUNK)]
        return np.concatenate([best_iou(boxes[part], sizes[part], config) for part in parts])
    boxes, best = np.asarray(boxes, np.float64), np.zeros(len(boxes))
    offset = STYLES[config.anchor_style].offset
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for level in config.levels:
        stride = 2.0**level
        last = np.ceil(sizes[:, ::-1] / stride) - 1
        cell = np.clip(np.round(centres / stride - offset), 0, last)
        nearest = np.tile((cell + offset) * stride, 2)
        anchors = nearest[:, None] + cell_anchors(config, level)
        best = np.maximum(best, iou(tf.constant(boxes[:, None]), tf.constant(anchors)).numpy().max(axis=1))
    return best


def resized(
    boxes: np.ndarray, sizes: np.ndarray, image_size: int, max_size: int, rule: str = "shorter_side"
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(N, 4)` of images of `(N, 2)` (height, width) in pixels of the model's input; their resized sizes."""
    cached = functools.cache(lambda height, width: resized_shape(height, width, image_size, max_size, rule))
    new = np.array([cached(*size) for size in np.asarray(sizes, int).tolist()], float).reshape(-1, 2)
    scale = new / np.maximum(sizes, 1)
    return boxes * scale[:, [1, 0, 1, 0]], new


def suggestions(
    boxes: np.ndarray, sizes: np.ndarray, config: AnchorConfig, model: ModelConfig
) -> list[tuple[str, float, float]]:
    """Settings that leave fewer boxes unreached than `config`, the best first.

    Args:
        boxes: `(N, 4)` xyxy pixels of the original images.
        sizes: `(N, 2)` (height, width) of these images.
        config: the current anchors.
        model: the current sizes, and the rule of resizing.

    Returns:
        (flags to give, share of boxes below IoU 0.5, share below IoU 0.4) per setting.
    """
    tried = []
    for changes, factor in _variants(config):
        size, limit = round(model.image_size * factor), round(model.max_size * factor)
        resizing = f"--image_size={size} --max_size={limit}" if factor > 1 else ""
        anchors = replace(config, **changes)
        ious = best_iou(*resized(boxes, sizes, size, limit, model.resize), anchors)
        flags = " ".join(filter(None, [resizing, *(_flag(*change) for change in changes.items())]))
        tried.append((flags, float((ious < 0.5).mean()), float((ious < 0.4).mean()), anchors.anchors_per_cell))
    better = [entry for entry in tried[1:] if entry[1] < tried[0][1] - 1e-9]
    better.sort(key=lambda entry: (round(entry[1], 3), entry[3]))
    return [entry[:3] for entry in better]


def _variants(config: AnchorConfig) -> Iterator[tuple[dict[str, Any], float]]:
    """(changes of the anchors, factor on the image size); none first."""
    smaller: dict[str, Any] = {"anchor_multiplier": config.anchor_multiplier / 2}
    ratios: dict[str, Any] = {"anchor_ratios": (1 / 3, 0.5, 1.0, 2.0, 3.0)}
    scales: dict[str, Any] = {"anchor_scales": tuple(2 ** (i / 4) for i in range(4))}
    for factor in (1.0, 4 / 3, 5 / 3, 2.0):
        for changes in ({}, smaller, ratios, scales, smaller | ratios)[: 5 if factor == 1.0 else 3]:
            yield changes, factor


def _flag(name: str, value: float | tuple[float, ...]) -> str:
    return f"--{name}=" + ",".join(f"{number:.5g}" for number in (value if isinstance(value, tuple) else (value,)))
