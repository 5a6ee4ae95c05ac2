"""Initial weights from a job, a backbone, or a detector of other categories; all or nothing."""

import numpy as np
import pytest
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf import pretrained
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.inference import checkpoint
from retinanet_tf.pretrained.loading import assign
from retinanet_tf.training import run_directory

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model, run directory, label map) of a small detector of 3 classes, as training leaves it."""
    tmp_path = tmp_path_factory.mktemp("trained")
    config = rn.presets["paper"].replace(num_classes=3, **TINY_NETWORK)
    label_map = rn.data.LabelMap([1, 2, 3], ["a", "b", "c"])
    run_directory.start(tmp_path / "run", config, label_map, data="data", validation="")
    model = rn.RetinaNet.from_config(config)
    model.set_weights([RNG.normal(0, 0.1, value.shape).astype(np.float32) for value in model.get_weights()])
    checkpoint.save_weights(model, tmp_path / "run" / checkpoint.WEIGHTS)
    return model, tmp_path / "run", label_map


def test_the_backbone_of_a_job_starts_a_detector_of_another_shape(trained, tmp_path):
    """The result of `keep_backbone` fills the stem and the stages, and nothing else."""
    model, run_dir, _ = trained
    report = pretrained.keep_backbone(run_dir, tmp_path / "backbone")
    assert report.parts == "backbone" and all(name.startswith(("stem", "stage")) for name in report.matched)
    settings = {**TINY_NETWORK, "fpn_channels": 24, "subnet_depth": 2}
    other = rn.RetinaNet.from_config(rn.presets["paper"].replace(num_classes=7, **settings))
    loaded = pretrained.initialize(other, tmp_path / "backbone")
    assert set(loaded.matched) == set(report.matched)
    for name in ("stem_conv", "stage5_block0_2_conv"):
        np.testing.assert_array_equal(other.get_layer(name).kernel, model.get_layer(name).kernel)
    with pytest.raises(rn.InputError, match="backbone alone"):
        rn.load_detector(tmp_path / "backbone")


@pytest.mark.slow
def test_other_classes_change_only_the_last_class_convolution(trained):
    before, run, label_map = trained
    model = rn.RetinaNet(num_classes=5, **TINY_NETWORK)
    report = pretrained.initialize(model, run)
    assert report.missing == ["class_subnet/predictor/kernel", "class_subnet/predictor/bias"]
    assert "its 3 categories are not the 5 here" in str(report)
    for name in ("stem_conv", "fpn_p7"):
        np.testing.assert_array_equal(model.get_layer(name).get_weights()[0], before.get_layer(name).get_weights()[0])
    np.testing.assert_allclose(model.get_layer("class_subnet").predictor.bias, -np.log(99), rtol=1e-6)

    same = rn.RetinaNet(num_classes=3, **TINY_NETWORK)
    assert not pretrained.initialize(same, run, label_map).missing
    for loaded, saved in zip(same.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, saved)
    renamed = rn.data.LabelMap([1, 2, 3], ["a", "b", "other"])
    assert len(pretrained.initialize(same, run, renamed).missing) == 2


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"fpn_p6/bias": np.full(16, np.nan)}, "holds values that are not finite"),
        ({"fpn_p6/bias": np.ones(4)}, r"has shape \(4,\), but fpn_p6/bias wants \(16,\)"),
        ({"fpn_p8/bias": np.ones(16)}, "is for fpn_p8/bias, which this network doesn't have"),
    ],
)
def test_nothing_is_assigned_if_one_tensor_is_wrong(trained, arrays, sentence):
    model = trained[0]
    before = model.get_layer("fpn_p7").get_weights()[1]
    with pytest.raises(rn.InputError, match=f"f.pkl: its.b {sentence}"):
        assign(model, {"fpn_p7/bias": np.ones(16), **arrays}, "f.pkl", dict.fromkeys(arrays, "its.b"))
    np.testing.assert_array_equal(model.get_layer("fpn_p7").get_weights()[1], before)


@pytest.mark.once
def test_training_starts_from_given_weights(tmp_path, capsys):
    """One step of learning rate 0 from a run of other categories: its pyramid, and a fresh class layer."""
    splits = shapes.generate(tmp_path / "coco", num_train=4, num_val=1, image_size=64)
    rn.data.prepare(splits["train"].annotations, splits["train"].images, tmp_path, "train", shards=1, progress=False)
    settings = {"image_size": 64, "max_size": 64, "batch_size": 2, "steps": 1, "checkpoint_steps": 1}
    settings |= {**TINY_NETWORK, "max_level": 5, "strategy": "one_device"}
    config = rn.presets["mini"].replace(**settings, warmup_steps=0, learning_rate=0.0, weight_decay=0.0)
    start = config.replace(num_classes=2)
    run_directory.start(tmp_path / "start", start, rn.data.LabelMap([1, 2], ["a", "b"]), data="d", validation="")
    before = rn.RetinaNet.from_config(start)
    checkpoint.save_weights(before, tmp_path / "start" / checkpoint.WEIGHTS)
    job = {"data": str(tmp_path / "train-*.tfrecord"), "verbose": 0, "init_weights": str(tmp_path / "start")}
    model = rn.train(config, run_dir=str(tmp_path / "run"), **job)
    kernels = [np.array(other.get_layer("fpn_output4").get_weights()[0]) for other in (model, before)]
    np.testing.assert_array_equal(*kernels)
    assert "the last class convolution keeps its initial values: its 2 categories" in capsys.readouterr().out
    with pytest.raises(rn.InputError, match="subnet_depth"):
        rn.train(config.replace(subnet_depth=3), run_dir=str(tmp_path / "other"), **job)
    assert not (tmp_path / "other").exists()
