"""Test-time augmentation: several sizes and mirrored copies of an image, all their candidates merged before NMS."""

from collections.abc import Sequence

import tensorflow as tf

from retinanet_tf.data import transforms
from retinanet_tf.detection import boxes
from retinanet_tf.detection.postprocess import Candidates, candidates, suppress
from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import Detector


class AugmentedDetector(Detector):
    """A detector that looks at every image several times; used wherever a `Detector` is, but slower in proportion.

    Args:
      detector: the plain detector.
      image_sizes: shorter sides to resize to; the longer side's limit grows in proportion. Empty: the detector's own.
      flip: whether every size is also looked at in its mirror image.

    Raises:
      InputError: a size that is no positive number.
    """

    def __init__(self, detector: Detector, image_sizes: Sequence[int] = (), flip: bool = True):
        if any(size < 1 for size in image_sizes):
            raise InputError(f"image sizes must be above 0, not {', '.join(map(str, image_sizes))}.")
        super().__init__(detector.model, detector.label_map, detector.config, detector.image_size, detector.max_size)
        ratio = detector.max_size / detector.image_size
        sides = [(size, round(size * ratio)) for size in image_sizes] or [(self.image_size, self.max_size)]
        self.variants = [(*side, mirrored) for side in sides for mirrored in ((False, True) if flip else (False,))]

    def prepare(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The image `(H, W, 3)` as it is, in float32: every variant resizes it anew. Scale 1, original size."""
        return tf.cast(image, tf.float32), tf.ones([2]), tf.cast(tf.shape(image)[:2], tf.float32)

    def detect_prepared(self, prepared: Sequence[tuple]) -> dict[str, tf.Tensor]:
        """Detections of what `prepare` returned, in order."""
        results = [self._detect_image(image) for image, _, _ in prepared]
        if not results:
            return self._nothing()
        return {name: tf.stack([result[name] for result in results]) for name in results[0]}

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32)])
    def _detect_image(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        found = [self._variant(image, size, *variant) for variant in self.variants]
        merged = Candidates(*(tf.concat(parts, axis=0) for parts in zip(*found, strict=True)))
        return suppress(merged, size, self.model.config.num_classes, self.config)

    def _variant(self, image: tf.Tensor, size: tf.Tensor, short: int, long: int, mirrored: bool) -> Candidates:
        resized, scale = transforms.resize(tf.reverse(image, [1]) if mirrored else image, short, long)
        canvas = self.pad(resized)[None]
        outputs = self.levels(canvas, training=False)
        found = candidates(
            [level[0] for level in outputs["class_logits"]],
            [level[0] for level in outputs["box_deltas"]],
            self.model.anchors.by_level(canvas),
            scale,
            size,
            self.config,
            self.model.anchors.config,
        )
        if not mirrored:
            return found
        return found._replace(boxes=boxes.mirror(found.boxes, size[1]))
