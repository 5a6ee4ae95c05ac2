"""Schedules at their corners, and SGD with coupled decay against a hand-written one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.config import TrainConfig
from retinanet_tf.models.layers import regularizer
from retinanet_tf.training.optimizers import AdamWOfKernels, make_optimizer, make_schedule


def test_the_papers_schedule():
    """§4.1: 0.01, a tenth of it from step 60k on, a hundredth from 80k on."""
    rate = make_schedule(TrainConfig())
    for step, expected in ((0, 1e-2), (59_999, 1e-2), (60_000, 1e-3), (79_999, 1e-3), (80_000, 1e-4), (89_999, 1e-4)):
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)


def test_the_authors_warm_up():
    """Linear from a third over 500 steps: at half the way, the mean of 1/3 and 1."""
    rate = make_schedule(TrainConfig(warmup_steps=500))
    assert float(rate(0)) == pytest.approx(0.01 / 3)
    assert float(rate(250)) == pytest.approx(0.01 * 2 / 3)
    assert float(rate(500)) == pytest.approx(0.01)


def test_cosine_ends_at_zero():
    rate = make_schedule(TrainConfig(schedule="cosine", steps=1000, warmup_steps=100))
    assert float(rate(100)) == pytest.approx(0.01)
    assert float(rate(550)) == pytest.approx(0.005)
    assert float(rate(1000)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("changes", [{}, {"schedule": "cosine", "warmup_steps": 3}])
def test_schedules_survive_serialisation(changes):
    rate = make_schedule(TrainConfig(**changes))
    again = type(rate).from_config(rate.get_config())
    assert [float(again(step)) for step in (0, 2, 70_000)] == [float(rate(step)) for step in (0, 2, 70_000)]


def test_adamw_is_pytorchs():
    """Five steps of torch.optim.AdamW by hand, with gradients down to its epsilon, and no decay of a bias."""
    optimizer = AdamWOfKernels(learning_rate=1e-3, weight_decay=0.1)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    layer = keras.layers.Dense(1, name="dense")
    layer.build((None, 4))
    layer.set_weights([np.full((4, 1), 0.5, np.float32), np.zeros(1, np.float32)])
    optimizer.build(layer.trainable_variables)
    rng, w, b = np.random.default_rng(0), np.full((4, 1), 0.5), np.zeros(1)
    m, v = [np.zeros_like(w), np.zeros_like(b)], [np.zeros_like(w), np.zeros_like(b)]
    for step in range(1, 6):
        gradients = [rng.normal(size=(4, 1)) * [[1], [1e-3], [1e-6], [1e-8]], rng.normal(size=1) * 1e-7]
        tensors = [tf.constant(one, tf.float32) for one in gradients]
        optimizer.apply_gradients(zip(tensors, layer.trainable_variables, strict=True))
        w = w * (1 - 1e-3 * 0.1)
        for one, (value, gradient) in enumerate(zip((w, b), gradients, strict=True)):
            m[one] = 0.9 * m[one] + 0.1 * gradient
            v[one] = 0.999 * v[one] + 0.001 * gradient**2
            value -= 1e-3 * (m[one] / (1 - 0.9**step)) / (np.sqrt(v[one] / (1 - 0.999**step)) + 1e-8)
        for found, value in zip(layer.get_weights(), (w, b), strict=True):
            np.testing.assert_allclose(found, value, rtol=0, atol=5e-7)


def test_sgd_with_coupled_decay_is_the_hand_written_one():
    """Ten steps of v ← 0.9 v − lr (g + wd·w), w ← w + v on a quadratic loss, to 1e-6 (§4.1)."""
    decay, start = 1e-2, np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    model = keras.Sequential(
        [keras.layers.Dense(2, use_bias=False, kernel_regularizer=regularizer(decay), name="dense")]
    )
    model.build((None, 2))
    model.set_weights([start])
    config = TrainConfig(learning_rate=0.1, decay_steps=(5, 8), warmup_steps=4)
    model.compile(make_optimizer(config), loss="mse", jit_compile=False)
    x, y = np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32)
    rate, w, v = make_schedule(config), start.astype(np.float64), np.zeros((2, 2))
    for step in range(10):
        model.train_on_batch(x, y)
        # mse is the mean over 4 elements of (x w)², and x is the identity.
        v = 0.9 * v - float(rate(step)) * (2 * w / 4 + decay * w)
        w = w + v
    np.testing.assert_allclose(model.get_weights()[0], w, atol=1e-6)


@pytest.mark.parametrize("saved", [False, True])
def test_adamw_decays_kernels_alone(saved):
    """With zero gradients only what is subject to decoupled decay moves."""
    # Keras 2's variables have their layer's name in theirs.
    model = keras.Sequential([keras.layers.Dense(2, bias_initializer="ones", name="alphabeta_bias")])
    model.build((None, 2))
    optimizer = make_optimizer(TrainConfig(optimizer="adamw", adamw_decay=0.1, learning_rate=0.5, decay_steps=()))
    if saved:
        optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    kernel, bias = (np.array(value) for value in model.get_weights())
    variables = model.trainable_variables
    optimizer.apply_gradients([(np.zeros(tuple(v.shape), np.float32), v) for v in variables])
    np.testing.assert_allclose(model.get_weights()[0], kernel * (1 - 0.5 * 0.1), rtol=1e-5)
    np.testing.assert_allclose(model.get_weights()[1], bias)
