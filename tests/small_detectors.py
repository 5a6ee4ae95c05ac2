"""Small detectors with detections on every picture, and pictures, for the tests of detectors."""

import io

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.inference.detector import Detector, Prepared
from retinanet_tf.models.retinanet import RetinaNet

TINY_NETWORK = {"backbone": "resnet10_w16", "fpn_channels": 16, "subnet_channels": 16, "subnet_depth": 1}
"""Fields of a network that is built in a second."""


def small_detector(label_map: LabelMap, spread: float = 0.25, **options) -> Detector:
    """Three classes at 64 to 96 pixels, fixed weights; the more `spread` in the class subnet, the more detections."""
    keras.utils.set_random_seed(2)
    config = presets["mini"].replace(num_classes=3, image_size=64, max_size=96, **{**TINY_NETWORK, "subnet_depth": 2})
    model = RetinaNet.from_config(config)
    for variable in model.weights:
        if "class_subnet" in getattr(variable, "path", variable.name) and len(variable.shape) == 4:
            variable.assign(np.random.default_rng(3).normal(0, spread, variable.shape).astype(np.float32))
    return Detector(model, label_map, DetectConfig(max_detections=30), **options)


def clutter(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    """A picture of blurred random colours, uint8; another one per seed."""
    rng = np.random.default_rng(seed)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((width, height)))


def encode(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


class Quarter:
    """Detects one object of class 1 with score .8 in the lower right quarter of every image, and a weak one."""

    label_map, config = LabelMap([2, 70], ["cup", "toilet"]), DetectConfig(max_detections=3)

    def prepare(self, image):
        return Prepared(tf.zeros((8, 8, 3)), tf.ones(2), tf.cast(tf.shape(image)[:2], tf.float32))

    def detect_prepared(self, batch):
        h, w = np.array([image.size.numpy() for image in batch], np.float32).T
        zero = np.zeros_like(h)
        boxes = np.stack([[w / 2, h / 2, w, h], [zero, zero, w / 4, h / 4], [zero] * 4], 0).transpose(2, 0, 1)
        answer = {"boxes": boxes, "scores": [[0.8, 0.1, 0]] * len(h), "labels": [[1, 0, -1]] * len(h)}
        return {name: tf.constant(v) for name, v in {**answer, "num_detections": [2] * len(h)}.items()}
