"""Detector: images of any size in, detections in their own pixels out; the one path of evaluation and serving."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import Config, DetectConfig
from retinanet_tf.data import transforms
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.errors import InputError
from retinanet_tf.models.retinanet import RetinaNet

CANVAS_MULTIPLE = 32
"""Resized images are padded at the right and bottom to the next multiple of this, C5's stride."""


class Detector(tf.Module):
    """A trained model as a function from images to detections.

    >>> import retinanet_tf as rn
    >>> labels = rn.data.LabelMap([1, 18], ["person", "dog"])
    >>> model = rn.RetinaNet(num_classes=2, backbone="resnet10_w16", fpn_channels=16, subnet_channels=16)
    >>> detector = Detector(model, labels, image_size=64, max_size=96)
    >>> found = detector([np.zeros((40, 60, 3), np.uint8), np.zeros((90, 30, 3), np.uint8)])
    >>> {name: tuple(value.shape) for name, value in found.items()}
    {'boxes': (2, 100, 4), 'scores': (2, 100), 'labels': (2, 100), 'num_detections': (2,)}
    >>> print(found["num_detections"].numpy())  # an untrained network is sure of nothing
    [0 0]

    Args:
      model: the network.
      label_map: the dataset's category ids and names behind the class indices 0…K−1; by default 0…K−1 themselves.
      config: thresholds, counts.
      image_size: shorter side that images are resized to; by default the model's own.
      max_size: the longer side's limit; by default the model's own.
      jit_compile: let XLA compile the network, once for every canvas size and batch size. What comes after it has
        no static shapes and is never compiled.

    Raises:
      InputError: the label map's number of classes isn't the model's.
    """

    def __init__(
        self,
        model: RetinaNet,
        label_map: LabelMap | None = None,
        config: DetectConfig = DetectConfig(),
        image_size: int | None = None,
        max_size: int | None = None,
        jit_compile: bool = False,
    ):
        super().__init__(name="detector")
        num_classes = model.config.num_classes
        self.label_map = label_map or LabelMap(list(range(num_classes)), [str(i) for i in range(num_classes)])
        if self.label_map.num_classes != num_classes:
            raise InputError(
                f"num_classes={num_classes} of the model disagrees with the {self.label_map.num_classes} categories of "
                "the label map; use the labels.json that the model was trained with."
            )
        self.model, self.config = model, config
        # The same network without its last concatenation: a copy of 36 MB an image that only training needs.
        outputs = {name: model.get_layer(name).input for name in ("class_logits", "box_deltas")}
        self.levels = keras.Model(model.input, outputs)
        self.jit_compile = jit_compile
        self.image_size = image_size or model.config.image_size
        self.max_size = max_size or model.config.max_size

    @classmethod
    def from_config(cls, config: Config, model: RetinaNet, label_map: LabelMap | None = None) -> "Detector":
        """A detector with the thresholds of a whole configuration."""
        return cls(model, label_map, config.detect)

    def __call__(self, images: np.ndarray | tf.Tensor | Sequence) -> dict[str, tf.Tensor]:
        """Detects objects.

        Args:
          images: a list of `(H, W, 3)` RGB arrays in 0–255 (uint8 or float) whose sizes may differ, a list of encoded
            images (bytes), or one batch `(B, H, W, 3)`.

        Returns:
          {"boxes": `(B, D, 4)` float32 xyxy in each image's own pixels, "scores": `(B, D)` float32 descending,
          "labels": `(B, D)` int32 class indices (−1 where empty), "num_detections": `(B,)` int32}; D is
          `config.max_detections`. `label_map.ids` has the dataset's ids of the indices.

        Raises:
          InputError: an element that is no RGB image, named by its index.
        """
        prepared = [self.prepare(to_image(image, index)) for index, image in enumerate(images)]
        return self.detect_prepared(prepared)

    def prepare(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Resizes one image `(H, W, 3)` and pads it to its canvas; eagerly and in graphs.

        Returns:
          the canvas `(h, w, 3)` float32, the scale `(2,)` (resized over original, y then x), the original size `(2,)`.
        """
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        resized, scale = transforms.resize(image, self.image_size, self.max_size)
        return self.pad(resized), scale, size

    def pad(self, resized: tf.Tensor) -> tf.Tensor:
        """Puts a resized image at the top left of its canvas, the next multiples of CANVAS_MULTIPLE."""
        height, width = tf.unstack(-(-tf.shape(resized)[:2] // CANVAS_MULTIPLE) * CANVAS_MULTIPLE)
        return transforms.pad_to(resized, height, width, self.model.config.pixel_mean)

    def detect_prepared(self, prepared: Sequence[tuple]) -> dict[str, tf.Tensor]:
        """Detections of what `prepare` returned, in order; equal canvases go through the network together.

        In the scope of a strategy its replicas share each group; every image is counted once.
        """
        groups: dict[tuple, list[int]] = {}
        for index, (canvas, _, _) in enumerate(prepared):
            groups.setdefault(tuple(canvas.shape), []).append(index)
        results: list = [None] * len(prepared)
        for members in groups.values():
            batch = [tf.stack(part) for part in zip(*(prepared[index] for index in members), strict=True)]
            found = self._on_replicas(batch)
            for position, index in enumerate(members):
                results[index] = {name: value[position] for name, value in found.items()}
        if not results:
            return self._nothing()
        return {name: tf.stack([result[name] for result in results]) for name in results[0]}

    def _on_replicas(self, batch: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """`detect_canvases` by the replicas of the strategy in scope, an equal part each; order as given."""
        strategy, count = tf.distribute.get_strategy(), len(batch[0])
        replicas = strategy.num_replicas_in_sync
        if replicas == 1:
            return self.detect_canvases(*batch)
        part = -(-count // replicas)
        # What is missing to equal parts is filled with the last image; its further answers are cut off again.
        places = [[min(replica * part + k, count - 1) for k in range(part)] for replica in range(replicas)]
        values = [
            strategy.experimental_distribute_values_from_function(
                lambda context, whole=whole: tf.gather(whole, places[context.replica_id_in_sync_group])
            )
            for whole in batch
        ]
        # A function of its own: one with an input signature doesn't take the strategy's values from outside.
        found = strategy.run(lambda *parts: self.detect_canvases(*parts), args=tuple(values))
        return {
            name: tf.concat(strategy.experimental_local_results(value), axis=0)[:count] for name, value in found.items()
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.float32),
            tf.TensorSpec([None, 2], tf.float32),
            tf.TensorSpec([None, 2], tf.float32),
        ]
    )
    def detect_canvases(self, canvases: tf.Tensor, scales: tf.Tensor, sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Network and post-processing on one batch of equally large canvases `(B, h, w, 3)`."""
        network = tf.function(self.levels, jit_compile=True) if self.jit_compile else self.levels
        outputs = network(canvases, training=False)
        anchors = self.model.anchors.by_level(canvases)
        return select_detections(
            outputs["class_logits"],
            outputs["box_deltas"],
            anchors,
            scales,
            sizes,
            self.config,
            self.model.anchors.config,
        )

    def _nothing(self) -> dict[str, tf.Tensor]:
        depth = self.config.max_detections
        return {
            "boxes": tf.zeros([0, depth, 4]),
            "scores": tf.zeros([0, depth]),
            "labels": tf.zeros([0, depth], tf.int32),
            "num_detections": tf.zeros([0], tf.int32),
        }


def to_image(image: Any, index: int) -> tf.Tensor:
    """One element of a detector's input, `images[index]`, as `(H, W, 3)`; encoded ones decoded to uint8.

    Raises:
      InputError: it is no RGB image; the index is named.
    """
    if isinstance(image, bytes) or (isinstance(image, tf.Tensor) and image.dtype == tf.string):
        try:
            return tf.io.decode_image(image, channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            raise InputError(f"images[{index}] can't be decoded as JPEG, PNG, GIF or BMP.") from error
    image = tf.convert_to_tensor(image)
    if image.shape.rank != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"images[{index}] has shape {tuple(image.shape)}; an RGB image is (height, width, 3).")
    return image


def settings(detector: Detector) -> dict:
    """What a detector does besides its network, as plain values: for metrics files and exports."""
    return {
        "image_size": detector.image_size,
        "max_size": detector.max_size,
        **dataclasses.asdict(detector.config),
    }
