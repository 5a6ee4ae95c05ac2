"""Imported backbones, classifiers of ImageNet: their stages are the published ones'."""

from collections import OrderedDict

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch_writer
from published import IMAGE, Published, close, write, write_safetensors
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf import pretrained
from retinanet_tf.config.config import AnchorConfig, ModelConfig
from retinanet_tf.pretrained.importing import convert
from retinanet_tf.pretrained.loading import check
from retinanet_tf.pretrained.reading import read_tensors

pytestmark = pytest.mark.usefixtures("small_backbone")
RNG = np.random.default_rng(0)
BFLOAT16 = np.dtype(tf.bfloat16.as_numpy_dtype)


@pytest.mark.once
def test_an_imagenet_backbone_of_detectron():
    """The tensors that training starts from, classifier included: C3–C5 are those of the published backbone."""
    published = Published("detectron", "resnet_small")
    stages = published.backbone_outputs(IMAGE)
    classifier = {"fc1000_w": np.ones((3, 2), np.float32), "fc1000_b": np.ones(3, np.float32)}
    bias = {"conv1_b": np.zeros(64, np.float32)}
    imported = convert("detectron", {**published.tensors, **classifier, **bias}, "R-50.pkl")
    assert imported.report.parts == "backbone" and set(imported.report.unused) == {*classifier, *bias}
    for mine, expected in zip(imported.model.backbone(IMAGE, training=False), stages, strict=True):
        close(mine, expected)


@pytest.mark.once
def test_an_imagenet_backbone_in_torchvisions_names(tmp_path):
    """A classifier of torchvision or timm as .safetensors, bfloat16 as some are."""
    published = Published("torchvision", "resnet_small")
    published.backbone_outputs(IMAGE)
    short = {name: tensor.astype(BFLOAT16) for name, tensor in published.tensors.items()}
    published.tensors = {name: tensor.astype(np.float32) for name, tensor in short.items()}
    stages = published.backbone_outputs(IMAGE)
    named = {name.removeprefix("backbone.body."): tensor for name, tensor in short.items()}
    extra = {"fc.weight": np.ones((10, 2048), np.float32), "bn1.num_batches_tracked": np.array(5)}
    file = write_safetensors(tmp_path / "model.safetensors", {**named, **extra})
    imported = convert("torchvision", read_tensors(file), file.name)
    assert imported.report.parts == "backbone" and set(imported.report.unused) == set(extra)
    assert imported.report.notes == []
    for mine, expected in zip(imported.model.backbone(IMAGE, training=False), stages, strict=True):
        close(mine, expected)


@pytest.mark.once
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_torchvisions_networks_of_basic_blocks(backbone, tmp_path):
    """From a .pth file with the classifier."""
    published = Published("torchvision", backbone)
    stages = published.backbone_outputs(IMAGE)
    named = {name.removeprefix("backbone.body."): tensor for name, tensor in published.tensors.items()}
    named.update({"fc.weight": np.ones((10, 512), np.float32), "fc.bias": np.ones(10, np.float32)})
    file = torch_writer.save(tmp_path / f"{backbone}-0a1b2c3d.pth", OrderedDict(named))
    imported = convert("torchvision", read_tensors(file), file.name)
    assert imported.config.model.backbone == backbone and imported.report.unused == ["fc.bias", "fc.weight"]
    for mine, expected in zip(imported.model.backbone(IMAGE, training=False), stages, strict=True):
        close(mine, expected)


def keras_file(path):
    """A keras.applications ResNet-50 with statistics that matter, in the .h5 layout of the published files."""
    model = keras.applications.ResNet50(include_top=False, weights=None)
    for layer in model.layers:
        if not layer.weights:
            continue
        width = layer.weights[-1].shape[0]
        if isinstance(layer, keras.layers.BatchNormalization):
            last = layer.name.endswith(("_3_bn", "_0_bn"))
            gamma = RNG.uniform(*((0.3, 0.5) if last else (0.6, 1.0)), width)
            layer.set_weights(
                [gamma, RNG.normal(0, 0.1, width), RNG.normal(0, 0.1, width), RNG.uniform(0.5, 1.5, width)]
            )
        else:
            layer.set_weights([layer.get_weights()[0], RNG.normal(0, 0.1, width)])
    model.save(path)
    return model


@pytest.mark.slow
def test_keras_applications_gives_the_same_stages(tmp_path):
    published = keras_file(tmp_path / "resnet50.h5")
    imported = convert("keras", read_tensors(tmp_path / "resnet50.h5"), "resnet50.h5")
    assert imported.report.parts == "backbone" and not imported.report.unused
    taps = ("conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    reference = keras.Model(published.input, [published.get_layer(name).output for name in taps])
    prepared = keras.applications.resnet50.preprocess_input(IMAGE.copy())
    stages = zip(imported.model.backbone(IMAGE, training=False), reference(prepared, training=False), strict=True)
    for mine, expected in stages:
        np.testing.assert_allclose(mine, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.once
def test_a_backbone_starts_a_detector_and_is_no_detector(tmp_path):
    """Imported, written, read again and put into a detector, it gives the published stages."""
    published, folder = Published("detectron2", "resnet_small"), tmp_path / "out"
    stages = published.backbone_outputs(IMAGE)
    report = pretrained.import_weights("detectron2", write(tmp_path / "R.pkl", published.tensors), folder)
    assert report.parts == "backbone" and not report.unused
    assert "--box=" not in (folder / "flags.txt").read_text(), "no detector, no detector's losses"
    with pytest.raises(rn.InputError, match="backbone alone"):
        rn.load_detector(folder)
    own = {**TINY_NETWORK, "backbone": "resnet_small", "pixel_mean": (123.675, 116.28, 103.53)}
    model = rn.RetinaNet(num_classes=3, **own)
    with pytest.raises(rn.InputError, match="pixel_mean.*flags.txt"):
        check(ModelConfig(**{**own, "pixel_mean": (0.0, 0.0, 0.0)}), AnchorConfig(), folder)
    report = pretrained.initialize(model, folder)
    assert {name.split("/")[0] for name in report.missing} >= {"class_subnet", "box_subnet", "fpn_p6"}
    assert not [name for name in report.missing if name.startswith(("stem", "stage"))]
    for mine, expected in zip(model.backbone(IMAGE, training=False), stages, strict=True):
        close(mine, expected)
