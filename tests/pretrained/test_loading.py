"""Weights that are there already as a start: of a job, a backbone, other categories; all or nothing."""

import numpy as np
import pytest

import retinanet_tf as rn
from retinanet_tf import pretrained
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.inference import checkpoint
from retinanet_tf.pretrained.loading import assign
from retinanet_tf.training import run_directory

RNG = np.random.default_rng(0)
SMALL = {"backbone": "resnet10_w16", "fpn_channels": 16, "subnet_channels": 16, "subnet_depth": 1}


@pytest.fixture
def trained(tmp_path):
    """A run directory of a small detector of 3 classes, as training leaves it."""
    config = rn.presets["paper"].replace(num_classes=3, **SMALL)
    labels = rn.data.LabelMap([1, 2, 3], ["a", "b", "c"])
    run_directory.start(tmp_path / "run", config, labels, data="data", validation="")
    model = rn.RetinaNet.from_config(config)
    model.set_weights([RNG.normal(0, 0.1, value.shape).astype(np.float32) for value in model.get_weights()])
    checkpoint.save_weights(model, tmp_path / "run" / checkpoint.WEIGHTS)
    return model, tmp_path / "run", labels


def test_the_backbone_of_a_job_starts_a_detector_of_another_shape(trained, tmp_path):
    """What `keep_backbone` wrote fills the stem and the stages, and nothing else, whatever pyramid and subnets are."""
    model, run_dir, _ = trained
    report = pretrained.keep_backbone(run_dir, tmp_path / "backbone")
    assert report.parts == "backbone" and all(name.startswith(("stem", "stage")) for name in report.matched)
    settings = {**SMALL, "fpn_channels": 24, "subnet_depth": 2}
    other = rn.RetinaNet.from_config(rn.presets["paper"].replace(num_classes=7, **settings))
    found = pretrained.initialize(other, tmp_path / "backbone")
    assert set(found.matched) == set(report.matched)
    for name in ("stem_conv", "stage5_block0_2_conv"):
        np.testing.assert_array_equal(other.get_layer(name).kernel, model.get_layer(name).kernel)
    with pytest.raises(rn.InputError, match="backbone alone"):
        rn.load_detector(tmp_path / "backbone")


def test_other_classes_keep_everything_but_the_last_class_convolution(trained):
    before, run, labels = trained
    model = rn.RetinaNet(num_classes=5, **SMALL)
    report = pretrained.initialize(model, run)
    assert report.missing == ["class_subnet/predictor/kernel", "class_subnet/predictor/bias"]
    assert "3 categories there, 5 here" in str(report)
    for name in ("stem_conv", "fpn_p7"):
        np.testing.assert_array_equal(model.get_layer(name).get_weights()[0], before.get_layer(name).get_weights()[0])
    np.testing.assert_allclose(model.get_layer("class_subnet").predictor.bias, -np.log(99), rtol=1e-6)

    same = rn.RetinaNet(num_classes=3, **SMALL)
    assert not pretrained.initialize(same, run, labels).missing
    for mine, theirs in zip(same.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    renamed = rn.data.LabelMap([1, 2, 3], ["a", "b", "other"])
    assert len(pretrained.initialize(same, run, renamed).missing) == 2


def test_nothing_is_assigned_where_one_tensor_is_wrong():
    model = rn.RetinaNet(num_classes=3, **SMALL)
    before = model.get_layer("fpn_p7").get_weights()[1]
    for array, match in ((np.full(16, np.nan), "their.b holds values that are not finite"), (np.ones(4), "wants")):
        arrays = {"fpn_p7/bias": np.ones(16), "fpn_p6/bias": array}
        with pytest.raises(rn.InputError, match=match):
            assign(model, arrays, "f.pkl", {"fpn_p6/bias": "their.b"})
    with pytest.raises(rn.InputError, match="their.c is for fpn_p8/bias, which this network doesn't have"):
        assign(model, {"fpn_p8/bias": np.ones(16)}, "f.pkl", {"fpn_p8/bias": "their.c"})
    np.testing.assert_array_equal(model.get_layer("fpn_p7").get_weights()[1], before)


def test_training_starts_from_given_weights(tmp_path, capsys):
    """One step of learning rate 0 from a run of other categories: its pyramid, and a fresh class layer."""
    splits = shapes.generate(tmp_path / "coco", num_train=4, num_val=1, image_size=64)
    rn.data.prepare(splits["train"].annotations, splits["train"].images, tmp_path, "train", shards=1, progress=False)
    settings = {"image_size": 64, "max_size": 64, "batch_size": 2, "steps": 1, "checkpoint_steps": 1}
    settings |= {**SMALL, "max_level": 5, "strategy": "one_device"}
    config = rn.presets["mini"].replace(**settings, warmup_steps=0, learning_rate=0.0, weight_decay=0.0)
    start = config.replace(num_classes=2)
    run_directory.start(tmp_path / "start", start, rn.data.LabelMap([1, 2], ["a", "b"]), data="d", validation="")
    before = rn.RetinaNet.from_config(start)
    checkpoint.save_weights(before, tmp_path / "start" / checkpoint.WEIGHTS)
    job = {"data": str(tmp_path / "train-*.tfrecord"), "verbose": 0, "init_weights": str(tmp_path / "start")}
    model = rn.train(config, run_dir=str(tmp_path / "run"), **job)
    kernels = [np.array(other.get_layer("fpn_output4").get_weights()[0]) for other in (model, before)]
    np.testing.assert_array_equal(*kernels)
    assert "the last class convolution stays fresh: 2 categories there" in capsys.readouterr().out
    with pytest.raises(rn.InputError, match="subnet_depth"):
        rn.train(config.replace(subnet_depth=3), run_dir=str(tmp_path / "other"), **job)
    assert not (tmp_path / "other").exists()
