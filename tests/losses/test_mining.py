"""Hard example mining against a naive reference, and the paper's sentences about it."""

from functools import cache, partial

import numpy as np
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from experiments.paper import miniature
from retinanet_tf.config.config import LossConfig
from retinanet_tf.detection.anchors import Anchors
from retinanet_tf.detection.assignment import assign
from retinanet_tf.losses.classification import CrossEntropyLoss
from retinanet_tf.losses.mining import mine, ohem
from tests import oracles

RNG = np.random.default_rng(0)


def problem(seed, anchors=300, positives=0.1, ignored=0.1, images=2):
    """Crowded boxes, losses, targets."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (images, anchors, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (images, anchors, 2))], -1).astype(np.float32)
    share = rng.uniform(size=(images, anchors))
    targets = np.where(share < positives, rng.integers(0, 5, share.shape), -1)
    targets = np.where(share > 1 - ignored, -2, targets).astype(np.int32)
    return targets, rng.exponential(size=(images, anchors)).astype(np.float32), boxes


@cache
def expected_masks(seed, positives, examples, threshold, ratio):
    """What the naive reference chooses of `problem(seed, positives=…)`, once for both modes."""
    parts = zip(*problem(seed, positives=positives), strict=True)
    return [oracles.hard_examples(*image, examples, threshold, ratio) for image in parts]


MODES = {"image by image": {}, "static shapes": {"static_shapes": True}}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", *MODES])
@pytest.mark.parametrize("ratio", [None, 3.0, 1.0])
@pytest.mark.parametrize(("examples", "threshold"), [(1, 0.5), (16, 0.5), (64, 0.7), (1000, 0.5), (20, 0.0)])
def test_masks_are_those_of_the_naive_reference(mode, ratio, examples, threshold):
    run = partial(ohem, num_examples=examples, nms_threshold=threshold, ratio=ratio)
    if mode != "eager":
        run = tf.function(partial(run, **MODES[mode]))
    for seed, positives in enumerate((0.0, 0.03, 0.3, 0.9)):
        targets, losses, boxes = problem(seed, positives=positives)
        ours = run(targets, losses, boxes)
        np.testing.assert_array_equal(ours, expected_masks(seed, positives, examples, threshold, ratio))


@pytest.mark.slow
def test_positives_of_low_loss_are_found_below_many_negatives():
    """1:3 looks as far down as needed: the positives here are the easiest of all survivors."""
    targets, losses, boxes = problem(9, anchors=600, positives=0.05)
    losses = np.where(targets >= 0, losses * 1e-3, losses + 1.0).astype(np.float32)
    ours = ohem(targets, losses, boxes, 8, 0.5, 3.0)
    for image in range(len(targets)):
        expected = oracles.hard_examples(targets[image], losses[image], boxes[image], 8, 0.5, 3.0)
        np.testing.assert_array_equal(ours[image], expected)
        assert (expected >= 0).sum() == 2 and (expected == -1).sum() == 6


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("ratio", "examples"), [(None, 16), (None, 200), (3.0, 16)])
def test_xla_chooses_the_same_anchors(ratio, examples, mode):
    targets, losses, boxes = (tf.constant(part) for part in problem(3, anchors=100, positives=0.1))
    compiled = tf.function(partial(ohem, num_examples=examples, ratio=ratio, **MODES[mode]), jit_compile=True)
    expected = ohem(targets, losses, boxes, examples, ratio=ratio)
    np.testing.assert_array_equal(compiled(targets, losses, boxes), expected)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_ignored_is_selected_and_nothing_ignored_suppresses(mode):
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]], np.float32)
    chosen = ohem(np.array([[-2, 3, -1]], np.int32), np.array([[9.0, 2.0, 1.0]], np.float32), boxes, **MODES[mode])
    np.testing.assert_array_equal(chosen, [[-2, 3, -1]])


def test_of_two_that_overlap_the_harder_one_stays():
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]], np.float32)
    chosen = ohem(np.array([[-1, 3, -1]], np.int32), np.array([[1.0, 2.0, 0.5]], np.float32), boxes)
    np.testing.assert_array_equal(chosen, [[-2, 3, -1]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ratio", [None, 3.0])
def test_an_image_without_usable_anchors_selects_none(ratio, mode):
    targets, losses, boxes = problem(0, ignored=1.0)
    assert (ohem(targets, losses, boxes, ratio=ratio, **MODES[mode]).numpy() == -2).all()


def test_an_image_without_anchors_selects_none():
    for ratio in (None, 3.0):
        empty = ohem(np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32), np.zeros((0, 4)), ratio=ratio)
        assert empty.shape == (2, 0)


def test_boxes_may_be_shared_by_all_images():
    targets, losses, boxes = problem(1)
    together = ohem(targets, losses, boxes[0], 32)
    apart = ohem(targets, losses, np.stack([boxes[0], boxes[0]]), 32)
    np.testing.assert_array_equal(together, apart)


def tiny(**settings):
    model = rn.RetinaNet(num_classes=3, **TINY_NETWORK, **settings)
    losses = rn.retinanet_losses(LossConfig(classification="cross_entropy", alpha=0.5))
    model.compile(optimizer="sgd", loss=losses, jit_compile=False)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ohem", "ohem_1_3"])
def test_the_training_job_learns_from_the_chosen_anchors_alone(kind):
    """Gradients on the class logits only where `mine` chose, and the sum divided by how many were chosen."""
    model = tiny(mining=kind, mining_examples=16, mining_nms=0.7)
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)), tf.float32)
    truth = {"boxes": tf.constant([[[4.0, 8, 36, 40]], [[0, 0, 0, 0]]]), "labels": tf.constant([[1], [-1]])}
    outputs = {name: tf.identity(value) for name, value in model(images).items()}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        value = model.compute_loss(x=images, y=truth, y_pred=outputs)
    found = tape.gradient(value, outputs)
    anchors = model.anchors(images)
    assigned = assign(anchors, truth["boxes"], truth["labels"])
    loss = CrossEntropyLoss(0.5)
    logits = outputs["class_logits"]
    losses = loss.per_anchor(assigned.class_targets, logits)
    chosen = ohem(assigned.class_targets, losses, anchors, 16, 0.7, {"ohem": None, "ohem_1_3": 3.0}[kind])
    counted = chosen.numpy() != -2
    assert (counted.sum(1) == ([16, 3] if kind == "ohem_1_3" else [16, 16])).all()
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        expected = tf.reduce_mean(loss.call(chosen, outputs["class_logits"]) / counted.sum(1).astype(np.float32))
    expected = tape.gradient(expected, outputs["class_logits"])
    np.testing.assert_allclose(found["class_logits"], expected, atol=1e-7)
    assert (np.abs(found["class_logits"]).sum(-1) > 0).tolist() == counted.tolist()
    moved = np.abs(found["box_deltas"]).sum(-1) > 0
    assert moved.any() and not moved[~(counted & assigned.positive.numpy())].any()
    places, targets_of = mine(loss, assigned.class_targets, logits, anchors, kind, 16, 0.7)
    for image in range(2):
        real = targets_of[image].numpy() != -2
        assert sorted(places[image].numpy()[real]) == np.flatnonzero(counted[image]).tolist()
        np.testing.assert_array_equal(targets_of[image], chosen.numpy()[image][places[image]])


@pytest.mark.parametrize("losses", [RNG.uniform(size=(2, 12_240)), np.full((2, 12_240), 0.01)], ids=["any", "equal"])
def test_the_miniatures_minibatches_are_full(losses):
    """So there a constant divisor of their sum is a learning rate (experiments/README.md)."""
    anchors = Anchors(miniature.BASE.anchors)(tf.zeros((1, 256, 256, 3)))
    kept = ohem(np.full(losses.shape, -1), tf.constant(losses, tf.float32), anchors, 2048, 0.5)
    assert (np.sum(kept != -2, axis=1) == 2048).all()


@pytest.mark.slow
def test_it_trains_and_comes_back_from_its_configuration():
    model = rn.RetinaNet.from_config(tiny(mining="ohem", mining_examples=8).get_config())
    assert model.mining == {"mining": "ohem", "mining_examples": 8, "mining_nms": 0.5}
    losses = rn.retinanet_losses(LossConfig(classification="cross_entropy"))
    model.compile(optimizer="sgd", loss=losses, jit_compile=False)
    truth = {"boxes": np.array([[[4.0, 8, 36, 40]]] * 2, np.float32), "labels": np.array([[1]] * 2, np.int32)}
    data = tf.data.Dataset.from_tensors((np.full((2, 64, 64, 3), 90, np.float32), truth)).repeat(2)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()
