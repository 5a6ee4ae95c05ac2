"""Test-time augmentation: theorems about merging the detections of several versions of an image."""

import numpy as np
import oracles
import pytest
from small_detectors import clutter, encode, small_detector

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.export.saved_model import export
from retinanet_tf.inference.detector import Detector, detect_all
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector

LABEL_MAP = LabelMap([1, 5, 9], ["a", "b", "c"])


@pytest.fixture(scope="module")
def detector():
    return small_detector(LABEL_MAP, spread=0.1)


def rows(answer, index=0):
    count = int(answer["num_detections"][index])
    return [np.asarray(answer[name][index])[:count] for name in ("scores", "labels", "boxes")]


def mirrored(boxes, width=70):
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


@pytest.mark.slow
def test_one_version_is_the_plain_detector(detector):
    plain, augmented = detector([clutter(0)]), AugmentedDetector(detector, flip=False)([clutter(0)])
    assert plain["num_detections"][0] > 5
    for name, value in plain.items():
        np.testing.assert_allclose(augmented[name].numpy(), value.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_mirrored_image_gives_mirrored_detections(detector):
    """Convolutions aren't symmetric, so the plain detector doesn't; both versions together do."""
    both, image = AugmentedDetector(detector, flip=True), clutter(0)
    scores, labels, boxes = rows(both([image]))
    other_scores, other_labels, other_boxes = rows(both([image[:, ::-1]]))
    np.testing.assert_allclose(other_scores, scores, atol=1e-5)
    np.testing.assert_array_equal(other_labels, labels)
    np.testing.assert_allclose(mirrored(other_boxes), boxes, atol=1e-2)
    plain, other = rows(detector([image]))[0], rows(detector([image[:, ::-1]]))[0]
    assert len(plain) != len(other) or np.abs(plain - other).max() > 1e-3


@pytest.mark.once
def test_merging_is_nms_over_the_union(detector):
    """Each version by itself without NMS (IoU 1, no limit), then greedy NMS by hand over all of them together."""
    everything = DetectConfig(nms_iou=1.0, max_detections=4000)
    image, pool = clutter(0), []
    for size in (48, 80):
        single = Detector(detector.model, detector.label_map, everything, size, round(size * 1.5))
        for flip in (False, True):
            scores, labels, boxes = rows(single([image[:, ::-1] if flip else image]))
            pool += list(zip(scores, labels, mirrored(boxes) if flip else boxes, strict=True))
    assert len({score for score, _, _ in pool}) > 0.99 * len(pool) > 100, "ties would make the order a choice"
    kept = []
    for score, label, box in sorted(pool, key=lambda one: -one[0]):
        if len(kept) < 30 and all(label != other[1] or oracles.box_iou(box, other[2]) <= 0.5 for other in kept):
            kept.append((score, label, box))
    scores, labels, boxes = rows(AugmentedDetector(detector, (48, 80))([image]))
    np.testing.assert_allclose(scores, [one[0] for one in kept], atol=1e-5)
    np.testing.assert_array_equal(labels, [one[1] for one in kept])
    np.testing.assert_allclose(boxes, np.array([one[2] for one in kept]), atol=1e-2)


@pytest.mark.slow
def test_it_has_a_detectors_interface(detector):
    """Images of several sizes, encoded ones, none at all, a stream, and a description."""
    augmented = AugmentedDetector(detector, (48,), flip=False)
    images = [clutter(0), clutter(0, 80, 40), clutter(0)]
    answer = augmented(images)
    assert answer["boxes"].shape == (3, 30, 4) and augmented([])["boxes"].shape == (0, 30, 4)
    for index, detections in detect_all(augmented, map(encode, images), batch_size=2):
        np.testing.assert_allclose(detections["scores"], rows(answer, index)[0], atol=1e-5)
    assert augmented.describe() == {**detector.describe(), "test_sizes": [48], "test_flip": False, "test_merge": "nms"}
    assert not isinstance(augmented, Detector)


@pytest.mark.parametrize("sizes", [(0, 64), 64, [64.5], ["64"]])
def test_sizes_must_be_whole_and_positive(detector, sizes):
    with pytest.raises(InputError, match="image_sizes=.*must be a list of whole numbers above 0"):
        AugmentedDetector(detector, sizes)
    assert AugmentedDetector(detector, np.array([32, 64])).describe()["test_sizes"] == [32, 64]
    with pytest.raises(InputError, match="must be a Detector"):
        AugmentedDetector(AugmentedDetector(detector))


def test_only_a_plain_detector_is_exported(detector, tmp_path):
    with pytest.raises(InputError, match="AugmentedDetector can't be exported"):
        export(AugmentedDetector(detector), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
