"""RetinaNet: backbone, pyramid, subnets and anchors as one Keras model that trains with plain `model.fit`."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from typing import Any

import keras
import tensorflow as tf

from retinanet_tf.compat import leave_out_of_files
from retinanet_tf.config.config import AnchorConfig, AssignConfig, Config, LossConfig, ModelConfig
from retinanet_tf.detection.anchors import Anchors
from retinanet_tf.detection.assignment import BACKGROUND, IGNORED, assign
from retinanet_tf.errors import InputError
from retinanet_tf.losses.box import BoxLoss, pack_box_targets
from retinanet_tf.losses.classification import ClassificationLoss
from retinanet_tf.losses.mining import mine
from retinanet_tf.losses.normalizers import normalizer_weights
from retinanet_tf.models.fit import FitsCheckedData
from retinanet_tf.models.fit_data import check_structure, dense, valid_images
from retinanet_tf.models.frozen_stages import FreezableModel, names_of_stages
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.network import network_of
from retinanet_tf.models.train_step import Step, replica_part
from retinanet_tf.xla import resolve_jit_compile


@keras.saving.register_keras_serializable(package="retinanet_tf")
class RetinaNet(FitsCheckedData, FreezableModel):
    """The detector of §4.

    Input: images `(B, H, W, 3)`, RGB in 0–255, uint8 or float, any size (a multiple of 2^max_level wastes nothing).
    Output: {"class_logits": `(B, A, K)`, "box_deltas": `(B, A, 4)`}, anchors in the order of `model.anchors(images)`.

    Training targets are {"boxes": `(B, M, 4)` xyxy pixels, "labels": `(B, M)` 0…K−1, or −1 where padded}: the model
    assigns them to its anchors on the device, inside the training step, and hands the losses one target per anchor.
    `RetinaNet.from_config(model.get_config())` is a copy that trains; `keras.models.clone_model` of Keras 3 is refused,
    since it would give a plain functional model of the same layers.

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

    Raises:
        InputError: an unknown argument, or a value of the wrong type or out of range.
    """

    def __init__(
        self,
        num_classes: int = 80,
        backbone: str = "resnet50",
        *more: Any,
        anchors: AnchorConfig = AnchorConfig(),
        assign: AssignConfig = AssignConfig(),
        normalizer: str = "image",
        mining: str = "none",
        mining_examples: int = 128,
        mining_nms: float = 0.5,
        name: str = "retinanet",
        **network: Any,
    ):
        # `*more` makes Keras 3's clone_model call this with (inputs, outputs); else it returns another class.
        if isinstance(backbone, Mapping):
            raise InputError("clone_model can't copy a RetinaNet; use RetinaNet.from_config(model.get_config()).")
        if more:
            raise InputError("RetinaNet takes num_classes and backbone by position, all other arguments by name.")
        if unknown := network.keys() - {field.name for field in dataclasses.fields(ModelConfig)}:
            raise InputError(f"RetinaNet has no argument {', '.join(sorted(unknown))}.")
        for argument, value, kind in (("anchors", anchors, AnchorConfig), ("assign", assign, AssignConfig)):
            if not isinstance(value, kind):
                raise InputError(f"{argument}={value!r} is no {kind.__name__}.")
        config = ModelConfig(num_classes=num_classes, backbone=backbone, **network)
        if keras.backend.image_data_format() != "channels_last":
            raise InputError(
                "RetinaNet's images are (B, H, W, 3): call keras.backend.set_image_data_format('channels_last') first."
            )
        chosen: dict[str, Any] = {"mining": mining, "mining_examples": mining_examples, "mining_nms": mining_nms}
        LossConfig(normalizer=normalizer, **chosen)
        images, outputs = network_of(config, anchors)
        super().__init__(inputs=images, outputs=outputs, name=name)
        self.config = config
        self.anchors = Anchors(anchors, name="anchors", dtype="float32")
        self.anchors.build((None, None, None, 3))
        self.assign_config = assign
        self.normalizer = normalizer
        self.step = Step()
        """Accumulation, bias learning rate and EMA (`retinanet_tf.models.train_step`)."""
        self.compiles_replicas = False
        self.mining = chosen

    @property
    def backbone(self) -> keras.Model:
        """Images → [C3, C4, C5], of the model's own layers: `model.backbone.trainable = False` freezes them.

        True makes them trainable again, but for the stages that `freeze_stages` fixed. Set it before `compile`, and
        itself, not through a model around it, where Keras 2 goes past it.
        """
        stages = [self.get_layer(f"fpn_lateral{level}").input for level in (3, 4, 5)]
        return FreezableModel(self.input, stages, name=self.config.backbone)

    def freeze_until(self, stage: int) -> None:
        """Keeps the backbone's stages up to `stage` as they are, for fine-tuning: 1 is the stem, 5 all of it.

        It is `freeze_stages` for a model that exists, such as a loaded one. Call it before `compile`. Normalisation in
        those stages computes with its stored statistics.

        Raises:
            InputError: fewer stages than the model was built to freeze, or more than five.
        """
        if not isinstance(stage, Integral) or not self.config.freeze_stages <= stage <= 5:
            raise InputError(
                f"stage={stage!r} must be a whole number from {self.config.freeze_stages} to 5: the model was built "
                f"with freeze_stages={self.config.freeze_stages}; for fewer build one and set its weights."
            )
        for layer in self.layers:
            if layer.name.startswith(names_of_stages(stage)):
                layer.trainable = False

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras' own.

        Raises:
            InputError: the older HDF5 layout, from which Keras can't load this model.
        """
        if str(filepath).endswith((".h5", ".hdf5")) or kwargs.get("save_format") == "h5":
            raise InputError(f"{filepath}: a whole RetinaNet can't be saved as HDF5; save it as .keras.")
        return super().save(filepath, *args, **kwargs)

    def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras' own.

        Raises:
            InputError: the older HDF5 layout, which can't hold this model's weights.
        """
        older = str(filepath).endswith((".h5", ".hdf5")) or kwargs.get("save_format") == "h5"
        if older and not str(filepath).endswith(".weights.h5"):
            raise InputError(f"{filepath} must end in .weights.h5: the older HDF5 layout can't hold these weights.")
        return super().save_weights(filepath, *args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        """The compiled losses on the targets that assignment makes of `y`, weighted by the normaliser.

        Args:
            x: images `(B, H, W, 3)`.
            y: {"boxes": `(B, M, 4)`, "labels": `(B, M)`}, and optional "sample_weight" `(B,)`. A label beyond K − 1 or
                below −1 and a box that is NaN or inverted make the loss NaN.
            y_pred: the model's outputs on `x`.
            sample_weight: optional `(B,)` factors on the images' losses.
            **kwargs: passed on to Keras.

        Returns:
            The scalar loss, weight decay included.

        Raises:
            InputError: `y` has other keys, shapes or types.
        """
        assigned = y if "class_targets" in y else self.assign(x, y)
        class_targets, box_targets, weights = (assigned[key] for key in ("class_targets", "box_targets", "weights"))
        if self.mining["mining"] != "none":
            loss = self.loss["class_logits"]
            compiled = self.xla_scope != "nothing"
            logits = y_pred["class_logits"]
            chosen = mine(loss, class_targets, logits, self.anchors(x), **self.mining, static_shapes=compiled)
            class_targets = chosen.class_targets
            parts = {**y_pred, "box_targets": box_targets}
            y_pred = {name: tf.gather(part, chosen.anchors, batch_dims=1) for name, part in parts.items()}
            box_targets = y_pred.pop("box_targets")
            kept = tf.cast(class_targets != IGNORED, tf.float32)
            weights = normalizer_weights(tf.reduce_sum(kept, axis=1), self.normalizer)
        weights *= assigned["factors"]
        if sample_weight is not None:
            weights *= tf.reshape(tf.cast(sample_weight, tf.float32), tf.shape(weights))
        # Keras 2 would round the targets to a half-precision output's type.
        y_pred = {**y_pred, "box_deltas": tf.cast(y_pred["box_deltas"], tf.float32)}
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
            of the normaliser, "factors": `(B,)`, the sample weights, or NaN where the targets are wrong}.
        """
        check_structure(images, y)
        y = dense(y)
        boxes, labels = y["boxes"], y["labels"]

        def match(images, boxes, labels):
            return assign(self.anchors(images), boxes, labels, self.assign_config)

        assigned = replica_part(self, match)(images, boxes, labels)
        counts = tf.reduce_sum(tf.cast(assigned.positive, tf.float32), axis=1)
        factors = tf.reshape(tf.cast(y.get("sample_weight", tf.ones_like(counts)), tf.float32), tf.shape(counts))
        factors = tf.where(valid_images(boxes, labels, self.config.num_classes), factors, float("nan"))
        return {**assigned._asdict(), "weights": normalizer_weights(counts, self.normalizer), "factors": factors}

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        loss_weights: Mapping[str, float] | None = None,
        jit_compile: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """Keras' own, with one policy for XLA, and with the step's variables created at once.

        jit_compile='auto' compiles on accelerators (`retinanet_tf.xla`): the whole step on one device, on several each
        replica's part, which is assignment, forward pass, losses and gradients. A step compiles once for each canvas
        and length M of the targets; `data.load` makes few, and `fit` pads M to a power of two. Two cases of several
        replicas can't be compiled in parts: norm='batch' or subnet_norm='batch', and mining with normalizer='global'.
        `xla_scope` says what is compiled.

        (Variables that are created while the step is traced would make TensorFlow trace it a second time.)

        Raises:
            InputError: the losses aren't those of `retinanet_losses`, their weights aren't given by name, or there are
                metrics.
        """
        wanted: dict[str, type] = {"class_logits": ClassificationLoss, "box_deltas": BoxLoss}
        given = loss if isinstance(loss, Mapping) else {}
        if set(given) != set(wanted) or not all(isinstance(given[name], kind) for name, kind in wanted.items()):
            raise InputError(
                "compile needs loss=retinanet_losses(), or a dictionary with a ClassificationLoss for 'class_logits' "
                "and a BoxLoss for 'box_deltas'; others don't know this model's targets."
            )
        if loss_weights is not None:
            named = isinstance(loss_weights, Mapping) and set(loss_weights) <= set(wanted)
            if not named or not all(isinstance(w, Real) and 0 <= w < math.inf for w in loss_weights.values()):
                raise InputError(
                    f"loss_weights={loss_weights!r} must be a dictionary with {' or '.join(map(repr, wanted))} and "
                    "numbers of at least 0."
                )
            loss_weights = {name: float(loss_weights.get(name, 1.0)) for name in wanted}
        if kwargs.get("metrics") or kwargs.get("weighted_metrics"):
            raise InputError("metrics can't be computed while training; use retinanet_tf.evaluate or CocoEvaluation.")
        compiles, self.xla = resolve_jit_compile(jit_compile), jit_compile
        if kwargs.get("run_eagerly") and jit_compile in ("auto", None):
            compiles = False
        replicas = self.distribute_strategy.num_replicas_in_sync
        kwargs |= {"loss_weights": loss_weights, "jit_compile": compiles and replicas == 1}
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        whole = self.mining["mining"] != "none" and self.normalizer == "global"
        self.compiles_replicas = compiles and replicas > 1 and not whole and not self.trains_statistics
        with self.distribute_strategy.scope():
            if hasattr(self.optimizer, "build"):
                self.optimizer.build(self.trainable_variables)
            self.distribute_strategy.run(tf.function(self._loss_of_background, autograph=False))
            self.reset_metrics()
        leave_out_of_files(self.metrics)

    @property
    def trains_statistics(self) -> bool:
        """Whether some norm takes its statistics from the batch, which several replicas exchange."""
        return "batch" in (self.config.norm, self.config.subnet_norm)

    @property
    def xla_scope(self) -> str:
        """What XLA compiles of the training step: 'step', 'replica' (each replica's part) or 'nothing'."""
        return "replica" if self.compiles_replicas else "step" if self.jit_compile else "nothing"

    def get_compile_config(self) -> Any:
        """Keras' own, with the caller's word on XLA: another machine may compile where this one doesn't."""
        config = super().get_compile_config()
        return {**config, "jit_compile": self.xla} if config else config

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compiles a loaded model; Keras' own refuses where `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _loss_of_background(self) -> None:
        """Creates the metrics of the compiled losses."""
        images = tf.zeros((1, 32, 32, 3))
        count = self.anchors.compute_output_shape(images.shape)[0]
        outputs = {name: tf.zeros((1, count, output.shape[-1])) for name, output in self.output.items()}
        assigned = {
            "class_targets": tf.fill((1, count), BACKGROUND),
            "box_targets": tf.zeros((1, count, 4)),
            "weights": tf.ones((1,)),
            "factors": tf.ones((1,)),
        }
        self.compute_loss(images, assigned, outputs)

    @tf.autograph.experimental.do_not_convert  # as Keras 3 has it; to convert takes longer than to trace
    def train_step(self, data):
        """The step of `self.step`."""
        images, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with _after(data):
            self.step(self, images, y if sample_weight is None else {**y, "sample_weight": sample_weight})
            return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, Any]:
        """Keras' own."""
        with _after(data):
            return super().test_step(data)

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
            "frozen": self.frozen,
            "precision": self.get_layer("class_subnet").dtype_policy.name.removeprefix("mixed_"),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any], custom_objects=None) -> "RetinaNet":
        """Builds a model from a `Config` (`presets["paper"]`) or from what `get_config` returned.

        Raises:
            InputError: it is neither, or has an unknown or wrong argument.
        """
        if isinstance(config, Config):
            names = ("normalizer", "mining", "mining_examples", "mining_nms")
            of_loss = {name: getattr(config.loss, name) for name in names}
            return cls(**dataclasses.asdict(config.model), anchors=config.anchors, assign=config.assign, **of_loss)
        if not isinstance(config, Mapping):
            raise InputError(
                f"config={config!r} must be a Config, such as presets['paper'], or what get_config returned."
            )
        values = dict(config)
        anchors, assign = AnchorConfig(**values.pop("anchors", {})), AssignConfig(**values.pop("assign", {}))
        frozen, precision = values.pop("frozen", None), values.pop("precision", None)
        with precision_policy(precision) if precision else nullcontext():
            model = cls(**values, anchors=anchors, assign=assign)
        if frozen is not None:
            model.freeze(frozen)
        return model


def _after(data: Any) -> AbstractContextManager:
    """Lets nothing run before the batch is there: Keras 3 would count an update more where data ends unannounced."""
    return tf.control_dependencies([part for part in tf.nest.flatten(data, expand_composites=True) if part is not None])
