"""Test-time augmentation: what merging several looks at an image must and must not change."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from PIL import Image
from small_detectors import small_detector

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.evaluator import detect_all
from retinanet_tf.export.saved_model import export
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector


@pytest.fixture(scope="module")
def detector():
    return small_detector(LabelMap([1, 5, 9], ["a", "b", "c"]), spread=0.1)


def picture(height=50, width=70):
    rng = np.random.default_rng(0)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((width, height)))


def rows(answer, index=0):
    count = int(answer["num_detections"][index])
    return [np.asarray(answer[name][index])[:count] for name in ("scores", "labels", "boxes")]


def test_one_look_is_the_plain_detector(detector):
    plain, augmented = detector([picture()]), AugmentedDetector(detector, flip=False)([picture()])
    assert plain["num_detections"][0] > 5
    for name, value in plain.items():
        np.testing.assert_allclose(augmented[name].numpy(), value.numpy(), atol=1e-4)


def test_mirrored_image_gives_mirrored_detections(detector):
    """Convolutions aren't symmetric, so the plain detector doesn't; both looks together do."""
    both = AugmentedDetector(detector, flip=True)
    image = picture()
    answer, mirrored = both([image]), both([image[:, ::-1]])
    scores, labels, boxes = rows(answer)
    scores2, labels2, boxes2 = rows(mirrored)
    np.testing.assert_allclose(scores2, scores, atol=1e-5)
    np.testing.assert_array_equal(labels2, labels)
    back = np.stack([70 - boxes2[:, 2], boxes2[:, 1], 70 - boxes2[:, 0], boxes2[:, 3]], 1)
    np.testing.assert_allclose(back, boxes, atol=1e-2)
    plain = rows(detector([image]))[0], rows(detector([image[:, ::-1]]))[0]
    assert len(plain[0]) != len(plain[1]) or np.abs(plain[0] - plain[1]).max() > 1e-3


def test_merging_is_nms_over_the_union(detector):
    """Each look by itself without NMS (IoU 1, no limit), then greedy NMS by hand over all of them together."""
    everything = DetectConfig(nms_iou=1.0, max_detections=4000)
    image, pool = picture(), []
    for size in (48, 80):
        single = Detector(detector.model, detector.label_map, everything, size, round(size * 1.5))
        for mirrored in (False, True):
            scores, labels, boxes = rows(single([image[:, ::-1] if mirrored else image]))
            if mirrored:
                boxes = np.stack([70 - boxes[:, 2], boxes[:, 1], 70 - boxes[:, 0], boxes[:, 3]], 1)
            pool += list(zip(scores, labels, boxes, strict=True))
    assert len({score for score, _, _ in pool}) > 0.99 * len(pool) > 100, "ties would make the order a choice"
    kept = []
    for score, label, box in sorted(pool, key=lambda one: -one[0]):
        if len(kept) < 30 and all(label != other[1] or oracles.box_iou(box, other[2]) <= 0.5 for other in kept):
            kept.append((score, label, box))
    scores, labels, boxes = rows(AugmentedDetector(detector, (48, 80))([image]))
    np.testing.assert_allclose(scores, [one[0] for one in kept], atol=1e-5)
    np.testing.assert_array_equal(labels, [one[1] for one in kept])
    np.testing.assert_allclose(boxes, np.array([one[2] for one in kept]), atol=1e-2)


def test_used_as_a_detector_is(detector):
    """A list of sizes, encoded images, nothing at all, and a whole evaluation's loop."""
    augmented = AugmentedDetector(detector, (48,), flip=False)
    images = [picture(), picture(80, 40), picture()]
    answer = augmented(images)
    assert answer["boxes"].shape == (3, 30, 4) and augmented([])["boxes"].shape == (0, 30, 4)
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    for index, found in detect_all(augmented, encoded, batch_size=2):
        np.testing.assert_allclose(found["scores"], rows(answer, index)[0], atol=1e-5)


def test_what_it_cannot_do_is_refused(detector, tmp_path):
    with pytest.raises(InputError, match="above 0"):
        AugmentedDetector(detector, (0, 64))
    with pytest.raises(InputError, match="test-time augmentation"):
        export(AugmentedDetector(detector), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
