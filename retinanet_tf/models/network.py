"""The network of §4: backbone, pyramid and subnets as Keras layers, from images to the outputs of all levels."""

from typing import Any

import keras

from retinanet_tf.config.config import AnchorConfig, ModelConfig
from retinanet_tf.models.fpn import feature_pyramid
from retinanet_tf.models.heads import Subnet
from retinanet_tf.models.layers import PixelNormalization
from retinanet_tf.models.resnet import resnet

_WEIGHTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


def network_of(config: ModelConfig, anchors: AnchorConfig) -> tuple[Any, dict[str, Any]]:
    """Keras' symbolic images `(B, H, W, 3)`, and {"class_logits": `(B, A, K)`, "box_deltas": `(B, A, 4)`} of them."""
    images = keras.Input((None, None, 3), name="images", dtype="float32")
    pixels = PixelNormalization(config.pixel_mean, config.pixel_std, config.channel_order, name="pixels")(images)
    pyramid = feature_pyramid(resnet(pixels, config), config, anchors)
    subnet: dict[str, Any] = {
        "anchors_per_cell": anchors.anchors_per_cell,
        "depth": config.subnet_depth,
        "channels": config.subnet_channels,
        "norm": config.subnet_norm,
        "init_std": config.subnet_init_std,
        "weight_decay": config.weight_decay,
    }
    class_logits = Subnet(config.num_classes, prior=config.prior, name="class_subnet", **subnet)(pyramid)
    box_deltas = Subnet(4, name="box_subnet", **subnet)(pyramid)
    outputs = {
        "class_logits": keras.layers.Concatenate(axis=1, name="class_logits")(class_logits),
        "box_deltas": keras.layers.Concatenate(axis=1, name="box_deltas")(box_deltas),
    }
    return images, outputs


def variables(model: keras.Model) -> dict:
    """A model's weights as {"layer/weight": variable}, e.g. "stem_conv/kernel", "box_subnet/predictor/bias"."""
    layers: dict[str, keras.layers.Layer] = {}
    for layer in model.layers:
        if isinstance(layer, Subnet):
            inner = (*layer.convs, *layer.norms, layer.predictor)
            layers |= {f"{layer.name}/{sublayer.name}": sublayer for sublayer in inner}
        else:
            layers[layer.name] = layer
    named = {f"{name}/{kind}": getattr(layer, kind, None) for name, layer in layers.items() for kind in _WEIGHTS}
    return {name: variable for name, variable in named.items() if variable is not None}
