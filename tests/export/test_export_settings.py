"""Settings of an export: what can't be done is one sentence before the conversion, and nothing is written."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.presets import presets
from retinanet_tf.errors import InputError
from retinanet_tf.export.formats import export
from retinanet_tf.export.frozen_graph import file_shape
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet
from tests.small_detectors import encode
from tests.small_exports import PICTURES, write_shards


@pytest.mark.parametrize(
    ("package", "name", "options"),
    [
        ("onnxruntime", "a.onnx", {"format": "onnx"}),
        ("ai_edge_litert", "a.tflite", {"format": "litert"}),
        ("ai_edge_quantizer", "a.tflite", {"format": "litert", "precision": "float16"}),
    ],
)
def test_a_missing_package_is_named_before_the_conversion(detector, tmp_path, monkeypatch, package, name, options):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*pip install 'retinanet_tf\[{options['format']}\]'"):
        export(detector, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_calibration_without_a_picture_is_refused(detector, tmp_path):
    pattern = write_shards(tmp_path / "data", PICTURES[:1])
    next(pattern.parent.glob(pattern.name)).write_bytes(b"")
    with pytest.raises(InputError, match="has no pictures; the scales of INT8 need some"):
        export(detector, tmp_path / "a.tflite", format="litert", precision="int8", calibration=pattern)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("a.onnx", {"format": "coreml"}, "format='coreml' is not one of"),
        ("a.tflite", {"format": "onnx"}, "a.tflite must end in .onnx"),
        ("a.onnx", {"format": "onnx", "precision": "float16"}, "precision='float16' is not for ONNX"),
        ("a.tflite", {"format": "litert", "precision": "bfloat16"}, "precision='bfloat16' is not one of float32"),
        ("a.tflite", {"format": "litert", "precision": "int8"}, "needs calibration, a pattern of shards"),
        ("a.tflite", {"format": "litert", "calibration": "x"}, "calibration is for precision='int8' alone"),
        ("a.onnx", {"format": "onnx", "metrics": {}}, "metrics is for format='saved_model'"),
        ("a", {"calibration": "x"}, "calibration is for format='litert'"),
        ("a", {"validation": "none-*.tfrecord"}, "none-"),
        ("a.onnx", {"format": "onnx", "fixed_shapes": [(1, 64, 64), (2, 64, 64)]}, "must be one: a file has one size"),
        ("a.onnx", {"format": "onnx", "fixed_shapes": [(None, 64, 100)]}, "fixed_shapes=Nx64x100 must be batch x"),
        ("a.tflite", {"format": "litert", "fixed_shapes": [(None, 64, 64)]}, "needs a number for the batch"),
        ("a", {"fixed_shapes": [(None, 64, 64)]}, "needs a number for the batch"),
        ("a.onnx", {"format": "onnx", "validation": "none-*.tfrecord"}, "none-"),
        ("a.onnx", {"format": "onnx", "fixed_shapes": (1, 64, 64)}, "fixed_shapes has 1; give a list of"),
        ("a.onnx", {"format": "onnx", "fixed_shapes": ["1x64x64"]}, "fixed_shapes has '1x64x64'; give a list of"),
        ("a", {"fixed_shapes": [(1, 64.0, 64)]}, "three integers each"),
        ("a.onnx", {}, "a.onnx is a file's name; a SavedModel is a folder"),
        ("a", {"precision": "int8"}, "precision='int8' is not one of float32, float16, bfloat16"),
        ("a", {"metrics": {"AP": float("nan")}}, "metrics can't be kept as JSON"),
        ("a", {"metrics": {"AP": np.float32(0.5)}}, "metrics can't be kept as JSON"),
        ("a", {"metrics": [0.5]}, "metrics must be a dict"),
        ("a", {"warmup_images": [encode(PICTURES[0]), b"text"]}, r"warmup_images\[1\] is not a readable JPEG or PNG"),
        ("a", {"warmup_images": [encode(PICTURES[0])], "max_pixels": 9}, r"warmup_images\[0\] has more than 9 pixels"),
        ("a.onnx", {"format": "onnx", "validation": "val.json"}, "validation=val.json must be a pattern of shards"),
        ("a", {"validation": "val.json"}, "validation=val.json must be a pattern of shards"),
    ],
)
def test_wrong_settings_are_refused(detector, tmp_path, name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        export(detector, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_padding_that_no_picture_can_have_is_refused_first(tmp_path):
    config = presets["mini"].replace(pixel_mean=(-5.0, 300.0, 0.0), num_classes=2)
    odd = Detector.from_config(config, RetinaNet.from_config(config))
    with pytest.raises(InputError, match="pixel_mean=-5,300,0 can't be the colour"):
        export(odd, tmp_path / "a.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept(detector, tmp_path):
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(InputError, match="a.onnx exists"):
        export(detector, tmp_path / "a.onnx", format="onnx")
    assert (tmp_path / "a.onnx").read_text() == "mine"


def test_the_default_canvas_has_4_3_pictures_at_the_detectors_own_size(detector):
    _, height, width = file_shape(detector, [], True)
    assert (height, width) == (96, 96)
    for size in ((480, 640), (640, 480)):
        own = detector.prepare(tf.zeros([*size, 3])).scale.numpy()
        assert 0 <= min(height / size[0], width / size[1]) - own.max() < 32 / 640
