"""A small detector with detections on every picture, for the tests of what is done with detectors."""

import keras
import numpy as np

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet

TINY_NETWORK = {"backbone": "resnet10_w16", "fpn_channels": 16, "subnet_channels": 16, "subnet_depth": 1}
"""Fields of a network that is built in a second."""


def small_detector(labels: LabelMap, spread: float = 0.25) -> Detector:
    """Three classes at 64 to 96 pixels, fixed weights; the more `spread` in the class subnet, the more detections."""
    keras.utils.set_random_seed(2)
    config = presets["mini"].replace(
        num_classes=3, backbone="resnet10_w16", image_size=64, max_size=96, fpn_channels=16, subnet_channels=16
    )
    model = RetinaNet.from_config(config)
    for variable in model.weights:
        if "class_subnet" in getattr(variable, "path", variable.name) and len(variable.shape) == 4:
            variable.assign(np.random.default_rng(3).normal(0, spread, variable.shape).astype(np.float32))
    return Detector(model, labels, DetectConfig(max_detections=30))
