"""Padding, normalisation and pixels against numpy."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf
from small_models import images, small

from retinanet_tf.models import layers
from retinanet_tf.models.heads import Subnet

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


@pytest.mark.parametrize("size", [12, 13])
def test_the_stems_pool_pads_the_same_on_every_side(size):
    """In the network, behind a stem of 6×6 and 7×7 cells."""
    model = small()
    stem = keras.Model(model.input, [model.get_layer(f"stem_{part}").output for part in ("relu", "pool")])
    features, pooled = (np.array(maps[0]) for maps in stem(images(1, size, size)))
    padded = np.pad(features, ((1, 1), (1, 1), (0, 0)))
    starts = range(0, len(features), 2)
    expected = [[padded[y : y + 3, x : x + 3].max((0, 1)) for x in starts] for y in starts]
    np.testing.assert_array_equal(pooled, expected)
    assert features.shape[0] == (size + 1) // 2 and pooled.max() > 0


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


@pytest.mark.parametrize(("kernel", "strides", "groups"), [(1, 1, 1), (1, 2, 1), (3, 1, 2), (3, 2, 1)])
def test_a_folded_norm_is_the_one_that_follows(kernel, strides, groups):
    """Outputs and the kernel's gradient, and the norm's weights still belong to the norm."""
    norm, apart = (layers.FrozenBatchNormalization(1e-3, name=name) for name in ("folded", "apart"))
    folded = layers.conv(4, kernel, strides, name="a", groups=groups, use_bias=False, affine=norm.fold(4))
    plain = layers.conv(4, kernel, strides, name="b", groups=groups, use_bias=False)
    features = tf.constant(RNG.normal(size=(2, 7, 6, 4)), tf.float32)
    apart(plain(features))
    folded.build(features.shape)
    folded.set_weights(plain.get_weights())
    weights = [RNG.uniform(0.5, 2, 4).astype(np.float32) for _ in range(4)]
    norm.set_weights(weights)
    apart.set_weights(weights)
    assert len(folded.weights) == 1 and len(norm.weights) == 4
    results = []
    for first, second in ((folded, norm), (plain, apart)):
        with tf.GradientTape() as tape:
            outputs = second(first(features))
            loss = tf.reduce_sum(outputs**2)
        results.append([outputs, tape.gradient(loss, first.trainable_weights)[0]])
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-4)


def test_pixels_are_normalised_in_rgb_then_reversed():
    layer = layers.PixelNormalization((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), "bgr")
    pixel = tf.constant([[[[11, 42, 93]]]], tf.uint8)
    np.testing.assert_allclose(layer(pixel)[0, 0, 0], [3, 2, 1])


def test_pixels_are_normalised_before_they_are_rounded():
    """In bfloat16 200.4 would be 200, but 0.4 is 0.4 to a thousandth."""
    layer = layers.PixelNormalization((200.0,) * 3, (1.0,) * 3, dtype="mixed_bfloat16")
    answer = layer(tf.fill([1, 2, 2, 3], 200.4))
    assert answer.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(answer, tf.float32), 0.4, rtol=4e-3)


def test_weight_decay_is_coupled():
    """The gradient gets weight_decay·w: Keras' L2(l) adds l·w², so it is that one with l half of it."""
    w = tf.Variable([[3.0, -2.0]])
    with tf.GradientTape() as tape:
        penalty = layers.regularizer(0.1)(w)
    np.testing.assert_allclose(penalty, keras.regularizers.L2(0.05)(w), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(penalty, w), [[0.3, -0.2]], rtol=1e-6)
    assert layers.regularizer(0.0) is None


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 16), (16, 16), (6, 2)])
def test_group_normalisation_has_groups_that_divide_the_channels(channels, groups):
    layer = layers.normalization("group", channels, name="norm", epsilon=1e-5)
    features = RNG.normal(3, 2, (2, 4, 4, channels)).astype(np.float32)
    grouped = features.reshape(2, 4, 4, groups, -1)
    mean, variance = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(features.shape)
    np.testing.assert_allclose(layer(features), expected, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_of_a_subnet_has_affine_and_statistics_per_level(training):
    """By numpy, level by level, through the same convolutions."""
    subnet = Subnet(2, 1, depth=1, channels=4, norm="batch", init_std=0.5)
    pyramid = [RNG.normal(level, 1 + level, (2, side, side, 3)).astype(np.float32) for level, side in enumerate((4, 2))]
    subnet(pyramid)
    weights = [RNG.uniform(0.5, 2, (4, 4)).astype(np.float32) for _ in pyramid]
    for norm, values in zip(subnet.norms, weights, strict=True):
        norm.set_weights(values)
    kernel, (last, bias) = subnet.convs[0].get_weights()[0], subnet.predictor.get_weights()
    for features, values, found in zip(pyramid, weights, subnet(pyramid, training=training), strict=True):
        gamma, beta, mean, variance = values
        maps = np.array([oracles.strided_conv(image, kernel, 1, 1) for image in features])
        if training:
            mean, variance = maps.mean((0, 1, 2)), maps.var((0, 1, 2))
        maps = np.maximum((maps - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0)
        expected = [oracles.strided_conv(image, last, 1, 1) + bias for image in maps]
        np.testing.assert_allclose(found, np.reshape(expected, found.shape), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strides", [1, 2])
def test_grouped_convolutions_and_their_gradients_are_those_of_their_groups(strides):
    """Forward and backward in a graph on this device, against one convolution per group."""
    layer = layers.conv(64, 3, strides, name="conv", groups=32)
    features = tf.constant(RNG.normal(size=(2, 8, 9, 64)), tf.float32)
    layer.build(features.shape)
    layer.set_weights([layer.get_weights()[0], RNG.normal(size=64)])
    kernel, bias = layer.trainable_variables

    def separate(features):
        padded = tf.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]])
        parts = zip(tf.split(padded, 32, 3), tf.split(tf.convert_to_tensor(kernel), 32, 3), strict=True)
        return tf.concat([tf.nn.conv2d(part, weights, strides, "VALID") for part, weights in parts], -1) + bias

    @tf.function
    def both(function):
        with tf.GradientTape() as tape:
            tape.watch(features)
            out = tf.nn.relu(function(features))
            loss = tf.reduce_sum(out**2)
        return out, *tape.gradient(loss, (features, kernel))

    @tf.function
    def forward():
        return tf.nn.relu(layer(features))

    for ours, expected in zip(both(layer), both(separate), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-3)
    np.testing.assert_allclose(forward(), tf.nn.relu(separate(features)), atol=1e-4)


@pytest.mark.slow
def test_grouped_convolutions_need_no_onednn():
    """The same in a process without it, as on CPUs without AVX-512, where TensorFlow has half of them."""
    tests = [
        f"{__file__}::{test.__name__}"
        for test in (
            test_grouped_convolutions_and_their_gradients_are_those_of_their_groups,
            test_a_folded_norm_is_the_one_that_follows,
        )
    ]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_frozen_normalisation_folds_in_float32_and_answers_in_the_policys_type(dtype):
    layer = layers.FrozenBatchNormalization(dtype=f"mixed_{dtype}")
    features = tf.cast(RNG.normal(size=(1, 2, 2, 3)), dtype)
    layer.build(features.shape)
    # In half precision 1e-8 would be zero and its root infinite.
    layer.set_weights([np.full(3, 1e-4, np.float32), np.zeros(3), np.zeros(3), np.full(3, 1e-8, np.float32)])
    out = layer(features)
    assert out.dtype == dtype
    expected = tf.cast(features, tf.float32) * (1e-4 / np.sqrt(1e-8 + 1e-5))
    np.testing.assert_allclose(tf.cast(out, tf.float32), expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_group_normalisation_in_half_precision_takes_its_statistics_in_float32(dtype):
    """The sums over a canvas of large values don't fit into float16."""
    with layers.precision_policy(dtype):
        layer = layers.normalization("group", 32, name="norm")
    features = tf.cast(RNG.normal(200, 20, (1, 256, 256, 32)), dtype)
    values = np.asarray(tf.cast(features, tf.float64))
    expected = (values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), keepdims=True)
    tolerance = 2e-2 if dtype == "float16" else 0.1
    np.testing.assert_allclose(np.asarray(tf.cast(layer(features), tf.float64)), expected, atol=tolerance)
