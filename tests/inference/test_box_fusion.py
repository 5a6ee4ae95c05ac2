"""Weighted box fusion against plain loops, and what it must do with versions that agree."""

import numpy as np
import pytest
from oracles import box_iou
from small_detectors import clutter, small_detector

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference.box_fusion import fuse
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector


def naive(boxes, scores, labels, versions, iou):
    """The source's steps with lists: [(score, label, box)], best first."""
    clusters = []  # (label, members, box)
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        best, place = iou, None
        for number, (label, _, box) in enumerate(clusters):
            if label == labels[index] and box_iou(box, boxes[index]) > best:
                best, place = box_iou(box, boxes[index]), number
        if place is None:
            clusters.append((labels[index], [index], boxes[index]))
            continue
        label, members, _ = clusters[place]
        members = [*members, index]
        total = sum(scores[i] for i in members)
        clusters[place] = (label, members, sum(scores[i] * boxes[i] for i in members) / total)
    rows = []
    for label, members, box in clusters:
        mean = sum(scores[i] for i in members) / len(members)
        rows.append((mean * min(len(members), versions) / versions, label, box))
    return sorted(rows, key=lambda row: -row[0])


@pytest.mark.parametrize("seed", range(10))
def test_random_detections(seed):
    """Objects seen by four versions, moved a little and some of them missed, and false alarms."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 200, (12, 2))
    objects = np.concatenate([corners, corners + rng.uniform(10, 60, (12, 2))], axis=1)
    kinds = rng.integers(0, 2, 12)
    seen = [rng.random(12) < 0.8 for _ in range(4)]
    boxes = np.concatenate([objects[one] + rng.normal(0, 3, (one.sum(), 4)) for one in seen])
    labels = np.concatenate([kinds[one] for one in seen])
    scores = rng.permutation(np.linspace(0.05, 0.95, len(boxes)))
    expected = naive(boxes, scores, labels, 4, 0.55)
    found, values, classes = fuse(boxes, scores, labels, versions=4)
    assert 5 < len(found) == len(expected) < len(boxes)
    np.testing.assert_allclose(values, [row[0] for row in expected], rtol=1e-5)
    np.testing.assert_array_equal(classes, [row[1] for row in expected])
    np.testing.assert_allclose(found, np.array([row[2] for row in expected]), rtol=1e-5)


def test_versions_that_agree_change_nothing():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [30, 0, 40, 20]], np.float32)
    scores, labels = np.array([0.9, 0.5, 0.7]), np.array([0, 1, 0])
    found, values, classes = fuse(*(np.concatenate([part] * 3) for part in (boxes, scores, labels)), versions=3)
    order = np.argsort(-scores)
    np.testing.assert_allclose(found, boxes[order], atol=1e-6)
    np.testing.assert_allclose(values, scores[order], atol=1e-6)
    np.testing.assert_array_equal(classes, labels[order])


def test_scores_of_zero_have_boxes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 12]], np.float32)
    found, values, _ = fuse(boxes, np.zeros(2, np.float32), np.zeros(2, int), versions=2)
    np.testing.assert_allclose(found, [[0, 0, 10, 11]])
    assert values.tolist() == [0]


def test_nothing():
    found, values, labels = fuse(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, int), versions=2)
    assert found.shape == (0, 4) and values.shape == labels.shape == (0,)


@pytest.fixture(scope="module")
def detector():
    return small_detector(LabelMap([1, 5, 9], ["a", "b", "c"]), spread=0.1)


@pytest.mark.slow
def test_one_version_is_the_plain_detector(detector):
    """After NMS at 0.5 no two boxes of a class overlap by 0.55."""
    plain, fused = detector([clutter(0)]), AugmentedDetector(detector, flip=False, merge="fusion")([clutter(0)])
    assert plain["num_detections"][0] > 5
    for name, value in plain.items():
        np.testing.assert_allclose(fused[name].numpy(), value.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_detector_fuses_what_its_versions_find(detector):
    image = clutter(1)
    fused = AugmentedDetector(detector, merge="fusion")([image])
    parts = []
    for mirrored in (False, True):
        answer = detector([image[:, ::-1] if mirrored else image])
        count = int(answer["num_detections"][0])
        boxes, scores, labels = (answer[name][0, :count].numpy() for name in ("boxes", "scores", "labels"))
        if mirrored:
            boxes = np.stack([70 - boxes[:, 2], boxes[:, 1], 70 - boxes[:, 0], boxes[:, 3]], axis=1)
        parts.append((boxes, scores, labels))
    expected = naive(*(np.concatenate(values) for values in zip(*parts, strict=True)), 2, 0.55)
    expected = [row for row in expected if row[0] > 0.05][:30]
    count = int(fused["num_detections"][0])
    assert count == len(expected) > 10
    np.testing.assert_allclose(fused["scores"][0, :count], [row[0] for row in expected], atol=1e-4)
    np.testing.assert_array_equal(fused["labels"][0, count:], -1)


def test_other_merges_are_refused(detector):
    with pytest.raises(InputError, match="merge='mean' is not one of nms, fusion"):
        AugmentedDetector(detector, merge="mean")
