"""Box losses: continuity, hand-worked values, decoded GIoU, and what must not count."""

import copy
import pickle
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.detection import boxes
from retinanet_tf.errors import InputError
from retinanet_tf.losses.box import GIoULoss, L1Loss, SmoothL1Loss, giou_of_deltas, smooth_l1

RNG = np.random.default_rng(0)
LOSSES = [SmoothL1Loss(), L1Loss(), GIoULoss(2.0)]


def with_mask(targets, positive):
    return tf.concat([tf.constant(targets, tf.float32), tf.constant(positive, tf.float32)[..., None]], axis=-1)


def test_smooth_l1_by_hand():
    """β = 0.11: 0.5·0.05²/0.11 = 0.011364; 0.5 − 0.055 = 0.445."""
    np.testing.assert_allclose(smooth_l1(tf.constant([0.05, -0.5, 0.0]), 0.11), [0.0113636, 0.445, 0], rtol=1e-5)


@pytest.mark.parametrize("beta", [0.11, 1.0, 3.0])
def test_smooth_l1_is_continuous_with_its_slope(beta):
    """At |d| = β value and derivative of both branches meet, whatever β: the Keras examples' version jumps."""
    d = tf.constant([beta * (1 - 1e-6), beta * (1 + 1e-6)], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(d)
        value = smooth_l1(d, beta)
    np.testing.assert_allclose(value, [beta / 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(value, d), [1, 1], rtol=1e-5)
    np.testing.assert_allclose(
        smooth_l1(d, beta) * beta, keras.losses.Huber(beta, reduction="none")(d[:, None], 0 * d[:, None]), rtol=1e-5
    )


def test_beta_0_is_l1_with_slope_0_at_0():
    d = tf.constant([-2.0, 0.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(d)
        value = smooth_l1(d, 0.0)
    np.testing.assert_array_equal(value, [2, 0, 3])
    np.testing.assert_array_equal(tape.gradient(value, d), [-1, 0, 1])


@pytest.mark.parametrize("dtype, beta", [("float32", 1e-40), ("float32", 1e-300), ("float16", 1e-8)])
def test_a_beta_that_is_0_in_the_type_is_l1_too(dtype, beta):
    d = tf.constant([-2.0, 0.0, 3.0], dtype)
    with tf.GradientTape() as tape:
        tape.watch(d)
        value = smooth_l1(d, beta)
    np.testing.assert_array_equal(value, [2, 0, 3])
    np.testing.assert_array_equal(tape.gradient(value, d), [-1, 0, 1])


def test_giou_of_deltas_is_giou_of_the_decoded_boxes():
    """For any anchors, where they are and however large."""
    corner = RNG.uniform(0, 500, (200, 2))
    anchors = tf.constant(np.concatenate([corner, corner + RNG.uniform(5, 300, (200, 2))], 1), tf.float32)
    targets, deltas = (tf.constant(RNG.normal(0, 0.5, (200, 4)), tf.float32) for _ in range(2))
    expected = boxes.giou(boxes.decode(targets, anchors), boxes.decode(deltas, anchors))
    np.testing.assert_allclose(giou_of_deltas(targets, deltas), expected, atol=2e-4)


def test_giou_loss_is_tensorflow_addons():
    addons = pytest.importorskip("tensorflow_addons")
    targets, deltas = (RNG.normal(0, 0.5, (1, 60, 4)).astype(np.float32) for _ in range(2))
    unit = tf.constant([-0.5, -0.5, 0.5, 0.5])
    theirs = addons.losses.giou_loss(boxes.decode(targets, unit), boxes.decode(deltas, unit))
    ours = GIoULoss().call(with_mask(targets, np.ones((1, 60))), deltas)
    np.testing.assert_allclose(ours[0], tf.reduce_sum(theirs), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_only_positives_count(loss):
    """Sums over images; other anchors give no loss and no gradient, be their targets or outputs NaN."""
    targets, deltas = (RNG.normal(0, 1, (2, 6, 4)).astype(np.float32) for _ in range(2))
    positive = np.array([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]], np.float32)
    clean = loss.call(with_mask(targets, positive), tf.constant(deltas))
    targets[positive == 0], deltas[positive == 0] = np.nan, np.inf
    deltas = tf.constant(deltas)
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        values = loss.call(with_mask(targets, positive), deltas)
    gradient = tape.gradient(values, deltas).numpy()
    np.testing.assert_allclose(values, clean, rtol=1e-6)
    assert values[1] == 0.0 and np.isfinite(gradient).all()
    assert not gradient[positive == 0].any() and gradient[positive == 1].any()


def test_values_by_hand():
    """One positive, off by 1 in dx and by 0.05 in dw: (1 − 0.055) + 0.0113636, times the weight."""
    targets = with_mask(np.zeros((1, 1, 4)), np.ones((1, 1)))
    deltas = tf.constant([[[1.0, 0, 0.05, 0]]])
    assert float(SmoothL1Loss().call(targets, deltas)[0]) == pytest.approx(0.945 + 0.0113636, rel=1e-5)
    assert float(SmoothL1Loss(weight=3.0).call(targets, deltas)[0]) == pytest.approx(3 * 0.9563636, rel=1e-5)
    assert float(L1Loss().call(targets, deltas)[0]) == pytest.approx(1.05)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_classes_survive_serialisation(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_xla_computes_the_same_losses(loss):
    """Value and gradient are those of eager execution, also where other anchors' deltas are NaN."""
    deltas = RNG.normal(0, 0.5, (2, 40, 4)).astype(np.float32)
    positive = RNG.uniform(size=(2, 40)) < 0.2
    targets = with_mask(RNG.normal(0, 0.5, (2, 40, 4)), positive)
    deltas[~positive] = np.nan

    def run(deltas):
        with tf.GradientTape() as tape:
            tape.watch(deltas)
            value = loss.call(targets, deltas)
        return value, tf.convert_to_tensor(tape.gradient(value, deltas))

    compiled = tf.function(run, jit_compile=True)
    for ours, theirs in zip(compiled(tf.constant(deltas)), run(tf.constant(deltas)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "deltas"), [((2, 9, 4), (2, 9, 4)), ((2, 8, 5), (2, 9, 4)), ((2, 9, 5), (2, 9, 5)), ((9, 5), (2, 9, 4))]
)
def test_other_shapes_are_named(targets, deltas):
    with pytest.raises(InputError, match=re.escape(f"box targets have shape {targets} and deltas {deltas}")):
        SmoothL1Loss()(tf.zeros(targets), tf.zeros(deltas))


def test_whole_numbers_as_targets_are_numbers():
    targets = np.array([[[0, 0, 0, 0, 1], [5, 5, 5, 5, 0]]])
    assert float(L1Loss()(targets, tf.constant([[[1.0, 0, -0.5, 0], [0, 0, 0, 0]]]))) == 1.5


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_used_loss_can_be_copied(loss):
    targets, deltas = tf.constant([[[0.0, 0.1, 0.2, 0.3, 1.0]]]), tf.constant([[[1.0, 0.0, 0.05, 0.0]]])
    value = loss(targets, deltas)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        np.testing.assert_array_equal(again(targets, deltas), value)


def test_a_changed_weight_counts_from_the_next_call_on():
    loss, targets, deltas = L1Loss(), tf.constant([[[0.0, 0.0, 0.0, 0.0, 1.0]]]), tf.constant([[[1.0, 0.0, -0.5, 0.0]]])
    loss(targets, deltas)
    loss.weight = 3.0
    assert float(loss(targets, deltas)) == 4.5
