"""Imported checkpoints of the published networks: outputs and detections are the published ones'."""

import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import oracles
import pytest
import tensorflow as tf
import torch_writer
from published import BASIC, IMAGE, STAGES, Published, close, write, write_safetensors

import retinanet_tf as rn
from retinanet_tf import pretrained
from retinanet_tf.inference import checkpoint
from retinanet_tf.models.network import variables
from retinanet_tf.models.resnet import VARIANTS
from retinanet_tf.pretrained.architecture import identify
from retinanet_tf.pretrained.importing import COCO, class_columns, convert
from retinanet_tf.pretrained.reading import read_tensors
from retinanet_tf.pretrained.zoo import ZOO

pytestmark = pytest.mark.usefixtures("small_backbone")
CASES = {
    "detectron": ("detectron", "detectron", "resnet50", 80),
    "detectron X101-32x8d": ("detectron", "detectron", "resnext101_32x8d", 80),
    "torchvision v1": ("torchvision", "torchvision", "resnet50", 91),
    "torchvision v2": ("torchvision", "torchvision2", "resnet50", 91),
    "mlperf": ("torchvision", "torchvision", "resnext50_32x4d", 264),
    "deepforest": ("torchvision", "torchvision", "resnet_small", 1, 32),
}
"""(source, kind, backbone, class columns, channels); what detections add is tested once per source."""


def write_published(folder, case, tensors):
    """The file of a case in its source's own format."""
    tensors = dict(tensors)
    if case == "deepforest":
        return write_safetensors(folder / "model.safetensors", {f"model.{name}": tensors[name] for name in tensors})
    if case == "torchvision v1":
        return torch_writer.save(folder / "v1.pth", OrderedDict(tensors), older=True)
    if case == "torchvision v2":
        return torch_writer.save(folder / "v2.pth", OrderedDict(tensors))
    if case == "mlperf":
        return torch_writer.save(folder / "retinanet_model_10.pth", {"model": tensors, "optimizer": {}, "epoch": 10})
    return write(folder / "model_final.pkl", {"blobs": {**tensors, "conv1_w_momentum": np.ones(3, np.float32)}})


def numbered(count):
    """A label map of ids from 1."""
    return rn.data.LabelMap(range(1, count + 1), [f"name {number}" for number in range(1, count + 1)])


TRAINED = {
    "detectron": ("smooth_l1", "replica", "above_negative"),
    "detectron2": ("l1", "global", "always"),
    "torchvision": ("l1", "image", "always"),
    "torchvision2": ("giou", "image", "always"),
}
"""Box loss, normaliser and promotion of each kind's training."""


@pytest.fixture(scope="module")
def detectron2():
    """A checkpoint of detectron2 and its class logits and box deltas on IMAGE."""
    published = Published("detectron2", "resnet_small", channels=32)
    return published, *published.outputs(IMAGE)


@pytest.mark.once
@pytest.mark.parametrize("case", list(CASES))
def test_the_imported_network_is_the_published_one(case, tmp_path):
    source, *kind = CASES[case]
    published = Published(*kind)
    logits, deltas = published.outputs(IMAGE)
    assert 0.1 < logits.std() < 100 and 0.01 < deltas.std() < 100
    file = write_published(tmp_path, case, published.tensors)
    label_map = None if published.columns in (80, 91) else numbered(published.columns)
    imported = convert(source, read_tensors(file), file.name, label_map)
    model, config, label_map, report, preset = imported
    assert preset == ("modern" if published.source == "torchvision2" else "")
    assert not report.missing and report.unused == (["conv1_w_momentum"] if source == "detectron" else [])
    assert set(report.matched.values()) == set(published.tensors)
    check_settings(config, published)
    out = model(IMAGE, training=False)
    if published.columns == 91:
        logits = logits[:, list(COCO.ids)]
    close(out["class_logits"][0], logits)
    close(out["box_deltas"][0], deltas)
    thresholds = {
        # The authors' code has no threshold on P7; torchvision gives 300 detections, the others 100.
        "detectron": {"score": [0.05, 0.05, 0.05, 0.05, 0.0], "limit": 100},
        "torchvision v1": {"score": 0.05, "limit": 300},
        "deepforest": {"score": 0.1, "limit": 300, "nms_iou": 0.05},
    }
    if case in thresholds:
        if case == "deepforest":
            config = config.replace(**ZOO["deepforest/tree"].settings)
        detector = rn.Detector.from_config(config, model, label_map)
        check_detections(detector, logits, deltas, **thresholds[case])
    if case == "mlperf":
        check_squares(published, imported)


class Shapes(Published):
    """Kernels of zeros that take no memory, in place of convolutions."""

    def conv(self, x, name, out, size, stride=1, groups=1, bias=True, **_):
        shape = (out, x.shape[-1] // groups, size, size)
        self.tensors[name + self.endings[0]] = np.broadcast_to(np.float32(0), shape)
        if bias:
            self.tensors[name + self.endings[1]] = np.zeros(out, np.float32)
        return np.zeros((*x.shape[:3], out), np.float32)


@pytest.mark.parametrize("source", ["detectron", "detectron2", "torchvision"])
def test_every_published_backbone_is_recognised_by_its_shapes(source):
    assert set(STAGES) == set(VARIANTS) - {"resnet10_w16", "resnet14_w24"}, "those two are this project's own"
    for name in STAGES if source == "torchvision" else set(STAGES) - set(BASIC):
        published = Shapes(source, name, columns=7)
        published.outputs(np.zeros((1, 1, 1, 3), np.float32))
        found = identify(published.tensors, source, name)
        assert (found.backbone, found.class_columns, found.anchors_per_cell) == (name, 7, 9)


def check_squares(published, imported):
    """MLPerf's row stretches pictures to squares: detections in the picture's pixels, by the naive loops."""
    settings = ZOO["mlperf/retinanet_resnext50_32x4d"].settings
    assert settings == {"resize": "stretch", "image_size": 800, "max_size": 800}
    config = imported.config.replace(**settings).replace(image_size=64, max_size=64)
    model = rn.RetinaNet.from_config(config)
    model.set_weights(imported.model.get_weights())
    square = tf.image.resize(IMAGE, (64, 64), antialias=False).numpy()  # from 96×64
    logits, deltas = published.outputs(square)
    detector = rn.Detector(model, imported.label_map, config.detect)
    check_detections(detector, logits, deltas, limit=300, canvas=square, scale=(64 / 96, 1))


@pytest.mark.slow
def test_a_network_fine_tuned_with_torchvision_and_lightning(tmp_path):
    """Its output 0 is the background; in half precision, the weights are those of the file."""
    published = Published("torchvision", "resnet_small", columns=4, channels=32)
    published.outputs(IMAGE)
    half = {name: tensor.astype(np.float16) for name, tensor in published.tensors.items()}
    published.tensors = {name: tensor.astype(np.float32) for name, tensor in half.items()}
    logits, deltas = published.outputs(IMAGE)
    state = {**{f"detector.module.{name}": tensor for name, tensor in half.items()}, "metric.total": np.zeros(3)}
    content = {"state_dict": state, "hyper_parameters": {"classes": tmp_path}, "optimizer_states": []}
    file = torch_writer.save(tmp_path / "last.ckpt", content)
    with pytest.raises(rn.InputError, match=r"last.ckpt has 4 class outputs per anchor, but not their names: give lab"):
        pretrained.import_weights("torchvision", file, tmp_path / "out")
    zero = rn.data.LabelMap([0, 1, 2], ["a", "b", "c"])
    with pytest.raises(rn.InputError, match="number the categories from 1"):
        pretrained.import_weights("torchvision", file, tmp_path / "out", label_map=zero)
    assert not (tmp_path / "out").exists()
    report = pretrained.import_weights("torchvision", file, tmp_path / "out", label_map=numbered(3))
    assert report.unused == ["metric.total"]
    detector = rn.load_detector(tmp_path / "out")
    assert detector.label_map == numbered(3)
    out = detector.model(IMAGE, training=False)
    close(out["class_logits"][0], logits[:, 1:])
    close(out["box_deltas"][0], deltas)


def test_a_network_fine_tuned_with_detectron2_and_other_anchors(tmp_path):
    """Two scales: they are asked for, and compared with those that detectron2 stored."""
    published = Published("detectron2", "resnet_small", columns=2, channels=32, anchors=6)
    logits, deltas = published.outputs(IMAGE)
    stored = {}
    for index, stride in enumerate((8, 16, 32, 64, 128)):
        # Scale by scale: area (4·stride·scale)², height / width 1/2, 1, 2.
        sides = [(4 * stride * scale / r**0.5, 4 * stride * scale * r**0.5) for scale in (1, 1.5) for r in (0.5, 1, 2)]
        anchors = np.float32([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])
        stored[f"anchor_generator.cell_anchors.{index}"] = anchors
    content = {"model": {**published.tensors, **stored}, "optimizer": {}, "iteration": 99}
    tensors = read_tensors(torch_writer.save(tmp_path / "model_final.pth", content))
    with pytest.raises(rn.InputError, match="f.pth has 6 anchors per position, the configuration 9; give anchor_sca"):
        convert("detectron2", tensors, "f.pth", numbered(2))
    for scales, refused in (((1.0, 2.0), True), ((1.0, 1.5), False)):

        def adjust(config, scales=scales):
            return config.replace(anchor_scales=scales)

        if refused:
            with pytest.raises(rn.InputError, match="f.pth was trained with other anchors.*at level 3"):
                convert("detectron2", tensors, "f.pth", numbered(2), adjust)
            continue
        imported = convert("detectron2", tensors, "f.pth", numbered(2), adjust)
        out = imported.model(IMAGE, training=False)
        close(out["class_logits"][0], logits)
        close(out["box_deltas"][0], deltas)


def check_settings(config, published):
    """Network and training of a published kind."""
    p6_from = "c5" if published.p6_from_c5 else "p5"
    assert (config.model.backbone, config.model.p6_from) == (published.backbone, p6_from)
    assert config.model.subnet_depth == 4 and config.model.fpn_channels == published.channels
    assert config.model.subnet_channels == published.channels
    assert config.model.subnet_norm == ("group" if published.group_norm else "none")
    assert config.model.stride_in == ("1x1" if published.stride_first else "3x3")
    assert (config.loss.box, config.loss.normalizer, config.assign.promote) == TRAINED[published.source]
    assert config.model.norm_epsilon == published.epsilon


def check_detections(detector, logits, deltas, score=0.05, limit=100, nms_iou=0.5, canvas=IMAGE, scale=(1, 1)):
    """Through resizing, threshold, top k and NMS, against the naive loops on the reference's outputs on `canvas`."""
    model, (height, width) = detector.model, canvas.shape[1:3]
    # The levels' sizes: for 96×64 P3 12×8 … P7 1×1.
    counts = np.cumsum([9 * -(-height // stride) * -(-width // stride) for stride in (8, 16, 32, 64, 128)])
    anchors = model.anchors(canvas).numpy()
    split = [np.split(value, counts[:-1]) for value in (logits, deltas, anchors)]
    options = {"score": score, "limit": limit, "nms_iou": nms_iou}
    expected = oracles.detections(*split, scale=scale, size=(96, 64), **options)
    found = rn.Detector(model, detector.label_map, detector.config, image_size=64, max_size=height)([IMAGE[0]])
    count = int(found["num_detections"][0])
    assert count == len(expected) > 20
    scores = np.array([row[0] for row in expected])
    np.testing.assert_allclose(found["scores"][0][:count], scores, atol=1e-3)
    # Equal scores may come in another order; the sets of boxes are compared.
    boxes = np.asarray(found["boxes"][0][:count])
    for score, label, box in expected:
        near = (np.abs(boxes - box).max(axis=1) < 0.5) & (np.asarray(found["labels"][0][:count]) == label)
        assert (near & (np.abs(found["scores"][0][:count] - score) < 1e-3)).any()


@pytest.mark.slow
def test_detectron2s_network_as_one_file(detectron2, tmp_path):
    published, logits, deltas = detectron2
    tensors = {**published.tensors, "pixel_mean": np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1)}
    file = write(tmp_path / "model_final.pkl", tensors, "model")
    pretrained.import_weights("detectron2", file, tmp_path / "r50.weights.h5")
    assert sorted(path.name for path in tmp_path.glob("r50.*")) == [
        "r50.flags.txt", "r50.import.json", "r50.labels.json", "r50.run.json", "r50.weights.h5",
    ]  # fmt: skip
    detector = rn.load_detector(tmp_path / "r50.weights.h5")
    assert detector.label_map.names[:2] == ("person", "bicycle") and detector.label_map.ids[-1] == 90
    assert (detector.image_size, detector.max_size) == (800, 1333)
    out = detector.model(IMAGE, training=False)
    close(out["class_logits"][0], logits)
    close(out["box_deltas"][0], deltas)
    check_detections(detector, logits, deltas)
    flags = (tmp_path / "r50.flags.txt").read_text().splitlines()
    assert {"--box=l1", "--normalizer=global", "--promote=always", "--gamma=2.0"} < set(flags)
    assert not [flag for flag in flags if flag.startswith("--num_classes")], "the user's own"
    report = json.loads((tmp_path / "r50.import.json").read_text())
    assert report["unused"] == ["pixel_mean"] and len(report["matched"]) == len(published.tensors)


@pytest.mark.once
@pytest.mark.parametrize(
    ("annotations", "images", "classes"),
    [("bccd/instances_train.json", "bccd/images", 3), ("cards/train", "cards/train", 6)],
    ids=["blood cells", "playing cards"],
)
def test_fine_tuning_on_real_pictures(tmp_path, capsys, annotations, images, classes):
    """From a detector in the layout of torchvision's v2: its recipe, its weights, fresh classes."""
    folder = os.environ.get("RETINANET_TF_TEST_DATA")
    if not folder:
        pytest.skip("RETINANET_TF_TEST_DATA isn't set")
    published = Published("torchvision2", "resnet_small", 91, channels=32)
    published.outputs(IMAGE)
    weights = tmp_path / "weights"
    pretrained.import_weights("torchvision", torch_writer.save(tmp_path / "v2.pth", published.tensors), weights)
    assert (weights / "flags.txt").read_text().startswith("--preset=modern\n")
    config = pretrained.starting_config(weights)
    modern, brought = rn.presets["modern"].flat(), config.flat()
    own = {"backbone", "fpn_channels", "subnet_channels"}
    assert {name for name in modern if modern[name] != brought[name]} == own
    assert pretrained.starting_config(weights, "mini").train == rn.presets["mini"].train
    data = tmp_path / "data"
    rn.data.prepare(Path(folder, annotations), Path(folder, images), data, name="train", limit=6, progress=False)
    small = {"num_classes": classes, "image_size": 128, "max_size": 192, "strategy": "one_device"}
    small |= {"batch_size": 2, "steps": 2, "checkpoint_steps": 1, "warmup_steps": 0, "decay_steps": ()}
    pattern, run = str(data / "train-*.tfrecord"), tmp_path / "run"
    model = rn.train(config.replace(**small), data=pattern, run_dir=run, init_weights=str(weights), verbose=0)
    said = capsys.readouterr().out
    assert "2 left at their initial values: class_subnet/predictor/kernel, class_subnet/predictor/bias" in said
    assert f"its 80 categories are not the {classes} here" in said and "adamw, learning rate 0.0001" in said
    before, after = (variables(one) for one in (rn.load_detector(weights).model, model))
    for name, value in before.items():
        old, new = np.array(value), np.array(after[name])
        if name.startswith("class_subnet/predictor"):
            assert new.shape[-1] == 9 * classes
        elif name.startswith(("stem", "stage2")):
            np.testing.assert_array_equal(new, old)
        elif name.endswith("/kernel"):
            assert 0 < np.abs(new - old).max() < 1e-3, "two steps of AdamW from the weights"
    np.testing.assert_allclose(after["class_subnet/predictor/bias"], -np.log(99), atol=1e-3)


@pytest.mark.slow
def test_a_failed_import_keeps_the_earlier_one_and_half_a_one_is_no_model(detectron2, tmp_path, monkeypatch):
    tensors, first = detectron2[0].tensors, numbered(80)
    other = rn.data.LabelMap(first.ids, [f"other {name}" for name in first.names])
    file = write(tmp_path / "f.pkl", tensors)
    pretrained.import_weights("detectron2", file, tmp_path / "out", label_map=first)
    free = shutil.disk_usage(tmp_path)._replace(free=20_000)
    with monkeypatch.context() as full, pytest.raises(rn.InputError, match="can't be written: it needs"):
        full.setattr(shutil, "disk_usage", lambda path: free)
        pretrained.import_weights("detectron2", file, tmp_path / "out", label_map=other)
    assert rn.load_detector(tmp_path / "out").label_map == first

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(checkpoint, "save_weights", killed)
        pretrained.import_weights("detectron2", file, tmp_path / "out", label_map=other)
    with pytest.raises(rn.InputError, match="run.json doesn't exist"):
        rn.load_detector(tmp_path / "out")
    pretrained.import_weights("detectron2", file, tmp_path / "out", label_map=other)
    assert rn.load_detector(tmp_path / "out").label_map == other


@pytest.mark.slow
def test_statistics_that_detectron2_stored_for_rgb(detectron2):
    """The network's order is the file's; by default it is blue, green, red."""
    tensors = {
        **detectron2[0].tensors,
        "pixel_mean": np.float32([1, 2, 3]).reshape(3, 1, 1),
        "pixel_std": np.float32([4, 5, 6]).reshape(3, 1, 1),
    }
    for changes, mean, std in (
        ({}, (3.0, 2.0, 1.0), (6.0, 5.0, 4.0)),
        ({"channel_order": "rgb"}, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        ({"channel_order": "rgb", "pixel_mean": (7.0, 8.0, 9.0)}, (7.0, 8.0, 9.0), (4.0, 5.0, 6.0)),
    ):
        config = convert("detectron2", tensors, "f.pth", adjust=lambda config, c=changes: config.replace(**c)).config
        assert (config.model.pixel_mean, config.model.pixel_std) == (mean, std)


def test_outputs_without_a_category_are_told(detectron2):
    """Of detectron2 no output is a background, so a label map of fewer categories may be a wrong one."""
    published = Published("detectron2", "resnet_small", columns=3, channels=32)
    published.outputs(IMAGE)
    labels = rn.data.LabelMap([1, 2], ["cat", "dog"])
    notes = convert("detectron2", published.tensors, "f.pth", labels).report.notes
    assert "1 class outputs, e.g. 0, have no category in the label map and are left out." in notes


def with_normalised_subnets(tensors):
    """detectron2's MODEL.RETINANET.NORM: convolutions are layers 0, 3, 6, 9 of a subnet, norms 1, 4, 7, 10."""
    renamed = {}
    for name, value in tensors.items():
        head, subnet, index, *weight = (*name.split("."), "", "", "")[:4]
        if head == "head" and subnet.endswith("subnet"):
            place = int(index) // 2 * 3
            renamed[f"head.{subnet}.{place}.{weight[0]}"] = value
            renamed[f"head.{subnet}.{place + 1}.{weight[0]}"] = np.ones(256, np.float32)
        else:
            renamed[name] = value
    return renamed


def changed(name, change):
    return lambda tensors: {**tensors, name: change(tensors[name])}


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    "source, change, sentence",
    [
        ("detectron", dict, "not a checkpoint of detectron.*source=detectron2"),
        ("torchvision", lambda tensors: {"a": np.zeros(3)}, "it has a"),
        ("detectron2", without("head.bbox_pred.weight"), "not a checkpoint of detectron2"),
        ("detectron2", without("backbone.fpn_lateral4.bias"), "lacks 1 tensors .*, e.g. for fpn_lateral4/bias"),
        ("detectron2", without("head.cls_score.bias"), "lacks 1 tensors .*predictor/bias"),
        ("detectron2", without("head.cls_subnet.6.weight"), "3 tensors, e.g. head.cls_subnet.6.bias, which subnets"),
        ("detectron2", without("head.bbox_subnet.6.weight"), "lacks 1 tensors .*box_subnet/conv3/kernel"),
        ("detectron2", with_normalised_subnets, "which subnets of 1 convolutions with subnet_norm=none don't have"),
        ("detectron2", changed("backbone.bottom_up.stem.conv1.weight", np.ravel), "not a checkpoint of detectron2"),
        ("detectron2", changed("head.cls_score.bias", lambda bias: bias[:-1]), r"has shape \(719,\)"),
        (
            "detectron2",
            changed("head.cls_score.weight", lambda kernel: kernel[:-1]),
            "719 class outputs per position, which is no multiple of its 9",
        ),
        ("detectron2", changed("head.bbox_pred.weight", lambda kernel: kernel[:3]), "has 0 anchors per position"),
        (
            "detectron2",
            changed("backbone.fpn_output3.bias", lambda bias: np.full((), 1, np.float32)),
            r"has shape \(\)",
        ),
        ("detectron2", lambda tensors: {**tensors, "pixel_mean": np.full(3, np.nan)}, "pixel_mean=nan"),
        ("detectron2", lambda tensors: {**tensors, "pixel_std": np.zeros(3)}, "pixel_std=0.0"),
        (
            "detectron2",
            lambda tensors: {**tensors, "backbone.bottom_up.res4.0.conv3.norm.weight": np.ones(7)},
            r"res4.0.conv3.norm.weight has shape \(7,\).*wants \(1024,\)",
        ),
    ],
)
def test_wrong_tensors_are_refused(detectron2, tmp_path, source, change, sentence):
    file = write(tmp_path / "f.pkl", change(detectron2[0].tensors))
    with pytest.raises(rn.InputError, match=sentence):
        pretrained.import_weights(source, file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_columns_go_by_id_where_a_background_is_counted():
    label_map = rn.data.LabelMap([1, 3, 7], ["a", "b", "c"])
    assert class_columns(3, label_map).tolist() == [0, 1, 2]
    assert class_columns(8, label_map).tolist() == [1, 3, 7]
    with pytest.raises(rn.InputError, match="fits neither"):
        class_columns(5, label_map)
    assert COCO.num_classes == 80 and COCO.names[COCO.to_index(90)] == "toothbrush"
    assert COCO.names[COCO.to_index(13)] == "stop sign" and COCO.names[COCO.to_index(18)] == "dog"
