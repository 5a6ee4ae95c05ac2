"""What a training step needs of a device's memory, and the batches that cards of usual sizes hold."""

import tensorflow as tf

from retinanet_tf.config.config import Config
from retinanet_tf.data.pipeline import batch_shapes
from retinanet_tf.models.step_memory import step_memory
from retinanet_tf.training.train import compile_model

CARDS = (8, 12, 16, 24, 40, 48, 80, 141)
"""Memory of common GPUs, in GB."""

USABLE = 0.9
"""Share of a card that is left to the step: an allowance for CUDA, convolutions' workspaces and fragmentation."""


def memory_report(config: Config, data: str, replicas: int) -> str:
    """The memory of a step of the job, by XLA's own plan, and the largest batch per device on each of `CARDS`.

    Compiles the step for two batches: a minute or more. See `retinanet_tf.models.step_memory` for what the plan lacks.

    Args:
        config: the job's.
        data: pattern of its shards.
        replicas: devices that share a batch.
    """
    height, width, objects = max(batch_shapes(config, data), key=lambda shape: (shape[0] * shape[1], shape[2]))
    batch = config.data.batch_size // replicas
    memory = step_memory(compile_model(config.replace(xla="true", class_alpha="")), batch, (height, width), objects)
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    parts = config.train.accumulation
    held = ", ".join(f"{memory.largest_batch(USABLE * card * 1e9, parts)} on {card} GB" for card in CARDS)
    lines = [
        f"A step of {batch} images of {height}x{width} per device needs {memory.total / 1e9:.2f} GB, each further "
        f"image {memory.per_image / 1e9:.3f} GB (XLA's plan for this {device}).",
        f"Largest batch per device, {USABLE:.0%} of its memory used: {held}.",
    ]
    if device == "CPU" and config.train.precision != "float32":
        lines.append(f"A CPU computes {config.train.precision} in float32: a GPU needs less.")
    return "\n".join(lines)
