"""Assignment against a naive loop, and hand-worked ties, promotions and empties."""

import numpy as np
import oracles
import pytest
import tensorflow as tf

from retinanet_tf.config.config import AssignConfig
from retinanet_tf.detection.assignment import BACKGROUND, IGNORED, assign

# IoU of [0, 0, 10, w] with [0, 0, 10, 10] is w / 10.
TEN = [0.0, 0, 10, 10]


def strip(share):
    return [0.0, 0, 10, 10 * share]


def one_image(anchors, boxes, labels, **config):
    targets = assign(
        tf.constant(anchors, tf.float32),
        tf.reshape(tf.constant(boxes, tf.float32), [1, -1, 4]),
        tf.reshape(tf.constant(labels, tf.int32), [1, -1]),
        AssignConfig(**config),
    )
    return {name: value[0].numpy() for name, value in targets._asdict().items()}


def test_the_papers_thresholds():
    """At 0.5 positive, in [0.4, 0.5) ignored, below 0.4 background (§4)."""
    targets = one_image([strip(0.5), strip(0.49), strip(0.4), strip(0.39)], TEN, [7])
    assert targets["class_targets"].tolist() == [7, IGNORED, IGNORED, BACKGROUND]
    assert targets["positive"].tolist() == [True, False, False, False]
    assert targets["ignored"].tolist() == [False, True, True, False]
    np.testing.assert_allclose(targets["box_targets"][0], oracles.deltas(TEN, strip(0.5)), atol=1e-6)
    assert not targets["box_targets"][1:].any()


@pytest.mark.parametrize(
    ("promote", "expected"),
    [
        ("never", [IGNORED, BACKGROUND, BACKGROUND]),
        ("above_negative", [3, BACKGROUND, BACKGROUND]),
        ("always", [3, BACKGROUND, 4]),
    ],
)
def test_promotion_of_each_objects_best_anchor(promote, expected):
    """One object's best anchor has IoU 0.45, another's 0.2: who is promoted depends on the variant."""
    anchors = [strip(0.45), strip(0.3), [100.0, 0, 110, 2]]
    targets = one_image(anchors, [TEN, [100.0, 0, 110, 10]], [3, 4], promote=promote)
    assert targets["class_targets"].tolist() == expected


def test_ties():
    """An anchor as near to two boxes takes the first; equally good best anchors are all promoted."""
    targets = one_image([[0.0, 0, 10, 10]], [TEN, TEN], [5, 6])
    assert targets["class_targets"].tolist() == [5]
    targets = one_image([strip(0.3), strip(0.3), strip(0.2)], TEN, [1], promote="always")
    assert targets["class_targets"].tolist() == [1, 1, BACKGROUND]


@pytest.mark.parametrize("promote", ["never", "above_negative", "always"])
@pytest.mark.parametrize(
    ("boxes", "labels"),
    [
        (np.zeros((0, 4)), []),  # no column at all
        (np.zeros((3, 4)), [-1, -1, -1]),  # padding alone
        ([[4.0, 4, 4, 9], [5, 5, 5, 5]], [0, 1]),  # boxes without area
    ],
)
def test_without_objects_everything_is_background(boxes, labels, promote):
    targets = one_image([TEN, strip(0.5)], boxes, labels, promote=promote)
    assert targets["class_targets"].tolist() == [BACKGROUND, BACKGROUND]
    assert np.isfinite(targets["box_targets"]).all() and not targets["box_targets"].any()


@pytest.mark.parametrize("promote", ["never", "above_negative", "always"])
@pytest.mark.parametrize(("positive", "negative"), [(0.5, 0.4), (0.7, 0.3), (0.5, 0.5)])
def test_random_images_are_the_naive_loop(positive, negative, promote):
    rng = np.random.default_rng(1)

    def some(count):
        corner = rng.integers(0, 60, (count, 2))
        return np.concatenate([corner, corner + rng.integers(5, 40, (count, 2))], 1).astype(np.float32)

    boxes = np.stack([some(6), some(6)])
    near = np.tile(boxes[:, :, None], (1, 1, 8, 1)).reshape(-1, 4)
    anchors = np.concatenate([some(200), near + rng.integers(-2, 3, near.shape)]).astype(np.float32)
    labels = np.array([[0, 1, 2, 3, -1, -1], [2, 2, 2, 1, 0, 5]])
    config = AssignConfig(positive, negative, promote)
    targets = assign(anchors, tf.constant(boxes), tf.constant(labels), config)
    assert np.any(targets.positive) and np.any(targets.ignored) == (negative < positive)
    for image in range(2):
        classes, owners = oracles.assignment(anchors, boxes[image], labels[image], positive, negative, promote)
        np.testing.assert_array_equal(targets.class_targets[image], classes)
        for place in np.flatnonzero(classes >= 0):
            expected = oracles.deltas(boxes[image][owners[place]], anchors[place])
            np.testing.assert_allclose(targets.box_targets[image, place], expected, atol=1e-5)
    np.testing.assert_array_equal(targets.positive, targets.class_targets >= 0)
    np.testing.assert_array_equal(targets.ignored, targets.class_targets == IGNORED)
