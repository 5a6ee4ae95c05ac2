"""Losses on validation data: those of training, without augmentation and without weight decay."""

from collections.abc import Callable, Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.detection.assignment import assign
from retinanet_tf.losses.box import pack_box_targets
from retinanet_tf.training.callbacks import LOSSES


def losses_per_image(model: keras.Model, losses: Mapping[str, keras.losses.Loss]) -> Callable:
    """The function from a batch to `(B, 3)`: the two losses and the positives of each image. All anchors count.

    Args:
        model: a `RetinaNet`.
        losses: of `retinanet_losses`.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def of_batch(images, objects):
        targets = assign(model.anchors(images), objects["boxes"], objects["labels"], model.assign_config)
        outputs = model(images, training=False)
        boxes = pack_box_targets(targets.box_targets, targets.positive)
        parts = (
            losses["class_logits"].call(targets.class_targets, tf.cast(outputs["class_logits"], tf.float32)),
            losses["box_deltas"].call(boxes, tf.cast(outputs["box_deltas"], tf.float32)),
            tf.reduce_sum(tf.cast(targets.positive, tf.float32), axis=1),
        )
        return tf.stack(parts, axis=1)

    return of_batch


def validation_losses(
    per_image: Callable, normalizer: str, dataset: Iterable[tuple[tf.Tensor, Mapping[str, tf.Tensor]]]
) -> dict[str, float]:
    """The losses of all images together, whatever batches they come in.

    Args:
        per_image: of `losses_per_image`.
        normalizer: 'image' is the mean of the images' losses, each by its own positives; 'global' divides the sum by
            all positives, 'replica' by them and the number of images.
        dataset: batches of images `(B, H, W, 3)` and {"boxes": `(B, M, 4)`, "labels": `(B, M)`}, each image once.

    Returns:
        {"loss", "class_logits_loss", "box_deltas_loss"}; the first is the sum of the others.
    """
    rows = np.concatenate([per_image(*batch).numpy() for batch in dataset]).astype(np.float64)
    sums, positives = rows[:, :2], rows[:, 2]
    if normalizer == "image":
        parts = (sums / np.maximum(positives, 1)[:, None]).mean(axis=0)
    elif normalizer == "replica":
        parts = sums.sum(axis=0) / (positives + 1).sum()
    else:
        parts = sums.sum(axis=0) / max(1.0, positives.sum())
    return dict(zip(LOSSES, [float(parts.sum()), *parts.tolist()], strict=True))
