"""Detector: images of any size in, detections in their own pixels out; evaluation, predict and export all use it."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import Config, DetectConfig
from retinanet_tf.data import transforms
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.detection.rounding import round_up
from retinanet_tf.errors import InputError
from retinanet_tf.inference.images import to_image, to_images
from retinanet_tf.map_ahead import map_ahead
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.xla import resolve_jit_compile

CANVAS_MULTIPLE = 32
"""Resized images are padded at the right and bottom to the next multiple of this, C5's stride."""


class Prepared(NamedTuple):
    """An image as the network takes it."""

    canvas: tf.Tensor  # `(h, w, 3)` float32, resized and padded
    scale: tf.Tensor  # `(2,)` float32, resized over original side, y then x
    size: tf.Tensor  # `(2,)` float32, original height and width


PREPARED_SPEC = Prepared(
    tf.TensorSpec([None, None, 3], tf.float32), tf.TensorSpec([2], tf.float32), tf.TensorSpec([2], tf.float32)
)


class DetectorLike(Protocol):
    """The interface of `Detector`, `AugmentedDetector` and `TiledDetector`, all that `evaluate` and `predict` use."""

    label_map: LabelMap
    config: DetectConfig

    def __call__(self, images: Any) -> dict[str, tf.Tensor]: ...

    def prepare(self, image: tf.Tensor) -> Prepared: ...

    def detect_prepared(self, batch: Sequence[Prepared]) -> dict[str, tf.Tensor]: ...

    def describe(self) -> dict[str, Any]: ...

    def with_config(self, config: DetectConfig) -> "DetectorLike": ...


class Detector(tf.Module):
    """A trained model as a function from images to detections.

    >>> import retinanet_tf as rn
    >>> label_map = rn.data.LabelMap([1, 18], ["person", "dog"])
    >>> model = rn.RetinaNet(num_classes=2, backbone="resnet10_w16", fpn_channels=16, subnet_channels=16)
    >>> detector = Detector(model, label_map, image_size=64, max_size=96)
    >>> detections = detector([np.zeros((40, 60, 3), np.uint8), np.zeros((90, 30, 3), np.uint8)])
    >>> {name: tuple(value.shape) for name, value in detections.items()}
    {'boxes': (2, 100, 4), 'scores': (2, 100), 'labels': (2, 100), 'num_detections': (2,)}
    >>> print(detections["num_detections"].numpy())  # all scores of an untrained network are low
    [0 0]

    Args:
        model: the network.
        label_map: the dataset's category ids and names of the class indices 0…K−1; by default 0…K−1 themselves.
        config: thresholds, counts.
        image_size: shorter side that images are resized to, or both sides if the model's `resize` is 'stretch'; by
            default the model's own.
        max_size: the longer side's limit; by default the model's own.
        jit_compile: compile network and post-processing with XLA, once per canvas size and batch size; 'auto' compiles
            on accelerators. Batches are then filled up to a power of two, which bounds the number of sizes. (Never
            with Keras 2 where several devices keep statistics of batch norm.)

    Raises:
        InputError: `label_map` is no LabelMap, or of another number of classes than the model; a size is out of range.
    """

    def __init__(
        self,
        model: RetinaNet,
        label_map: LabelMap | None = None,
        config: DetectConfig = DetectConfig(),
        image_size: int | None = None,
        max_size: int | None = None,
        jit_compile: bool | str = "auto",
    ):
        super().__init__(name="detector")
        if not isinstance(model, RetinaNet):
            raise InputError(f"model={model!r} is no RetinaNet; load_detector gives a detector of a saved one.")
        if not isinstance(config, DetectConfig):
            raise InputError(f"config of type {type(config).__name__} is no DetectConfig, as `detect` of a Config is.")
        if not isinstance(label_map, LabelMap | None):
            raise InputError(f"label_map={label_map!r} must be a LabelMap, such as LabelMap([1, 2], ['cat', 'dog']).")
        num_classes = model.config.num_classes
        self.label_map = label_map or LabelMap(list(range(num_classes)), [str(i) for i in range(num_classes)])
        if self.label_map.num_classes != num_classes:
            raise InputError(
                f"num_classes={num_classes} of the model disagrees with the {self.label_map.num_classes} categories of "
                "the label map; use the labels.json that the model was trained with."
            )
        self.model, self.config = model, config
        # The same network without its last concatenation, a copy of 36 MB per image that only training needs.
        outputs = {name: model.get_layer(name).input for name in ("class_logits", "box_deltas")}
        self.levels = keras.Model(model.input, outputs, name="levels")
        # Of Keras 2's batch norm each device keeps its own statistics, and XLA reaches those of one device alone.
        spread = model.distribute_strategy.num_replicas_in_sync > 1 and any(
            getattr(weight, "synchronization", None) == tf.VariableSynchronization.ON_READ for weight in model.weights
        )
        self.jit_compile = resolve_jit_compile(jit_compile) and not spread
        # XLA compiles a graph for each size and number of canvases; without it one graph takes all.
        specs = [tf.TensorSpec(shape, tf.float32) for shape in ([None, None, None, 3], [None, 2], [None, 2])]
        signature = None if self.jit_compile else specs
        self._run = tf.function(self._detect, signature, jit_compile=self.jit_compile or None, autograph=False)
        self.image_size = model.config.image_size if image_size is None else image_size
        self.resize = model.config.resize
        if max_size is None:
            max_size = self.image_size if self.resize == "stretch" else model.config.max_size
        self.max_size = max_size
        dataclasses.replace(model.config, image_size=self.image_size, max_size=self.max_size)  # checks them together

    @classmethod
    def from_config(cls, config: Config, model: RetinaNet, label_map: LabelMap | None = None) -> "Detector":
        """A detector with the thresholds of a whole configuration."""
        return cls(model, label_map, config.detect)

    def with_config(self, config: DetectConfig) -> "Detector":
        """The same network with other thresholds and counts."""
        sizes = self.image_size, self.max_size
        return type(self)(self.model, self.label_map, config, *sizes, jit_compile=self.jit_compile)

    def describe(self) -> dict[str, Any]:
        """Sizes and thresholds, as plain values for metrics.json and export.json."""
        sizes = {"image_size": self.image_size, "max_size": self.max_size, "resize": self.resize}
        return {**sizes, **dataclasses.asdict(self.config)}

    def __call__(self, images: Any) -> dict[str, tf.Tensor]:
        """Detects objects.

        Args:
            images: one image, a list of images whose sizes may differ, or a batch `(B, H, W, 3)`. An image is the
                path of a file (turned upright as its EXIF data say), encoded bytes (as they are stored), a Pillow
                image, or an array of RGB, grey or RGBA pixels in 0–255, `(H, W, 3)`, `(H, W)`, `(H, W, 1)` or
                `(H, W, 4)`; alpha is dropped.

        Returns:
            {"boxes": `(B, D, 4)` float32 xyxy in each image's own pixels, "scores": `(B, D)` float32 descending,
            "labels": `(B, D)` int32 class indices (−1 where empty), "num_detections": `(B,)` int32}; D is
            `config.max_detections`, B is 1 for one image. `label_map.ids` has the dataset's ids of the indices.

        Raises:
            InputError: an element is no image, or its values aren't in 0–255; its index is named.
        """
        return detect_images(self, images)

    def prepare(self, image: tf.Tensor) -> Prepared:
        """Resizes one image `(H, W, 3)` and pads it to its canvas; eagerly and in graphs."""
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        resized, scale = transforms.resize(image, self.image_size, self.max_size, self.resize)
        return Prepared(self.pad(resized), scale, size)

    def pad(self, resized: tf.Tensor) -> tf.Tensor:
        """Puts a resized image at the top left of its canvas."""
        height, width = tf.unstack(round_up(tf.shape(resized)[:2], CANVAS_MULTIPLE))
        return transforms.pad_to(resized, height, width, self.model.config.pixel_mean)

    def detect_prepared(self, batch: Sequence[Prepared]) -> dict[str, tf.Tensor]:
        """Detections on one or more images with canvases of one size, in order.

        In the scope of a strategy its replicas share the batch; every image is counted once.
        """
        strategy, count = tf.distribute.get_strategy(), len(batch)
        replicas = strategy.num_replicas_in_sync
        share = round_up(count, replicas) // replicas
        if self.jit_compile:
            share = 1 << (share - 1).bit_length()
        # Equal shares: the last image fills up the last ones, and its further results are cut off.
        filled = [batch[min(index, count - 1)] for index in range(replicas * share)]
        if replicas == 1:
            return {name: value[:count] for name, value in self.detect_canvases(*stack(filled)).items()}
        shares = [stack(filled[start : start + share]) for start in range(0, len(filled), share)]
        values = strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
        # A lambda, since a function with an input signature doesn't take a strategy's values.
        answers = strategy.run(lambda prepared: self.detect_canvases(*prepared), args=(values,))
        local = strategy.experimental_local_results
        return {name: tf.concat(local(value), axis=0)[:count] for name, value in answers.items()}

    def detect_canvases(self, canvases: tf.Tensor, scales: tf.Tensor, sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Network and post-processing on one batch of equally large canvases `(B, h, w, 3)`."""
        return self._run(canvases, scales, sizes)

    def _detect(self, canvases, scales, sizes):
        outputs = self.levels(canvases, training=False)
        return self.select(outputs, canvases, scales, sizes, self.jit_compile)

    def select(
        self,
        outputs: dict[str, list[tf.Tensor]],
        canvases: tf.Tensor,
        scales: tf.Tensor,
        sizes: tf.Tensor,
        static_shapes: bool = False,
    ) -> dict[str, tf.Tensor]:
        """Post-processing of what the network returns for canvases; see `select_detections`."""
        anchors = self.model.anchors
        return select_detections(
            outputs["class_logits"],
            outputs["box_deltas"],
            anchors.by_level(canvases),
            scales,
            sizes,
            self.config,
            anchors.config,
            static_shapes,
        )


def stack(batch: Sequence[Prepared]) -> Prepared:
    """Images with canvases of one size as one batch."""
    return Prepared(*(tf.stack(values) for values in zip(*batch, strict=True)))


def detect_images(detector: DetectorLike, images: Any) -> dict[str, tf.Tensor]:
    """`detector(images)`: see `Detector.__call__`."""
    prepared = [detector.prepare(to_image(image, index)) for index, image in enumerate(to_images(images))]
    order: list[int] = []
    answers: list[dict[str, tf.Tensor]] = []
    for indices, batch in batches_by_canvas(prepared):
        order += indices
        answers.append(detector.detect_prepared(batch))
    if not answers:
        return empty_detections(0, detector.config)
    rows = np.argsort(order)
    return {name: tf.gather(tf.concat([answer[name] for answer in answers], axis=0), rows) for name in answers[0]}


def detect_all(
    detector: DetectorLike, images: Iterable[bytes | np.ndarray], batch_size: int = 8
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Runs a detector over many images (encoded, or arrays) of any sizes; threads decode ahead of the network.

    Images with equal canvases are batched however far apart they come, so results don't come in the input's order.
    In the scope of a strategy every replica gets `batch_size` of them.

    Yields:
        (index of the image, {"boxes" (n, 4), "scores" (n,), "labels" (n,)} in its own pixels), each image once.

    Raises:
        InputError: an image that doesn't decode, named by its index.
    """
    batch_size *= tf.distribute.get_strategy().num_replicas_in_sync
    batch_size = min(batch_size, getattr(detector, "largest_batch", batch_size))
    prepared = map_ahead(lambda item: detector.prepare(to_image(item[1], item[0])), enumerate(images))
    for indices, batch in batches_by_canvas(prepared, batch_size):
        answer = {name: value.numpy() for name, value in detector.detect_prepared(batch).items()}
        for row, index in enumerate(indices):
            count = answer["num_detections"][row]
            yield index, {name: answer[name][row, :count] for name in ("boxes", "scores", "labels")}


def batches_by_canvas(
    prepared: Iterable[Prepared], batch_size: float = math.inf
) -> Iterator[tuple[list[int], list[Prepared]]]:
    """Batches of images with equal canvases, with their indices in the input; the smaller ones last."""
    waiting: dict[tuple, tuple[list[int], list[Prepared]]] = {}
    for index, image in enumerate(prepared):
        indices, batch = waiting.setdefault(tuple(image.canvas.shape), ([], []))
        indices.append(index)
        batch.append(image)
        if len(batch) == batch_size:
            yield waiting.pop(tuple(image.canvas.shape))
    yield from waiting.values()


def empty_detections(count: int | tf.Tensor, config: DetectConfig) -> dict[str, tf.Tensor]:
    """A detector's answer for `count` images, all zeros."""
    depth = config.max_detections
    return {
        "boxes": tf.zeros([count, depth, 4]),
        "scores": tf.zeros([count, depth]),
        "labels": tf.zeros([count, depth], tf.int32),
        "num_detections": tf.zeros([count], tf.int32),
    }
