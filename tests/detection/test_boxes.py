"""Geometry against naive loops, round trips and hand-worked boxes."""

import numpy as np
import oracles
import pytest
import tensorflow as tf

from retinanet_tf.detection import boxes

RNG = np.random.default_rng(0)


def random_boxes(count, size=100.0):
    corner = RNG.uniform(0, size, (count, 2))
    return np.concatenate([corner, corner + RNG.uniform(1, size, (count, 2))], axis=1).astype(np.float32)


def test_iou_by_hand():
    """Two 10×10 boxes that share 5×10: 50 / 150. Boxes that touch share nothing."""
    a = tf.constant([[0.0, 0, 10, 10]])
    b = tf.constant([[5.0, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 10]])
    np.testing.assert_allclose(boxes.iou(a, b), [1 / 3, 0, 1], rtol=1e-6)


def test_iou_of_all_pairs_is_the_naive_one():
    a, b = random_boxes(30), random_boxes(20)
    expected = [[oracles.box_iou(p, q) for q in b] for p in a]
    np.testing.assert_allclose(boxes.iou(a[:, None], b[None]), expected, atol=1e-6)


def test_boxes_without_area_overlap_nothing():
    flat = tf.constant([[3.0, 3, 3, 9], [5, 5, 2, 2]])
    assert boxes.iou(flat[:, None], flat[None]).numpy().max() == 0.0
    assert boxes.area(flat).numpy().tolist() == [0.0, 0.0]


def test_giou_by_hand():
    """Two unit squares 1 apart: IoU 0, hull 3, union 2: −1/3. Equal boxes: 1. Far apart: towards −1."""
    a = tf.constant([0.0, 0, 1, 1])
    b = tf.constant([[2.0, 0, 3, 1], [0, 0, 1, 1], [1e4, 0, 1e4 + 1, 1]])
    np.testing.assert_allclose(boxes.giou(a, b), [-1 / 3, 1, -1], atol=1e-3)


def test_giou_is_tensorflow_addons():
    addons = pytest.importorskip("tensorflow_addons")
    a, b = random_boxes(50), random_boxes(50)
    swap = [1, 0, 3, 2]
    theirs = 1 - addons.losses.giou_loss(a[:, swap], b[:, swap])
    np.testing.assert_allclose(boxes.giou(a, b), theirs, atol=1e-5)


def test_encode_by_hand():
    """A box twice as wide as its 10×10 anchor, its centre 5 to the right: dx = .5, dw = ln 2."""
    deltas = boxes.encode(tf.constant([0.0, 0, 20, 10]), tf.constant([0.0, 0, 10, 10]))
    np.testing.assert_allclose(deltas, [0.5, 0, np.log(2), 0], atol=1e-6)


def test_encode_is_the_naive_one_and_decode_its_inverse():
    truth, anchors = random_boxes(40), random_boxes(40)
    deltas = boxes.encode(truth, anchors)
    np.testing.assert_allclose(deltas, [oracles.deltas(b, a) for b, a in zip(truth, anchors, strict=True)], atol=1e-4)
    np.testing.assert_allclose(boxes.decode(deltas, anchors), truth, atol=2e-3)


def test_decode_clamps_at_the_authors_limit():
    """dw = 50 would be e^50 anchors wide; the clamp makes it 1000/16."""
    decoded = boxes.decode(tf.constant([0.0, 0, 50, 0]), tf.constant([0.0, 0, 16, 16])).numpy()
    assert decoded[2] - decoded[0] == pytest.approx(1000, rel=1e-5)
    assert decoded[3] - decoded[1] == pytest.approx(16)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_boxes_are_those_of_the_mirrored_mask(axis):
    """Integer boxes painted on a 30×20 image; mirroring the pixels moves them to the mirrored boxes."""
    box = np.array([3.0, 5, 11, 19], np.float32)
    mask = np.zeros((20, 30))
    mask[5:19, 3:11] = 1
    x1, y1, x2, y2 = boxes.mirror(box, (30, 20)[axis], axis).numpy().astype(int)
    mirrored = np.zeros((20, 30))
    mirrored[y1:y2, x1:x2] = 1
    np.testing.assert_array_equal(mirrored, np.flip(mask, 1 - axis))


def test_clip():
    clipped = boxes.clip(tf.constant([[-5.0, -5, 20, 20], [30, 2, 50, 4]]), 15, 10)
    np.testing.assert_array_equal(clipped, [[0, 0, 10, 15], [10, 2, 10, 4]])
