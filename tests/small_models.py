"""Small models that are built in a second, and batches to train them on."""

import numpy as np
from small_detectors import TINY_NETWORK

from retinanet_tf.config.config import AnchorConfig
from retinanet_tf.models.retinanet import RetinaNet


def small(**changes) -> RetinaNet:
    """A model of three classes and levels; `changes` are arguments of RetinaNet."""
    return RetinaNet(**{"num_classes": 3, **TINY_NETWORK, "anchors": AnchorConfig(max_level=5), **changes})


def images(*shape: int) -> np.ndarray:
    """`(*shape, 3)` float32 noise in 0–255, the same for one shape."""
    return np.random.default_rng(0).uniform(0, 255, (*shape, 3)).astype(np.float32)


def batch(count: int = 2, size: int = 64) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images with two objects each and a row of padding."""
    boxes = np.tile(np.array([[4, 4, 40, 40], [20, 10, 60, 50], [0, 0, 0, 0]], np.float32), (count, 1, 1))
    return images(count, size, size), {"boxes": boxes, "labels": np.tile([0, 2, -1], (count, 1)).astype(np.int32)}
