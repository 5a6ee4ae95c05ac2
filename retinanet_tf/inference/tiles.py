"""Tiles: large pictures detected piece by piece and as a whole, with the detections merged once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.detection.postprocess import Candidates, suppress
from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import Detector, Prepared, detect_images
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector

MERGED_DETECTIONS = 1000
"""Detections per image at most, of all tiles together."""
SMALLEST_TILE = 32
_TILES_AT_ONCE = 4  # whatever the batch of images is, so that it makes no difference
_TOUCHES = 0.01  # nearer to a border than this share of the tile's side, a box is cut by it
_CONTAINED = 0.8  # share of a cut box that another one must hold


class Window(NamedTuple):
    """A part of an image in pixels, exclusive at the right and bottom."""

    x1: int
    y1: int
    x2: int
    y2: int


class TiledDetector:
    """A detector that looks at overlapping square tiles of every image and at the image as a whole.

    Each tile is detected like an image of its own, so that small objects in large pictures come to the network in the
    size that it knows; train with the same side as `crop`. The merged detections are those of per-class NMS over all
    tiles and the whole image. Before that, a detection that an inner border of its tile cuts loses to one of its class
    that contains it and isn't cut there, whatever their scores: else parts of a large object would survive beside it
    (IoU is small where one box is far larger).

    Args:
        detector: the detector; each tile has up to `max_detections` too.
        side: of the tiles, in pixels of the images. Where an image is smaller, so is its tile.
        overlap: share of a tile that its neighbour shows too, at least, in [0, 1).
        max_detections: per image.

    Raises:
        InputError: a value out of range.
    """

    largest_batch = 1  # a larger one gains nothing, and holds whole pictures until it is full

    def __init__(
        self,
        detector: Detector | AugmentedDetector,
        side: int,
        overlap: float = 0.2,
        max_detections: int = MERGED_DETECTIONS,
    ):
        if isinstance(detector, TiledDetector) or not hasattr(detector, "with_config"):
            raise InputError(f"detector={detector!r} must be a Detector or an AugmentedDetector.")
        if not isinstance(side, int | np.integer) or side < SMALLEST_TILE:
            raise InputError(f"side={side!r} of the tiles must be a whole number of at least {SMALLEST_TILE} pixels.")
        if not 0 <= overlap < 1:
            raise InputError(f"overlap={overlap:g} of the tiles must be in [0, 1).")
        self.config = replace(detector.config, max_detections=max_detections)
        self.detector, self.label_map = detector.with_config(self.config), detector.label_map
        self.side, self.overlap = side, overlap

    def with_config(self, config: DetectConfig) -> "TiledDetector":
        """The same tiles with other thresholds and counts."""
        return TiledDetector(self.detector.with_config(config), self.side, self.overlap, config.max_detections)

    def describe(self) -> dict[str, Any]:
        return {**self.detector.describe(), "tiles": self.side, "tile_overlap": self.overlap}

    def __call__(self, images: Any) -> dict[str, tf.Tensor]:
        return detect_images(self, images)

    def prepare(self, image: tf.Tensor) -> Prepared:
        """The image `(H, W, 3)` itself, of which the tiles are cut. Scale 1, original size."""
        return Prepared(tf.convert_to_tensor(image), tf.ones([2]), tf.cast(tf.shape(image)[:2], tf.float32))

    def detect_prepared(self, batch: Sequence[Prepared]) -> dict[str, tf.Tensor]:
        results = [self._detect_image(image.canvas) for image in batch]
        return {name: tf.concat([result[name] for result in results], axis=0) for name in results[0]}

    def windows(self, height: int, width: int) -> list[Window]:
        """The tiles of an image, all of one size, row by row, and last the whole image, if that isn't the only tile."""
        rows, columns = (_starts(length, self.side, self.overlap) for length in (height, width))
        tall, wide = min(self.side, height), min(self.side, width)
        tiles = [Window(x, y, x + wide, y + tall) for y in rows for x in columns]
        return tiles if len(tiles) == 1 else [*tiles, Window(0, 0, width, height)]

    def _detect_image(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        height, width = image.shape[:2]
        windows = self.windows(height, width)
        parts: list[tuple[np.ndarray, ...]] = []
        for some in _chunks(windows):
            prepared = [self.detector.prepare(image[one.y1 : one.y2, one.x1 : one.x2]) for one in some]
            answer = {name: value.numpy() for name, value in self.detector.detect_prepared(prepared).items()}
            for row, window in enumerate(some):
                parts.append(_in_image(answer, row, window, width, height))
        boxes, scores, labels, cut = (np.concatenate(values) for values in zip(*parts, strict=True))
        tile = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
        kept = np.flatnonzero(~lost_parts(boxes, scores, labels, cut, tile))
        with np.errstate(divide="ignore"):
            logits = np.log(scores[kept]) - np.log1p(-scores[kept])
        merged = Candidates(*(tf.constant(value[None]) for value in (boxes[kept], logits, labels[kept])))
        return suppress(merged, tf.constant([[height, width]], tf.float32), self.label_map.num_classes, self.config)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where the tiles begin along one side: as few as have the overlap, evenly, the last one at the end."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side * (1 - overlap)) - 1e-9) + 1
    return np.rint(np.linspace(0, length - side, max(count, 2))).astype(int).tolist()


def _chunks(windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
    """The tiles in fixed batches, then the whole image by itself."""
    count = len(windows) - (len(windows) > 1)
    for start in range(0, count, _TILES_AT_ONCE):
        yield windows[start : min(start + _TILES_AT_ONCE, count)]
    if count < len(windows):
        yield windows[count:]


def _in_image(
    answer: dict[str, np.ndarray], row: int, window: Window, width: int, height: int
) -> tuple[np.ndarray, ...]:
    """One tile's boxes in the image's pixels, scores and labels, and `(n, 4)` at which sides an inner border cuts."""
    count = answer["num_detections"][row]
    boxes = answer["boxes"][row, :count] + np.array([window.x1, window.y1] * 2, np.float32)
    inner = np.array([window.x1 > 0, window.y1 > 0, window.x2 < width, window.y2 < height])
    near = _TOUCHES * np.array([window.x2 - window.x1, window.y2 - window.y1] * 2)
    cut = inner & (np.abs(boxes - np.array(window)) <= near)
    return boxes, answer["scores"][row, :count], answer["labels"][row, :count], cut


def lost_parts(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, cut: np.ndarray, tile: np.ndarray
) -> np.ndarray:
    """Which detections `(N,)` bool are parts of another one: cut, and contained in another tile's that isn't cut there.

    Args:
        boxes: `(N, 4)` xyxy.
        scores: `(N,)`.
        labels: `(N,)`.
        cut: `(N, 4)` bool, the sides at which a box is cut.
        tile: `(N,)`, the tile that it was found on.
    """
    lost = np.zeros(len(boxes), bool)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    candidates = np.flatnonzero(cut.any(1))
    of_class = {label: np.flatnonzero(labels == label) for label in np.unique(labels[candidates])}
    # Of two that contain each other the one with the lower score is lost.
    for index in candidates[np.argsort(scores[candidates], kind="stable")]:
        rows = of_class[labels[index]]
        others = boxes[rows]
        common = np.minimum(others[:, 2:], boxes[index, 2:]) - np.maximum(others[:, :2], boxes[index, :2])
        contains = (common > 0).all(1) & (common.prod(1) >= _CONTAINED * areas[index])
        contains &= (tile[rows] != tile[index]) & ~(cut[rows] & cut[index]).any(1) & ~lost[rows]
        lost[index] = contains.any()
    return lost
