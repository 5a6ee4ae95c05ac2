"""Batching: images of several sizes on one canvas, with few copies."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


class CanvasBatch:
    """Canvases `short` high and `long` wide, or the other way round, of the colour `pixel_mean`, for whole batches.

    An image is written twice only: its rows are lengthened to the canvas' width, and one concatenation of all rows is
    the batch. (`transforms.pad_to` and `padded_batch`, the same in result, take 1.4 times the pipeline's CPU time on
    photos of mixed sizes.)
    """

    def __init__(self, short: int, long: int, pixel_mean: Sequence[float]):
        self.short, self.long = short, long
        with tf.device("/CPU:0"):
            # Flat, so that its beginning can be taken without a copy: TensorFlow lets a slice share its tensor's memory
            # if it ends at a multiple of 16 floats, as most do here; of (N, 3) it would never.
            self._plain = tf.constant(np.tile(np.array(pixel_mean, np.float32), short * long))

    def fill(
        self,
        count: tf.Tensor,
        tall: tf.Tensor,
        example: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]],
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Puts examples at the top left of their canvases.

        Args:
            count: int32 scalar, the number of examples.
            tall: bool scalar, which canvas.
            example: from a number 0 ≤ i < count to an image `(h, w, 3)` float32 that fits, its boxes `(n, 4)` and
                labels `(n,)`.

        Returns:
            images `(count, H, W, 3)` float32 and {"boxes" `(count, M, 4)` float32, "labels" `(count, M)` int32}; rows
            without an object are zeros with label −1. M: see `padded_length`.
        """
        height = tf.where(tall, self.long, self.short)
        width = self.short + self.long - height

        def add(i, rows, boxes, labels, lengths):
            image, image_boxes, image_labels = example(i)
            size = tf.shape(image)
            right, below = width - size[1], height - size[0]
            # Slices of one constant, so nothing is copied yet.
            beside = tf.reshape(self._plain[: 3 * size[0] * right], tf.stack([size[0], right, 3]))
            under = tf.reshape(self._plain[: 3 * below * width], tf.stack([below, width, 3]))
            return (
                i + 1,
                rows.write(2 * i, tf.concat([image, beside], 1)).write(2 * i + 1, under),
                boxes.write(i, image_boxes),
                labels.write(i, image_labels),
                lengths.write(i, tf.shape(image_boxes)[0]),
            )

        arrays = (
            tf.TensorArray(tf.float32, 2 * count, element_shape=(None, None, 3), infer_shape=False),
            tf.TensorArray(tf.float32, count, element_shape=(None, 4), infer_shape=False),
            tf.TensorArray(tf.int32, count, element_shape=(None,), infer_shape=False),
            tf.TensorArray(tf.int32, count, element_shape=()),
        )
        _, rows, boxes, labels, lengths = tf.while_loop(
            lambda i, *_: i < count, add, (0, *arrays), parallel_iterations=64
        )
        images = tf.reshape(rows.concat(), tf.stack([count, height, width, 3]))
        if self.short == self.long:
            images = tf.ensure_shape(images, (None, self.short, self.long, 3))
        counts = lengths.stack()
        return images, {
            "boxes": _padded(boxes.concat(), counts, 0.0),
            "labels": _padded(labels.concat(), counts, -1),
        }


def padded_length(objects: tf.Tensor) -> tf.Tensor:
    """M for a batch whose fullest image has `objects`: the next power of two, at least 8. int32 scalars.

    Few lengths occur, so that a compiled training step is compiled a few times only.
    """
    lengths = tf.constant([2**power for power in range(3, 31)])
    return lengths[tf.searchsorted(lengths, objects[None])[0]]


def _padded(values: tf.Tensor, lengths: tf.Tensor, empty: float) -> tf.Tensor:
    """`(count, M, ...)` from the rows of all images and `lengths` `(count,)` of each."""
    row = values.shape[1:]
    ragged = tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)
    shape = tf.stack([-1, padded_length(tf.reduce_max(lengths)), *row])
    return tf.ensure_shape(ragged.to_tensor(default_value=empty, shape=shape), (None, None, *row))
