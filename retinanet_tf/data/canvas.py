"""A batch of images of several sizes put on one canvas with as few copies as possible."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


class CanvasBatch:
    """Canvases `short` high and `long` wide, or the other way round, of the colour `pixel_mean`, for whole batches.

    Copying pixels costs as much as decoding them, so an image is written twice only: its rows are lengthened to the
    canvas' width, and one concatenation of everybody's rows is the batch. (`transforms.pad_to` and a stack, the same
    in result, write it four times.)
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
        max_boxes: int,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Puts `count` examples at the top left of their canvases.

        count: int32 scalar. tall: bool scalar, which canvas. example: from a number 0 <= i < count to an image
        (h, w, 3) float32 that fits, its boxes (n, 4) and labels (n,), n at most `max_boxes`.

        Returns images (count, H, W, 3) float32 and {"boxes" (count, M, 4) float32, "labels" (count, M) int32}; rows
        without an object are zeros with label -1.
        """
        height = tf.where(tall, self.long, self.short)
        width = self.short + self.long - height

        def add(i, rows, boxes, labels):
            image, its_boxes, its_labels = example(i)
            right, below = self._around(image, height, width)
            missing = max_boxes - tf.shape(its_boxes)[0]
            return (
                i + 1,
                rows.write(2 * i, tf.concat([image, right], 1)).write(2 * i + 1, below),
                boxes.write(i, tf.ensure_shape(tf.pad(its_boxes, [[0, missing], [0, 0]]), (max_boxes, 4))),
                labels.write(i, tf.ensure_shape(tf.pad(its_labels, [[0, missing]], constant_values=-1), (max_boxes,))),
            )

        rows = tf.TensorArray(tf.float32, 2 * count, element_shape=(None, None, 3), infer_shape=False)
        boxes = tf.TensorArray(tf.float32, count, element_shape=(max_boxes, 4))
        labels = tf.TensorArray(tf.int32, count, element_shape=(max_boxes,))
        _, rows, boxes, labels = tf.while_loop(
            lambda i, *_: i < count, add, (0, rows, boxes, labels), parallel_iterations=64
        )
        images = tf.reshape(rows.concat(), tf.stack([count, height, width, 3]))
        if self.short == self.long:
            images = tf.ensure_shape(images, (None, self.short, self.long, 3))
        return images, {"boxes": boxes.stack(), "labels": labels.stack()}

    def _around(self, image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The canvas to the right of the image, and below it; slices of one constant, so nothing is copied yet."""
        size = tf.shape(image)
        right, below = width - size[1], height - size[0]
        return (
            tf.reshape(self._plain[: 3 * size[0] * right], tf.stack([size[0], right, 3])),
            tf.reshape(self._plain[: 3 * below * width], tf.stack([below, width, 3])),
        )
