"""Detectors of others that a benchmark compares with, where they are installed; imports nothing of `retinanet_tf`."""

import atexit
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np


def keras_hub_detector(num_classes: int = 80):
    """keras-hub's RetinaNet with the same backbone, or None where it isn't installed."""
    if importlib.util.find_spec("keras_hub") is None:
        return None
    from keras_hub import models

    encoder = models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        use_pre_activation=False,
        image_shape=(None, None, 3),
    )
    backbone = models.RetinaNetBackbone(image_encoder=encoder, min_level=3, max_level=7, use_p5=False)
    return models.RetinaNetObjectDetector(backbone=backbone, num_classes=num_classes, bounding_box_format="xyxy")


def keras_hub_frozen():
    """`keras_hub_detector` with what the paper freezes (§4.1 and the authors' code) frozen, and the paper's SGD."""
    import keras

    model = keras_hub_detector()
    for layer in model.backbone.image_encoder.layers:
        stem = layer.name.startswith(("conv1", "stack0"))
        layer.trainable = not stem and not isinstance(layer, keras.layers.BatchNormalization)
    model.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9))
    return model


def keras_hub_step(images, boxes, labels, frozen: bool) -> Callable[[], float] | None:
    """A training step of keras-hub's RetinaNet with TensorFlow's settings as they come; None without it.

    images, boxes, labels: as it takes them. frozen: `keras_hub_frozen`, else layers and optimizer as they come too.
    A call makes a step and returns the MiB that the model has needed at most.
    """
    if importlib.util.find_spec("keras_hub") is None:
        return None
    scratch = tempfile.TemporaryDirectory()
    np.savez(
        path := os.path.join(scratch.name, "example.npz"), images=images, boxes=boxes, labels=labels, frozen=frozen
    )
    answer = _worker("keras_hub_worker", path)
    atexit.register(scratch.cleanup)
    return lambda: int(answer()) / 2**20


def torchvision_network(side: int) -> Callable[[], object] | None:
    """torchvision's RetinaNet (v1) up to logits and deltas, on one square image; None where it isn't installed."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    return _worker("torchvision_worker", str(side))


def _worker(module: str, argument: str) -> Callable[[], str]:
    """Starts a module of this folder that answers every line with a line; a call is one such exchange."""
    from retinanet_tf.cli.before_tensorflow import (
        original_environment,  # workers import this module, too
    )

    command = [sys.executable, "-m", f"experiments.bench.{module}", argument]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=original_environment()
    )
    assert worker.stdin and worker.stdout, "both are pipes"
    atexit.register(worker.kill)

    def exchange() -> str:
        worker.stdin.write("go\n")
        if not (line := worker.stdout.readline()):
            raise RuntimeError(f"{module} has ended.")
        return line

    return exchange
