"""A ResNet-50 detector with random weights, imported as a published one is."""

import tempfile
from pathlib import Path

import numpy as np

from retinanet_tf.data.synthetic.scenes import draw_scene
from retinanet_tf.inference.checkpoint import load_detector
from retinanet_tf.inference.detector import Detector
from retinanet_tf.pretrained.importing import import_weights
from tests.published import Published, write_safetensors


def random_resnet50(side: int) -> Detector:
    """COCO's 80 classes, by way of a file in torchvision's layout; random weights, with which activations stay sane.

    Args:
        side: of pictures and canvas in pixels.
    """
    published = Published("torchvision", columns=91)
    published.outputs(draw_scene((28, 0), 320, 12, (16, 160)).image[None].astype(np.float32))
    with tempfile.TemporaryDirectory() as folder:
        file, imported = Path(folder, "retinanet_resnet50_fpn.safetensors"), Path(folder, "imported")
        write_safetensors(file, published.tensors)
        import_weights("torchvision", file, imported)
        detector = load_detector(imported)
    return Detector(detector.model, detector.label_map, detector.config, side, side)
