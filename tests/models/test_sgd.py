"""SGD in TensorFlow's own kernels is Keras' SGD, and its coupled decay is the gradient of the L2 penalty (§4.1)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import retinanet_tf as rn
from retinanet_tf.compat import tensorflow_variables
from retinanet_tf.config.config import TrainConfig
from retinanet_tf.models.layers import CoupledDecay
from retinanet_tf.models.sgd import FusedSGD, decays_kernels
from retinanet_tf.training.optimizers import make_optimizer, make_schedule


@pytest.mark.parametrize("devices", [1, 2])
def test_the_fused_kernel_is_keras_sgd(devices, two_devices):
    """Five steps with schedule and clipping, the momentums included; on two devices too, and no step falls back."""
    strategy = two_devices if devices == 2 else tf.distribute.get_strategy()
    x, y = np.eye(4, dtype=np.float32), np.ones((4, 2), np.float32)
    results = []
    for kind in (FusedSGD, keras.optimizers.SGD):
        with strategy.scope():
            model = keras.Sequential([keras.layers.Dense(2, name="dense")])
            model.build((None, 4))
            model.set_weights([np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros(2, np.float32)])
            rate = make_schedule(TrainConfig(learning_rate=0.1, decay_steps=(3,)))
            optimizer = kind(rate, momentum=0.9, global_clipnorm=1.0)
            model.compile(optimizer, loss="mse", jit_compile=False)
        dataset = tf.data.Dataset.from_tensors((x, y)).repeat(5)
        model.fit(dataset, verbose=0, epochs=1)
        momentums = [np.array(value) for value in tensorflow_variables(optimizer.momentums)]
        results.append([*model.get_weights(), *momentums])
    assert np.abs(results[0][2]).max() > 0
    for ours, keras_own in zip(*results, strict=True):
        np.testing.assert_allclose(ours, keras_own, atol=1e-6)


def test_no_step_of_ours_falls_back_to_keras(monkeypatch, two_devices):
    monkeypatch.setattr(keras.optimizers.SGD, "update_step", lambda *_: pytest.fail("the slower way was taken"))
    for strategy in (tf.distribute.get_strategy(), two_devices):
        with strategy.scope():
            model = keras.Sequential([keras.layers.Dense(2)])
            model.build((None, 4))
            model.compile(make_optimizer(TrainConfig()), loss="mse", jit_compile=False)
        model.fit(np.eye(4, dtype=np.float32), np.ones((4, 2), np.float32), verbose=0)


DECAY = 0.5
SMALL = {"num_classes": 2, "backbone": "resnet10_w16", "fpn_channels": 16, "subnet_channels": 16, "subnet_depth": 1}


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {}], ids=str)
@pytest.mark.parametrize("devices", [1, 2])
def test_coupled_decay_is_the_gradient_of_the_penalty(devices, settings, two_devices):
    """Three steps under a decay that moves the weights, against Keras' SGD and Keras' regularizer."""
    strategy = two_devices if devices == 2 else tf.distribute.get_strategy()
    x, y = np.eye(4, dtype=np.float32), np.ones((4, 2), np.float32)
    results = []
    for optimizer, penalty in (
        (lambda: FusedSGD(0.1, coupled_decay=DECAY, **settings), None),
        (lambda: keras.optimizers.SGD(0.1, **settings), keras.regularizers.L2(DECAY / 2)),
    ):
        with strategy.scope():
            model = keras.Sequential([keras.layers.Dense(2, kernel_regularizer=penalty)])
            model.build((None, 4))
            model.set_weights([np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros(2, np.float32)])
            model.compile(optimizer(), loss="mse", jit_compile=False)
        model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(3), verbose=0)
        results.append(model.get_weights())
    assert np.abs(results[0][0] - np.arange(8).reshape(4, 2)).max() > 0.5
    for ours, penalised in zip(*results, strict=True):
        np.testing.assert_allclose(ours, penalised, rtol=1e-5, atol=1e-6)


def trained(strategy, make):
    """Weights before and after three steps, and the last step's total loss."""
    keras.utils.set_random_seed(0)
    truth = {"boxes": np.array([[[4, 8, 36, 40]]] * 2, np.float32), "labels": np.zeros((2, 1), np.int32)}
    data = tf.data.Dataset.from_tensors((np.full((2, 64, 64, 3), 90, np.float32), truth)).repeat(3)
    with strategy.scope():
        model = rn.RetinaNet(**SMALL, weight_decay=DECAY)
        model.compile(make(), loss=rn.retinanet_losses(), jit_compile=False)
    before = [np.array(weights) for weights in model.get_weights()]
    history = model.fit(data, verbose=0).history
    return before, model.get_weights(), history["loss"][-1]


def test_a_detector_whose_optimizer_decays_is_not_decayed_twice(two_devices):
    """On two devices, against Keras' SGD and the regularizers' own gradient: the weights, and the loss shown."""
    before, ours, loss = trained(two_devices, lambda: FusedSGD(0.05, momentum=0.9, coupled_decay=DECAY))
    _, penalised, same_loss = trained(two_devices, lambda: keras.optimizers.SGD(0.05, momentum=0.9))
    assert loss == pytest.approx(same_loss, rel=1e-5)
    for start, mine, theirs in zip(before, ours, penalised, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * max(1.0, np.abs(start).max()))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_coupled_decay_of_a_step_by_hand(momentum):
    """Two steps with zero gradients: w ← w − lr·wd·w, then momentum times that step more; a bias stays as it is."""
    layer = keras.layers.Dense(1, bias_initializer="ones")
    layer.build((None, 2))
    layer.set_weights([np.array([[2.0], [-4.0]], np.float32), np.ones(1, np.float32)])
    optimizer = FusedSGD(0.1, momentum=momentum, coupled_decay=0.5)
    for _ in range(2):
        optimizer.apply_gradients([(tf.zeros(variable.shape), variable) for variable in layer.trainable_variables])
    first = -0.1 * 0.5
    second = momentum * first - 0.1 * 0.5 * (1 + first)
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(kernel[:, 0], np.array([2.0, -4.0]) * (1 + first + second), rtol=1e-6)
    np.testing.assert_array_equal(bias, 1.0)


def test_what_is_decayed_is_what_has_a_penalty():
    """Kernels, all of them and nothing else, whatever the normalisation, and grouped convolutions too."""
    for changes in ({"subnet_norm": "group"}, {"backbone": "resnext50_32x4d"}, {"norm": "batch"}):
        model = rn.RetinaNet(**{**SMALL, "weight_decay": DECAY, **changes})
        penalised = {
            id(layer.kernel)
            for layer in model._flatten_layers()
            if isinstance(getattr(layer, "kernel_regularizer", None), CoupledDecay) and layer.trainable
        }
        model.set_weights([np.ones(weights.shape, np.float32) for weights in model.get_weights()])
        variables = model.trainable_variables
        optimizer = FusedSGD(0.5, momentum=0.9, coupled_decay=0.5)
        optimizer.apply_gradients([(tf.zeros(variable.shape), variable) for variable in variables])
        assert penalised == {id(variable) for variable in variables if np.ravel(variable)[0] != 1.0}, changes


def test_a_loss_scaling_optimizer_is_asked_for_what_it_wraps():
    for optimizer, answer in (
        (FusedSGD(coupled_decay=0.1), True),
        (FusedSGD(), False),
        (keras.optimizers.Adam(), False),
    ):
        assert (
            decays_kernels(optimizer) == decays_kernels(keras.mixed_precision.LossScaleOptimizer(optimizer)) == answer
        )
    assert not decays_kernels(None)
