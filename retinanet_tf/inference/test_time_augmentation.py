"""Test-time augmentation: several sizes and mirror images of an image, merged by NMS or by weighted box fusion."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data import transforms
from retinanet_tf.detection import boxes
from retinanet_tf.detection.postprocess import Candidates, candidates, suppress
from retinanet_tf.errors import InputError
from retinanet_tf.inference.box_fusion import fuse
from retinanet_tf.inference.detector import Detector, Prepared, detect_images

MERGES = ("nms", "fusion")


class AugmentedDetector:
    """A detector that runs on several versions of every image; used like a `Detector`, slower in proportion.

    Args:
        detector: the plain detector.
        image_sizes: shorter sides to resize to; the longer side's limit grows in proportion. Empty: the detector's own.
        flip: whether to run on the mirror image at every size as well.
        merge: 'nms', over the candidates of all versions, as the authors' code has it; or 'fusion', which averages the
            detections of the versions (see `box_fusion.fuse`). What few versions show has a lower score then, so that a
            threshold found for the plain detector is another one here.

    Raises:
        InputError: a size isn't positive, or another `merge`.
    """

    largest_batch = 1  # a larger one gains nothing, and holds whole pictures until it is full

    def __init__(self, detector: Detector, image_sizes: Sequence[int] = (), flip: bool = True, merge: str = "nms"):
        if merge not in MERGES:
            raise InputError(f"merge={merge!r} is not one of {', '.join(MERGES)}.")
        if not isinstance(detector, Detector):
            raise InputError(f"detector={detector!r} must be a Detector.")
        if not np.iterable(image_sizes) or not all(
            isinstance(size, int | np.integer) and size >= 1 for size in image_sizes
        ):
            raise InputError(f"image_sizes={image_sizes!r} must be a list of whole numbers above 0.")
        self.detector, self.label_map, self.config = detector, detector.label_map, detector.config
        ratio = detector.max_size / detector.image_size
        self.sizes = [(size, round(size * ratio)) for size in [*map(int, image_sizes)] or [detector.image_size]]
        for short, long in self.sizes:
            replace(detector.model.config, image_size=short, max_size=long)  # checks them
        self.mirrored, self.merge = ((False, True) if flip else (False,)), merge

    def with_config(self, config: DetectConfig) -> "AugmentedDetector":
        """The same versions with other thresholds and counts."""
        sizes = [short for short, _ in self.sizes]
        return AugmentedDetector(self.detector.with_config(config), sizes, len(self.mirrored) == 2, self.merge)

    def describe(self) -> dict[str, Any]:
        sizes = [short for short, _ in self.sizes]
        settings = {"test_sizes": sizes, "test_flip": len(self.mirrored) == 2, "test_merge": self.merge}
        return {**self.detector.describe(), **settings}

    def __call__(self, images: Any) -> dict[str, tf.Tensor]:
        return detect_images(self, images)

    def prepare(self, image: tf.Tensor) -> Prepared:
        """The image `(H, W, 3)` itself, in float32: each version is made of it. Scale 1, original size."""
        return Prepared(tf.cast(image, tf.float32), tf.ones([2]), tf.cast(tf.shape(image)[:2], tf.float32))

    def detect_prepared(self, batch: Sequence[Prepared]) -> dict[str, tf.Tensor]:
        detect = self._by_nms if self.merge == "nms" else self._by_fusion
        results = [detect(image.canvas) for image in batch]
        return {name: tf.concat([result[name] for result in results], axis=0) for name in results[0]}

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32)])
    def _by_nms(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        size = tf.cast(tf.shape(image)[None, :2], tf.float32)
        versions = self._versions(image, size)
        merged = Candidates(*(tf.concat(values, axis=1) for values in zip(*versions, strict=True)))
        return suppress(merged, size, self.label_map.num_classes, self.config)

    def _by_fusion(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        answer = {name: value.numpy() for name, value in self._each_by_itself(image).items()}
        found = answer["labels"] >= 0
        boxes, scores, labels = (answer[name][found] for name in ("boxes", "scores", "labels"))
        fused = fuse(boxes, scores, labels, versions=len(found))
        depth = self.config.max_detections
        count = min(depth, int((fused[1] > self.config.score_threshold).sum()))
        boxes, scores, labels = (values[:count] for values in fused)
        room = depth - len(boxes)
        return {
            "boxes": tf.constant(np.pad(boxes, ((0, room), (0, 0)))[None]),
            "scores": tf.constant(np.pad(scores, (0, room))[None]),
            "labels": tf.constant(np.pad(labels, (0, room), constant_values=-1)[None], tf.int32),
            "num_detections": tf.constant([len(boxes)], tf.int32),
        }

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32)])
    def _each_by_itself(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """The detections of each version, one row each."""
        size = tf.cast(tf.shape(image)[None, :2], tf.float32)
        answers = [suppress(one, size, self.label_map.num_classes, self.config) for one in self._versions(image, size)]
        return {name: tf.concat([answer[name] for answer in answers], axis=0) for name in answers[0]}

    def _versions(self, image: tf.Tensor, size: tf.Tensor) -> list[Candidates]:
        return [self._candidates(image, size, *sides, flip) for sides in self.sizes for flip in self.mirrored]

    def _candidates(self, image: tf.Tensor, size: tf.Tensor, short: int, long: int, mirrored: bool) -> Candidates:
        sides = short, long, self.detector.resize
        resized, scale = transforms.resize(tf.reverse(image, [1]) if mirrored else image, *sides)
        canvas = self.detector.pad(resized)[None]
        outputs = self.detector.levels(canvas, training=False)
        anchors = self.detector.model.anchors
        result = candidates(
            outputs["class_logits"],
            outputs["box_deltas"],
            anchors.by_level(canvas),
            scale[None],
            size,
            self.config,
            anchors.config,
        )
        return result._replace(boxes=boxes.mirror(result.boxes, size[0, 1])) if mirrored else result
