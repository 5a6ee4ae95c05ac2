"""The graph of an ONNX or LiteRT file: network and post-processing on canvases of one size, with static shapes."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from retinanet_tf.detection.anchors import anchors_by_level
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.detection.rounding import round_up
from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import CANVAS_MULTIPLE, Detector

NETWORK = "network"
"""The scope of the network's operators; those after it are in another one."""

Shape = tuple[Any, int, int]
"""Batch (an int, or None for any), height and width of canvases."""

LARGEST = (65536, 16384)
"""The largest batch and side, as of the configuration's fields."""


def check_shape(shape: Shape, any_batch: bool = False) -> None:
    """Raises InputError unless `shape` is (B, H, W) of canvases; `any_batch` allows None for B."""
    if not isinstance(shape, tuple | list) or not all(side is None or isinstance(side, int) for side in shape):
        raise InputError(f"fixed_shapes has {shape!r}; give a list of (batch, height, width), three integers each.")
    name = f"fixed_shapes={shape_name(shape)}"
    if shape and shape[0] is None and not any_batch:
        raise InputError(f"{name} needs a number for the batch; only ONNX files take any number of images.")
    sides = [1 if side is None else side for side in shape]
    fits = len(sides) == 3 and 1 <= sides[0] <= LARGEST[0] and all(1 <= side <= LARGEST[1] for side in sides[1:])
    if not fits or sides[1] % CANVAS_MULTIPLE or sides[2] % CANVAS_MULTIPLE:
        raise InputError(
            f"{name} must be batch x height x width above 0, at most {LARGEST[0]} images, the sides multiples of "
            f"{CANVAS_MULTIPLE} up to {LARGEST[1]}."
        )


def shape_name(shape: Shape) -> str:
    """(B, H, W) as the command line has it, BxHxW; N stands for any batch."""
    return "x".join("N" if side is None else str(side) for side in shape)


def file_shape(detector: Detector, shapes: Sequence[Shape], any_batch: bool) -> Shape:
    """The one shape of a file's canvases.

    By default one square image, such that a picture of 4:3, wide or tall, has the detector's own size on it.

    Raises:
        InputError: several shapes, or one that can't be used.
    """
    if not shapes:
        side = round_up(min(math.ceil(detector.image_size * 4 / 3), detector.max_size), CANVAS_MULTIPLE)
        return 1, side, side
    for shape in shapes:
        check_shape(shape, any_batch)
    if len(shapes) > 1:
        raise InputError(f"fixed_shapes={','.join(map(shape_name, shapes))} must be one: a file has one size.")
    return shapes[0]


def detection_graph(detector: Detector, shape: Shape) -> tf.types.experimental.GenericFunction:
    """The function images `(B, H, W, 3)` uint8, sizes `(B, 2)` float32 → detections in pixels of the canvas.

    `sizes` are height and width of the picture's part of each canvas, to which boxes are clipped. The anchors are
    constants, since the layer's own hide from graph optimizers what the converters must know.
    """
    batch, height, width = shape
    anchors = [level.numpy() for level in anchors_by_level(height, width, detector.model.anchors.config)]

    sizes_spec = tf.TensorSpec([batch, 2], tf.float32, name="sizes")

    @tf.function(input_signature=[_images_spec(shape), sizes_spec], autograph=False)
    def detect(images, sizes):
        outputs = _network(detector, images)
        for values in outputs.values():
            for value, level in zip(values, anchors, strict=True):
                value.set_shape([batch, len(level), None])
        with tf.name_scope("postprocessing"):
            return select_detections(
                outputs["class_logits"],
                outputs["box_deltas"],
                [tf.constant(level) for level in anchors],
                tf.ones_like(sizes),
                sizes,
                detector.config,
                detector.model.anchors.config,
                static_shapes=True,
            )

    return detect


def network_graph(detector: Detector, shape: Shape) -> tf.types.experimental.GenericFunction:
    """The same network alone, its operators of the same names: images → the largest value of each of its outputs."""

    @tf.function(input_signature=[_images_spec(shape)], autograph=False)
    def detect(images):
        outputs = _network(detector, images)
        return {
            f"{name}_{level}": tf.reduce_max(value) for name in outputs for level, value in enumerate(outputs[name])
        }

    return detect


def _images_spec(shape: Shape) -> tf.TensorSpec:
    return tf.TensorSpec([*shape, 3], tf.uint8, name="images")


def _network(detector: Detector, images: tf.Tensor) -> dict[str, list[tf.Tensor]]:
    with tf.name_scope(NETWORK):
        return detector.levels(tf.cast(images, tf.float32), training=False)
