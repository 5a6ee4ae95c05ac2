"""The preset `modern`: a step of training is that of torchvision's v2."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from modern_reference import Reference, adamw_change, anchors_of

import retinanet_tf as rn
from retinanet_tf.models.layers import normalization
from retinanet_tf.models.network import variables
from retinanet_tf.models.resnet import VARIANTS, Variant
from retinanet_tf.training.job import open_job
from retinanet_tf.training.optimizers import make_optimizer, make_schedule
from retinanet_tf.training.train import compile_model
from tests.small_jobs import write_shards

RNG = np.random.default_rng(0)
SMALL = {"backbone": "resnet_small", "fpn_channels": 64, "subnet_channels": 64, "subnet_depth": 1, "num_classes": 3}
MODERN = rn.presets["modern"].replace(**SMALL, batch_size=4, learning_rate=1e-2, steps=1, checkpoint_steps=1)
IMAGES = RNG.uniform(0, 255, (4, 64, 64, 3)).astype(np.float32)
BOXES = np.array([[[4, 8, 36, 40], [20, 20, 60, 52]], [[0, 0, 64, 64]] * 2, [[2, 30, 50, 45]] * 2, [[0] * 4] * 2])
LABELS = np.array([[0, 2], [1, -1], [2, -1], [-1, -1]], np.int32)
TRUTH = {"boxes": BOXES.astype(np.float32), "labels": LABELS}


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    VARIANTS["resnet_small"] = Variant((1, 1, 1, 1), group_width=8)
    yield
    del VARIANTS["resnet_small"]


@pytest.fixture(scope="module")
def model():
    """The network before any step."""
    keras.utils.set_random_seed(0)
    model = compile_model(MODERN)
    values = model.get_weights()
    # Scales and statistics that matter.
    model.set_weights([RNG.uniform(0.5, 1.5, value.shape) if value.ndim == 1 else value for value in values])
    for subnet in ("class_subnet", "box_subnet"):
        layer = model.get_layer(subnet).predictor
        layer.set_weights([value + RNG.normal(0, 0.05, value.shape) for value in layer.get_weights()])
    return model


def names_of(model, weights):
    """The names of some of a model's weights, in their order."""
    named = variables(model)
    return [next(name for name, value in named.items() if value is weight) for weight in weights]


def start_again(model, expected):
    """Gives a model the first weights."""
    model.set_weights([expected.before[name] for name in names_of(model, model.weights)])


@pytest.fixture(scope="module")
def expected(model):
    """The reference's loss and gradients at those weights."""
    before = {name: np.array(value) for name, value in variables(model).items()}
    reference = Reference(before, (1, 1, 1, 1), 3, depth=1)
    with tf.GradientTape() as tape:
        loss = reference.loss(IMAGES, BOXES.astype(float), LABELS)
    names = names_of(model, model.trainable_variables)
    gradients = tape.gradient(loss, [reference.weights[name] for name in names])
    gradients = {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}
    return SimpleNamespace(loss=float(loss), gradients=gradients, statistics=reference.statistics, before=before)


def close(ours, wanted, tolerance=1e-4):
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_anchors_are_torchvisions(model):
    np.testing.assert_allclose(model.anchors(tf.zeros((1, 64, 64, 3))), anchors_of(64), atol=1e-4)


@pytest.mark.slow
def test_loss_and_gradients_are_the_references(model, expected):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(IMAGES, TRUTH, model(IMAGES, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    start_again(model, expected)  # the call moved the statistics
    assert float(loss) == pytest.approx(expected.loss, rel=1e-4)
    assert {len(g.shape) for g in gradients} == {1, 4} and not any(n.startswith("stem") for n in expected.gradients)
    for (name, wanted), gradient in zip(expected.gradients.items(), gradients, strict=True):
        assert np.abs(wanted).max() > 0, name
        close(gradient, wanted)


def test_without_gradients_kernels_decay_and_nothing_else(model, expected):
    """Of every trained layer: convolutions, synchronised batch normalisation, group normalisation."""
    optimizer, rate = make_optimizer(MODERN.train), float(make_schedule(MODERN.train)(0))
    assert not model.losses, "no decay in the loss beside the optimizer's"
    zeros = [(tf.zeros(variable.shape), variable) for variable in model.trainable_variables]
    optimizer.apply_gradients(zeros)
    for name, value in variables(model).items():
        factor = 1 - 0.05 * rate if name.endswith("/kernel") and name in expected.gradients else 1
        np.testing.assert_allclose(value, expected.before[name] * factor, rtol=1e-6)
    assert sum(name.endswith(("bias", "beta", "gamma")) for name in expected.gradients) > 20
    start_again(model, expected)


def check_step(model, expected):
    """After one step: the reference's AdamW on the reference's gradients; running statistics."""
    after = {name: np.array(value) for name, value in variables(model).items()}
    rate = float(make_schedule(MODERN.train)(0))
    for name, gradient in expected.gradients.items():
        before = expected.before[name].astype(np.float64)
        decay = 0.05 if name.endswith("/kernel") else 0.0
        wanted, moved = adamw_change(before, gradient, rate, decay), after[name] - before
        # A step of Adam is the gradient's sign, so it says nothing where the gradient is all but zero.
        sure = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
        np.testing.assert_allclose(moved[sure], wanted[sure], rtol=0, atol=1e-4 * rate + 1e-6)
    for name, (mean, variance, count) in expected.statistics.items():
        close(after[f"{name}/moving_mean"], mean)
        # The divisor is N − 1 in PyTorch and in one kernel of Keras 2, N in others.
        old = 0.9 * expected.before[f"{name}/moving_variance"]
        ratio = (after[f"{name}/moving_variance"] - old) / (variance - old)
        assert np.allclose(ratio, 1, atol=1e-3) or np.allclose(ratio, count / (count - 1), atol=1e-3)
    fixed = [name for name in after if name.startswith(("stem", "stage2"))]
    assert len(fixed) > 20
    for name in fixed:
        np.testing.assert_array_equal(after[name], expected.before[name])


def test_one_step_is_the_references(model, expected):
    model.step(model, tf.constant(IMAGES), TRUTH)
    check_step(model, expected)
    averages = dict(zip(names_of(model, model.weights), model.step.average.values, strict=True))
    # The first update keeps a tenth.
    name = "fpn_output3/kernel"
    close(averages[name], 0.1 * expected.before[name] + 0.9 * np.array(variables(model)[name]), 1e-5)


def test_statistics_are_of_all_devices_images(two_devices):
    """What makes a step on two devices that of one with all images."""
    batch = RNG.normal(3, 2, (4, 3, 3, 8)).astype(np.float32)
    with two_devices.scope():
        layer = normalization("batch", 8, name="norm")
        layer.build(batch.shape)
    halves = two_devices.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.split(batch, 2)[context.replica_id_in_sync_group])
    )
    outputs = two_devices.run(tf.function(lambda images: layer(images, training=True)), args=(halves,))
    mean, variance = batch.mean(axis=(0, 1, 2)), batch.var(axis=(0, 1, 2))
    parts = [part.numpy() for part in two_devices.experimental_local_results(outputs)]
    close(np.concatenate(parts), (batch - mean) / np.sqrt(variance + 1e-5))
    close(np.array(layer.moving_mean), 0.1 * mean)
    close(np.array(layer.moving_variance), 0.9 + 0.1 * variance)


def test_two_decays_at_once_are_refused(tmp_path):
    write_shards(tmp_path)
    config = rn.presets["paper"].replace(num_classes=5, optimizer="adamw", adamw_decay=0.05)
    with pytest.raises(rn.InputError, match=r"adamw_decay=0.05 and weight_decay=0.0001 would both shrink the kernels"):
        open_job(config, data=str(tmp_path / "train-*"))


def test_the_schedule_is_26_epochs_with_drops_at_16_and_22():
    """COCO train2017 has 118,287 images, 1,021 of them without objects."""
    epoch = (118_287 - 1_021) // 16
    train = rn.presets["modern"].train
    assert (train.steps / epoch, *(step / epoch for step in train.decay_steps)) == (26, 16, 22)
    rate = make_schedule(train)
    for step, wanted in ((1000, 1e-4), (16 * epoch, 1e-5), (22 * epoch, 1e-6)):
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5)
