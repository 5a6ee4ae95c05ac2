"""Padding, normalisation and pixels against numpy."""

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from retinanet_tf import layers

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("kernel", "strides"), [(3, 1), (3, 2), (7, 2), (1, 2)])
def test_convolutions_pad_the_same_on_every_side(size, kernel, strides):
    """Whatever the parity of the size: TensorFlow's "same" pads even inputs on the right and bottom alone."""
    layer = layers.conv(4, kernel, strides, name="conv")
    image = RNG.normal(size=(size, size, 3)).astype(np.float32)
    out = layer(image[None])
    weights, bias = (np.array(value) for value in layer.get_weights())
    expected = oracles.strided_conv(image, weights, strides, kernel // 2) + bias
    np.testing.assert_allclose(out[0], expected, atol=1e-4)
    assert layer.compute_output_shape((1, size, size, 3)) == (1, *expected.shape)


@pytest.mark.parametrize("size", [6, 7])
def test_the_stems_pool_pads_the_same_on_every_side(size):
    image = RNG.uniform(size=(size, size)).astype(np.float32)
    padded = np.pad(image, 1)
    starts = range(0, size, 2)
    expected = [[padded[y : y + 3, x : x + 3].max() for x in starts] for y in starts]
    np.testing.assert_allclose(layers.StemPool()(image[None, :, :, None])[0, :, :, 0], expected)


def test_frozen_batch_normalisation_is_keras_at_inference():
    ours, theirs = layers.FrozenBatchNormalization(1e-3), keras.layers.BatchNormalization(epsilon=1e-3)
    features = RNG.normal(size=(2, 4, 4, 5)).astype(np.float32)
    ours.build(features.shape)
    theirs.build(features.shape)
    weights = [RNG.uniform(0.5, 2, 5).astype(np.float32) for _ in range(4)]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    np.testing.assert_allclose(ours(features), theirs(features, training=False), atol=1e-5)
    assert not ours.trainable_weights and len(ours.non_trainable_weights) == 4


def test_pixels_are_normalised_in_rgb_then_reversed():
    layer = layers.PixelNormalization((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), "bgr")
    pixel = tf.constant([[[[11, 42, 93]]]], tf.uint8)
    np.testing.assert_allclose(layer(pixel)[0, 0, 0], [3, 2, 1])


def test_weight_decay_is_coupled():
    """The gradient gets weight_decay·w: Keras' L2(l) adds l·w², so l is half of it."""
    w = tf.Variable([[3.0, -2.0]])
    with tf.GradientTape() as tape:
        penalty = layers.regularizer(0.1)(w)
    np.testing.assert_allclose(tape.gradient(penalty, w), [[0.3, -0.2]], rtol=1e-6)
    assert layers.regularizer(0.0) is None
