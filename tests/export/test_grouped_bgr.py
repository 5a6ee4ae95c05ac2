"""Exports of a network as imported ones are: grouped convolutions (ResNeXt), and BGR inside."""

import types

import numpy as np
import pytest

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.export import litert_file, onnx_file, parity
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models import resnet
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.metadata import write_metadata
from tests.exported_files import METADATA
from tests.small_exports import LABELS, PICTURES

pytestmark = pytest.mark.once
SIDE = 96
SHAPE = (1, SIDE, SIDE)
RED = np.zeros((SIDE, SIDE, 3), np.uint8) + np.uint8([255, 40, 0])
"""Red is the first channel of a picture, and the last one that the network sees."""


@pytest.fixture(scope="module")
def detector():
    """Three classes; scores between 0 and 1 and boxes that differ from the anchors, the same on both stacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.VARIANTS, "resnext_small", resnet.Variant((1, 1, 1, 1), groups=4, group_width=2, stem=16))
        model = RetinaNet(
            num_classes=3,
            backbone="resnext_small",
            channel_order="bgr",
            pixel_mean=(124.0, 116.0, 104.0),
            pixel_std=(58.0, 57.0, 56.0),
            fpn_channels=16,
            subnet_channels=16,
            subnet_depth=1,
        )
    rng = np.random.default_rng(5)
    for variable in model.weights:
        name = getattr(variable, "path", variable.name)
        if "kernel" in name and "subnet" not in name:
            deviation = np.sqrt(1 / np.prod(variable.shape[:-1]))
            variable.assign(rng.normal(0, deviation, variable.shape).astype(np.float32))
        elif "subnet" in name and "kernel" in name:
            variable.assign(rng.normal(0, 0.06, variable.shape).astype(np.float32))
    bias = model.get_layer("class_subnet").predictor.bias
    bias.assign(np.full(bias.shape, -1, np.float32))
    return Detector(model, LABELS, DetectConfig(max_detections=30), SIDE, SIDE)


@pytest.fixture(scope="module")
def contents(detector):
    """Each format's file without metadata; INT8 is calibrated on the pictures that it is compared on."""
    float32 = litert_file.convert(detector, SHAPE)[0]
    blank = types.SimpleNamespace(input_shape=SHAPE, metadata={"preprocessing": {"padding": [124, 116, 104]}})
    canvases = [ExportedDetector.prepare(blank, picture).canvas for picture in [*PICTURES, RED]]
    ranges = litert_file.calibrate(detector, SHAPE, canvases)
    return {
        "float32.onnx": onnx_file.convert(detector, SHAPE)[0],
        "float32.tflite": float32,
        "int8.tflite": litert_file.quantize(float32, "int8", ranges),
    }


@pytest.mark.parametrize("name", ["float32.onnx", "float32.tflite", "int8.tflite"])
def test_the_file_answers_as_the_detector(contents, detector, tmp_path, name):
    (tmp_path / name).write_bytes(contents[name])
    metadata = {"input": dict(zip(("batch", "height", "width"), SHAPE, strict=True)), "labels": LABELS.to_json()}
    write_metadata(tmp_path / name, {**METADATA, **metadata, "preprocessing": {"padding": [124, 116, 104]}})
    file, precision = ExportedDetector(tmp_path / name), name.split(".")[0]
    for pictures in (PICTURES, [RED]):
        compared = parity.compare_file(name, parity.LIMITS[precision], file, detector, pictures)
        assert compared.fault() is None, compared
        assert precision == "int8" or (compared.off == compared.missing == compared.extra == 0)
    blue = detector(RED[..., ::-1])["scores"].numpy()
    assert np.abs(blue - detector(RED)["scores"]).max() > 0.01, "the order of channels makes no difference"
