"""Weights of others in this model: read safely, matched by name, with the settings they were trained under."""

from retinanet_tf.pretrained.importing import import_weights, keep_backbone
from retinanet_tf.pretrained.loading import Report, initialize

__all__ = ["Report", "import_weights", "initialize", "keep_backbone"]
