"""Which ground truth the anchors of a configuration can reach, exactly, and which settings would reach the rest."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from retinanet_tf.config.config import AnchorConfig
from retinanet_tf.data.transforms import resized_shape
from retinanet_tf.detection.anchors import STYLES, cell_anchors


def best_iou(boxes: np.ndarray, sizes: np.ndarray, config: AnchorConfig) -> np.ndarray:
    """The highest IoU that each box has with any anchor of its image.

    boxes: (N, 4) xyxy pixels of the resized image. sizes: (N, 2) its (height, width). Returns (N,) float64.

    Of the anchors of one shape, the one whose centre is nearest has the highest IoU: sides overlap the less, the
    further the centres are apart, along each axis by itself. So one anchor a shape and level is looked at.
    """
    boxes, best = np.asarray(boxes, np.float64), np.zeros(len(boxes))
    offset = STYLES[config.anchor_style].offset
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for level in config.levels:
        stride = 2.0**level
        last = np.ceil(sizes[:, ::-1] / stride) - 1
        cell = np.clip(np.round(centres / stride - offset), 0, last)
        nearest = (cell + offset) * stride
        for anchor in cell_anchors(config, level):
            low, high = nearest + anchor[:2], nearest + anchor[2:]
            sides = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)
            overlap = np.prod(np.maximum(sides, 0), axis=1)
            best = np.maximum(best, overlap / (area + np.prod(anchor[2:] - anchor[:2]) - overlap))
    return best


def resized(
    boxes: np.ndarray, sizes: np.ndarray, image_size: int, max_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4) of images of (N, 2) (height, width) as the model sees them.

    Returns the boxes, the sizes (N, 2) of their resized images, and the scale (N,) of the shorter side.
    """
    known: dict[tuple[int, int], tuple[int, int]] = {}
    new = np.zeros((len(boxes), 2))
    for row, (height, width) in enumerate(np.asarray(sizes, int).tolist()):
        if (height, width) not in known:
            known[height, width] = resized_shape(height, width, image_size, max_size)
        new[row] = known[height, width]
    scale = new / np.maximum(sizes, 1)
    return boxes * scale[:, [1, 0, 1, 0]], new, scale.min(axis=1) if len(boxes) else np.zeros(0)


def suggestions(
    boxes: np.ndarray, sizes: np.ndarray, config: AnchorConfig, image_size: int, max_size: int
) -> list[tuple[str, float, float]]:
    """Other settings and the shares of boxes they leave unreached at IoU 0.5 and 0.4, those that reach most first.

    boxes: (N, 4) xyxy pixels of the original images of (N, 2) (height, width). Each entry names the flags to give.
    Only settings that leave less unreached than the current ones are listed.
    """
    tried = []
    for flags, settings, factor in _variants(config):
        size, limit = round(image_size * factor), round(max_size * factor)
        if factor != 1.0:
            flags = f"--image_size={size} --max_size={limit}" + (f" {flags}" if flags else "")
        ious = best_iou(*resized(boxes, sizes, size, limit)[:2], settings)
        tried.append((flags, float((ious < 0.5).mean()), float((ious < 0.4).mean()), settings.anchors_per_cell))
    current = tried[0]
    better = [entry for entry in tried[1:] if entry[1] < current[1] - 1e-9]
    better.sort(key=lambda entry: (round(entry[1], 3), entry[3]))
    return [entry[:3] for entry in better]


def _variants(config: AnchorConfig) -> Iterable[tuple[str, AnchorConfig, float]]:
    """(flags, anchors, factor on the image size); the unchanged ones first."""
    half = replace(config, anchor_multiplier=config.anchor_multiplier / 2)
    wide = (1 / 3, 0.5, 1.0, 2.0, 3.0)
    four = tuple(2 ** (i / 4) for i in range(4))
    ratios, scales = "--anchor_ratios=0.3333,0.5,1,2,3", "--anchor_scales=1,1.1892,1.4142,1.6818"
    smaller = f"--anchor_multiplier={half.anchor_multiplier:g}"
    yield "", config, 1.0
    yield smaller, half, 1.0
    yield ratios, replace(config, anchor_ratios=wide), 1.0
    yield scales, replace(config, anchor_scales=four), 1.0
    yield f"{smaller} {ratios}", replace(half, anchor_ratios=wide), 1.0
    for factor in (4 / 3, 5 / 3, 2.0):
        yield "", config, factor
        yield smaller, half, factor
        yield ratios, replace(config, anchor_ratios=wide), factor
