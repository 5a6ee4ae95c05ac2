"""RetinaNet: backbone, pyramid, subnets and anchors as one Keras model that trains with plain `model.fit`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig, AssignConfig, Config, ModelConfig
from retinanet_tf.detection.anchors import Anchors
from retinanet_tf.detection.assignment import IGNORED, assign
from retinanet_tf.losses.box import pack_box_targets
from retinanet_tf.losses.mining import mine
from retinanet_tf.losses.normalizers import normalizer_weights
from retinanet_tf.models.fpn import feature_pyramid
from retinanet_tf.models.heads import Subnet
from retinanet_tf.models.layers import PixelNormalization
from retinanet_tf.models.resnet import resnet
from retinanet_tf.models.train_step import Step

_WEIGHTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


@keras.saving.register_keras_serializable(package="retinanet_tf")
class RetinaNet(keras.Model):
    """The detector of §4.

    Input: images `(B, H, W, 3)`, RGB in 0–255, uint8 or float, any size (a multiple of 2^max_level wastes nothing).
    Output: {"class_logits": `(B, A, K)`, "box_deltas": `(B, A, 4)`}, anchors in the order of `model.anchors(images)`.

    Training targets are {"boxes": `(B, M, 4)` xyxy pixels, "labels": `(B, M)` int32, negative where padded}: the
    model assigns them to its anchors on the device, inside the training step, and hands the losses one target per
    anchor.

    >>> import retinanet_tf as rn
    >>> model = RetinaNet(num_classes=3, backbone="resnet10_w16", fpn_channels=16, subnet_channels=16)
    >>> model.compile(optimizer="sgd", loss=rn.retinanet_losses())
    >>> images = tf.zeros((1, 64, 96, 3))
    >>> {name: tuple(output.shape) for name, output in model(images).items()}
    {'class_logits': (1, 1161, 3), 'box_deltas': (1, 1161, 4)}
    >>> tuple(model.anchors(images).shape)
    (1161, 4)

    Args:
        num_classes: K.
        backbone: a name of `retinanet_tf.models.resnet.VARIANTS`.
        anchors: sizes, ratios, levels.
        assign: thresholds of the assignment.
        normalizer: 'image', 'replica' or 'global', see `retinanet_tf.losses.normalizers`.
        mining: 'none', 'ohem' or 'ohem_1_3', see `retinanet_tf.losses.mining`.
        mining_examples: anchors per image that mining keeps at most.
        mining_nms: IoU above which mining drops the easier of two anchors.
        name: Keras' name of the model.
        **network: any other field of `ModelConfig`.
    """

    def __init__(
        self,
        num_classes: int = 80,
        backbone: str = "resnet50",
        anchors: AnchorConfig = AnchorConfig(),
        assign: AssignConfig = AssignConfig(),
        normalizer: str = "image",
        mining: str = "none",
        mining_examples: int = 128,
        mining_nms: float = 0.5,
        name: str = "retinanet",
        **network: Any,
    ):
        config = ModelConfig(num_classes=num_classes, backbone=backbone, **network)
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
        super().__init__(inputs=images, outputs=outputs, name=name)
        self.config = config
        self.anchors = Anchors(anchors, name="anchors", dtype="float32")
        self.anchors.build((None, None, None, 3))
        self.assign_config = assign
        self.normalizer = normalizer
        self.step: Step | None = None
        """Accumulation, bias learning rate and EMA (`retinanet_tf.models.train_step`); None for Keras' step."""
        self.mining: dict[str, Any] = {"mining": mining, "mining_examples": mining_examples, "mining_nms": mining_nms}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        """The compiled losses on the targets that assignment makes of `y`, weighted by the normaliser.

        Args:
            x: images `(B, H, W, 3)`.
            y: {"boxes": `(B, M, 4)`, "labels": `(B, M)`}.
            y_pred: the model's outputs on `x`.
            sample_weight: optional `(B,)` factors on the images' losses.
            **kwargs: passed on to Keras.

        Returns:
            The scalar loss, weight decay included.
        """
        assigned = y if "class_targets" in y else self.assign(x, y)
        class_targets, box_targets, weights = (assigned[key] for key in ("class_targets", "box_targets", "weights"))
        if self.mining["mining"] != "none":
            loss = self.loss["class_logits"]
            chosen = mine(loss, class_targets, y_pred["class_logits"], self.anchors(x), **self.mining)
            class_targets = chosen.class_targets
            parts = {**y_pred, "box_targets": box_targets}
            y_pred = {name: tf.gather(part, chosen.anchors, batch_dims=1) for name, part in parts.items()}
            box_targets = y_pred.pop("box_targets")
            kept = tf.cast(class_targets != IGNORED, tf.float32)
            weights = normalizer_weights(tf.reduce_sum(kept, axis=1), self.normalizer)
        if sample_weight is not None:
            weights *= tf.cast(sample_weight, tf.float32)
        return super().compute_loss(
            x=x,
            y={"class_logits": class_targets, "box_deltas": pack_box_targets(box_targets, class_targets >= 0)},
            y_pred=y_pred,
            sample_weight={"class_logits": weights, "box_deltas": weights},
            **kwargs,
        )

    def assign(self, images: tf.Tensor, y: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Assigns anchors to the objects {"boxes", "labels"}. `compute_loss` accepts the result in their place.

        Returns:
            {"class_targets": `(B, A)` int32, "box_targets": `(B, A, 4)`, "positive": `(B, A)` bool, "weights": `(B,)`
            of the normaliser}.
        """
        assigned = assign(self.anchors(images), y["boxes"], y["labels"], self.assign_config)
        counts = tf.reduce_sum(tf.cast(assigned.positive, tf.float32), axis=1)
        return {**assigned._asdict(), "weights": normalizer_weights(counts, self.normalizer)}

    def compile(self, *args: Any, jit_compile: bool | str = False, **kwargs: Any) -> None:
        """Keras' own, except that XLA is opt-in and that the step's variables are created at once.

        Keras 3's "auto" compiles on accelerators, and XLA compiles anew, some 20 s each time, for every canvas and
        number of objects that `data.load` yields. Variables that are created while the step is traced make TensorFlow
        trace it a second time.
        """
        super().compile(*args, jit_compile=jit_compile, **kwargs)
        with self.distribute_strategy.scope():
            if hasattr(self.optimizer, "build"):
                self.optimizer.build(self.trainable_variables)
            if self.loss:
                self.distribute_strategy.run(tf.function(self._loss_without_anchors))
                self.reset_metrics()

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compiles a loaded model; Keras' own refuses where `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _loss_without_anchors(self) -> None:
        """Creates the metrics of the compiled losses."""
        nothing = {name: tf.zeros((1, 0, output.shape[-1])) for name, output in self.output.items()}
        assigned = {
            "class_targets": tf.zeros((1, 0), tf.int32),
            "box_targets": tf.zeros((1, 0, 4)),
            "weights": tf.ones((1,)),
        }
        self.compute_loss(tf.zeros((1, 0, 0, 3)), assigned, nothing)

    def train_step(self, data):
        """Keras' step, or the one of `self.step`."""
        if self.step is None:
            return super().train_step(data)
        images, y = data
        self.step(self, images, y)
        return self.get_metrics_result()

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The tracked losses. Keras 2 would compare the structures of `y` and `y_pred`, which differ by design."""
        return self.get_metrics_result()

    def get_config(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.config),
            "anchors": dataclasses.asdict(self.anchors.config),
            "assign": dataclasses.asdict(self.assign_config),
            "normalizer": self.normalizer,
            **self.mining,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any], custom_objects=None) -> "RetinaNet":
        """Builds a model from a `Config` (`presets["paper"]`) or from what `get_config` returned."""
        if isinstance(config, Config):
            return cls(
                **dataclasses.asdict(config.model),
                anchors=config.anchors,
                assign=config.assign,
                normalizer=config.loss.normalizer,
                mining=config.loss.mining,
                mining_examples=config.loss.mining_examples,
                mining_nms=config.loss.mining_nms,
            )
        values = dict(config)
        anchors, assign = AnchorConfig(**values.pop("anchors")), AssignConfig(**values.pop("assign"))
        return cls(**values, anchors=anchors, assign=assign)


def variables(model: RetinaNet) -> dict:
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
