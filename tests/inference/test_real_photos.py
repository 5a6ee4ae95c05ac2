"""The library on real photographs: COCO's own annotations, the paper's own configuration.

The commands on the same photographs are in test_documentation.py, as the README has them.
"""

import json

import numpy as np
import pytest
import tensorflow as tf

import retinanet_tf as rn
from retinanet_tf.data.pipeline import load_for_training
from retinanet_tf.training.train import compile_model

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def coco(test_data, tmp_path_factory):
    """Shards of the real COCO photos: `train`, `val`, and `four` pictures of few objects to overfit."""
    source, output = test_data / "coco_ccby", tmp_path_factory.mktemp("coco")
    for name in ("train", "val"):
        rn.data.prepare(source / f"instances_{name}.json", source / "images", output, name, progress=False)
    content = json.loads((source / "instances_train.json").read_text())
    boxes = {}
    for annotation in content["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    few = [image for image in content["images"] if 1 <= len(boxes.get(image["id"], ())) <= 3][:4]
    assert len(few) == 4
    chosen = {image["id"] for image in few}
    content["images"] = few
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in chosen]
    (output / "four.json").write_text(json.dumps(content))
    rn.data.prepare(output / "four.json", source / "images", output, "four", progress=False)
    return output


@pytest.fixture(scope="module")
def overfitted(coco, tmp_path_factory):
    """A detector trained on `four`."""
    config = rn.presets["mini"].replace(
        num_classes=80,
        image_size=96,
        max_size=160,
        anchor_multiplier=3.0,
        promote="always",
        strategy="one_device",
        batch_size=4,
        flip=0.0,
        learning_rate=4e-3,
        warmup_steps=20,
        steps=100,
        checkpoint_steps=100,
    )
    model = rn.train(config, data=str(coco / "four-*.tfrecord"), run_dir=str(tmp_path_factory.mktemp("four") / "run"))
    return rn.Detector.from_config(config, model, rn.data.LabelMap.load(coco / "labels.json"))


def test_a_small_network_finds_the_boxes_of_the_photos_it_saw(overfitted, coco):
    """Four real photos, overfitted: not a falling loss but found boxes, AP50 of at least 0.9 by pycocotools."""
    metrics = rn.evaluate(overfitted, str(coco / "four-*.tfrecord"), progress=False)
    print(metrics)
    assert metrics["AP50"] >= 0.9


@pytest.fixture(scope="module")
def paper_model(coco):
    """The paper's configuration after a step of model.fit on real photos, their history, and how it began."""
    config = rn.presets["paper"].replace(batch_size=1)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = compile_model(config)
    data = load_for_training(config, str(coco / "train-*.tfrecord"))
    images, _ = next(iter(data))
    prior = float(tf.reduce_mean(tf.sigmoid(model(images, training=False)["class_logits"])))
    history = model.fit(data, steps_per_epoch=1, verbose=0).history
    return model, history, prior


def test_the_papers_configuration_trains_on_real_photos(paper_model):
    """ResNet-50-FPN, 600 px, A = 9, K = 80: a real step of model.fit with finite losses."""
    model, history, _ = paper_model
    assert model.config.num_classes == 80 and model.anchors.config.anchors_per_cell == 9
    for name in ("loss", "class_logits_loss", "box_deltas_loss"):
        assert len(history[name]) == 1 and np.isfinite(history[name]).all()


def test_the_first_step_starts_at_the_prior(paper_model):
    """Mean foreground probability on a real photo, through the whole fresh network: π = 0.01 within 5 %."""
    assert abs(paper_model[2] - 0.01) < 0.0005
