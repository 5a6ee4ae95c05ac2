"""Detectors of others that a benchmark compares with, where they are installed."""

import atexit
import importlib.util
import subprocess
import sys
from collections.abc import Callable


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


def torchvision_network(side: int) -> Callable[[], object] | None:
    """torchvision's RetinaNet (v1) up to logits and deltas, on one square image; None where it isn't installed."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    command = [sys.executable, "-m", "experiments.bench.torchvision_worker", str(side)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    atexit.register(worker.kill)

    def forward():
        worker.stdin.write("go\n")
        if worker.stdout.readline() != "done\n":
            raise RuntimeError("torchvision's process has ended.")

    return forward
