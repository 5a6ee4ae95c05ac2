"""Memory of a training step, as XLA plans it: nothing is allocated and nothing is run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2

from retinanet_tf.models.retinanet import RetinaNet


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs of one device, from two batches.

    Args:
        batch: images of the smaller batch.
        total: its bytes: weights, optimizer and averages, images and all that lives while the step runs.
        per_image: bytes that each further image adds.
    """

    batch: int
    total: int
    per_image: int

    def largest_batch(self, capacity: float, multiple: int = 1) -> int:
        """The most images, in whole multiples, that `capacity` bytes hold; 0 if they don't hold one multiple."""
        images = self.batch + int((capacity - self.total) // max(self.per_image, 1))
        return max(0, images // multiple * multiple)


def step_memory(model: RetinaNet, batch: int, canvas: tuple[int, int], objects: int = 16) -> StepMemory:
    """The memory of a training step of a compiled model on the default device.

    The plan is the one for the device that TensorFlow has here. A CPU computes bfloat16 and float16 in float32, so that
    its plan for them is an upper limit of a GPU's. Neither has the workspaces of a GPU's convolutions, the copy of the
    gradients that several devices exchange, nor what TensorFlow holds for itself.

    Args:
        model: a compiled model (`RetinaNet.compile`), with its `step`.
        batch: images per device; the second plan is for twice as many.
        canvas: height and width in pixels.
        objects: room for objects per image.
    """

    def step(images, boxes, labels):
        model.step(model, images, {"boxes": boxes, "labels": labels})

    once, twice = (
        buffer_bytes(
            step,
            tf.TensorSpec((count, *canvas, 3), tf.float32),
            tf.TensorSpec((count, objects, 4), tf.float32),
            tf.TensorSpec((count, objects), tf.int32),
        )
        for count in (batch, 2 * batch)
    )
    return StepMemory(batch, once, (twice - once) // batch)


def buffer_bytes(function: Callable[..., Any], *arguments: tf.TensorSpec) -> int:
    """Bytes of all buffers of a function under XLA: arguments, variables, results, temporaries, constants."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    plan = compiled.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo_proto_serialized")
    allocations = hlo_pb2.HloProto.FromString(plan).buffer_assignment.buffer_allocations
    return sum(allocation.size for allocation in allocations if not allocation.is_thread_local)
