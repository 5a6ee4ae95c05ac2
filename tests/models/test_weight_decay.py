"""Weight decay is a penalty in the loss (§4.1): the same under any optimizer and any training loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK

import retinanet_tf as rn

DECAY = 0.5
SMALL = {"num_classes": 2, **TINY_NETWORK}
RATE, MOMENTUM, STEPS = 0.05, 0.9, 3


def problem():
    truth = {"boxes": np.array([[[4, 8, 36, 40]]] * 2, np.float32), "labels": np.zeros((2, 1), np.int32)}
    return np.full((2, 64, 64, 3), 90, np.float32), truth


def compiled(decay=DECAY):
    keras.utils.set_random_seed(0)
    model = rn.RetinaNet(**SMALL, weight_decay=decay)
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), loss=rn.retinanet_losses())
    return model


@pytest.fixture(scope="module")
def fitted():
    """Weights after `fit` with Keras' SGD."""
    model = compiled()
    model.fit(tf.data.Dataset.from_tensors(problem()).repeat(STEPS), verbose=0)
    return model.get_weights()


@pytest.mark.slow
def test_sgd_of_ones_own_in_a_loop_of_ones_own_gives_the_weights_of_fit(fitted):
    """v ← 0.9 v − lr g, w ← w + v, written out, on the gradient of `compute_loss`."""
    model = compiled()
    images, truth = problem()
    velocities = [np.zeros(variable.shape, np.float32) for variable in model.trainable_variables]
    for _ in range(STEPS):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(images, truth, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        for index, (variable, gradient) in enumerate(zip(model.trainable_variables, gradients, strict=True)):
            velocities[index] = MOMENTUM * velocities[index] - RATE * np.array(gradient)
            variable.assign_add(velocities[index])
    for ours, theirs in zip(model.get_weights(), fitted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize(
    "changes",
    [
        {"subnet_norm": "group"},
        pytest.param({"backbone": "resnext50_32x4d"}, marks=pytest.mark.slow),
        {"norm": "batch"},
    ],
    ids=str,
)
def test_kernels_are_decayed_and_nothing_else(changes):
    """The penalty's gradient is weight_decay·w at trainable convolution kernels, grouped ones too, else none."""
    model = rn.RetinaNet(**{**SMALL, "weight_decay": DECAY, **changes})
    with tf.GradientTape() as tape:
        penalty = tf.add_n(model.losses)
    variables = model.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(penalty, variables), strict=True):
        if len(variable.shape) == 4:
            np.testing.assert_allclose(gradient, DECAY * np.array(variable), rtol=1e-5)
        else:
            assert gradient is None, variable.name
