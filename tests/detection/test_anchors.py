"""Anchors worked by hand for each style, and the layer against a naive loop."""

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig
from retinanet_tf.detection.anchors import Anchors, anchors_by_level, cell_anchors

DETECTRON = AnchorConfig(anchor_style="detectron", anchor_ratios=(1.0, 2.0, 0.5))
TORCHVISION = AnchorConfig(anchor_style="torchvision")


def sides(cell):
    return np.stack([cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]], axis=1)


def test_the_papers_anchors():
    """§4: areas 32² to 512², ratios 1:2, 1:1, 2:1, three scales per octave: 32 to 813 px."""
    p3 = sides(cell_anchors(AnchorConfig(), 3))
    # Scale 1: 32/√½ = 45.25 by 32·√½ = 22.63; 32 by 32; 22.63 by 45.25.
    np.testing.assert_allclose(p3[:3], [[45.2548, 22.6274], [32, 32], [22.6274, 45.2548]], atol=1e-4)
    # Octave-major: the second scale's square is the fifth anchor.
    np.testing.assert_allclose(p3[4], [32 * 2 ** (1 / 3)] * 2)
    for level in range(3, 8):
        areas = sides(cell_anchors(AnchorConfig(), level)).prod(axis=1)
        np.testing.assert_allclose(areas, np.repeat([(4 * 2**level * 2 ** (i / 3)) ** 2 for i in range(3)], 3))
    assert sides(cell_anchors(AnchorConfig(), 7))[7][0] == pytest.approx(812.7, abs=0.1)


def test_detectrons_anchors():
    """Base window 8×8: √(64/2) = 5.66 rounds to 6, 6·2 = 12, times 4: 24×48. √(64/.5) = 11.3 → 11, 5.5 → 6: 44×24."""
    p3 = sides(cell_anchors(DETECTRON, 3))
    np.testing.assert_allclose(p3[:3], [[32, 32], [24, 48], [44, 24]])
    np.testing.assert_allclose(p3[4], np.array([24, 48]) * 2 ** (1 / 3))


def test_torchvisions_anchors():
    """Integer sizes 32, ⌊40.3⌋ = 40, ⌊50.8⌋ = 50; ratio-major; corners rounded: 32/√½/2 = 22.6 → 23."""
    p3 = cell_anchors(TORCHVISION, 3)
    np.testing.assert_allclose(p3[0], [-23, -11, 23, 11])
    np.testing.assert_allclose(p3[1], [-28, -14, 28, 14])
    np.testing.assert_allclose(p3[3], [-16, -16, 16, 16])
    np.testing.assert_allclose(p3[4], [-20, -20, 20, 20])


def test_positions_by_hand():
    """The second cell of P3's first row has its centre at (12, 4); torchvision's at (8, 0)."""
    ours = anchors_by_level(64, 64, AnchorConfig())[0].numpy().reshape(8, 8, 9, 4)
    np.testing.assert_allclose((ours[0, 1, :, :2] + ours[0, 1, :, 2:]) / 2, [[12, 4]] * 9, atol=1e-4)
    theirs = anchors_by_level(64, 64, TORCHVISION)[0].numpy().reshape(8, 8, 9, 4)
    np.testing.assert_allclose((theirs[0, 1, :, :2] + theirs[0, 1, :, 2:]) / 2, [[8, 0]] * 9)


def test_torchvisions_stride_is_size_over_cells():
    """800 px have ⌈800/128⌉ = 7 cells on P7, 800 // 7 = 114 apart, not 128."""
    p7 = anchors_by_level(800, 800, TORCHVISION)[4].numpy().reshape(7, 7, 9, 4)
    np.testing.assert_allclose(p7[0, 1, 4], p7[0, 0, 4] + [114, 0, 114, 0])


@pytest.mark.slow
@pytest.mark.parametrize("config", [AnchorConfig(), AnchorConfig(max_level=6, anchor_multiplier=2.0), DETECTRON])
@pytest.mark.parametrize("size", [(64, 96), (608, 1024), (75, 33)])
def test_the_layer_is_the_naive_loop(config, size):
    layer = Anchors(config)
    expected = []
    for level in config.levels:
        stride = 2**level
        for row in range(-(-size[0] // stride)):
            for column in range(-(-size[1] // stride)):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                expected.append(cell_anchors(config, level) + [x, y, x, y])
    expected = np.concatenate(expected)
    static = layer(tf.zeros((1, *size, 3)))
    np.testing.assert_allclose(static, expected, atol=1e-3)
    assert layer.compute_output_shape((1, *size, 3)) == expected.shape
    dynamic = tf.function(layer.call, input_signature=[tf.TensorSpec((None, None, None, 3))])
    np.testing.assert_array_equal(dynamic(tf.zeros((1, *size, 3))), static)
    again = Anchors.from_config(layer.get_config())
    np.testing.assert_array_equal(again(tf.zeros((1, *size, 3))), static)


def test_no_graph_holds_the_anchors_as_constants():
    """XLA's program for images of a known size is small: its text has no array with a row per anchor as a constant."""
    layer = Anchors()
    count = layer(tf.zeros((1, 800, 1344, 3))).shape[0]
    areas = tf.function(lambda images: tf.reduce_prod(layer(images), axis=1), jit_compile=True)
    program = areas.experimental_get_compiler_ir(tf.zeros((1, 800, 1344, 3)))(stage="hlo")
    assert f"[{count}]" in program and len(program) < 100_000
    assert areas.get_concrete_function(tf.TensorSpec((1, 800, 1344, 3))).output_shapes == (count,)
