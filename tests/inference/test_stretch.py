"""resize=stretch: pictures become squares without their proportions, and boxes come back in the pictures' pixels."""

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK, clutter, encode

import retinanet_tf as rn
from retinanet_tf.export.signatures import ServedDetector
from retinanet_tf.inference.detector import detect_all
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector

SIDE = 64
PICTURES = [clutter(0, 40, 90), clutter(1, 90, 40), clutter(2, 64, 64)]


@pytest.fixture(scope="module")
def detector():
    """Boxes that differ from the anchors, scores between 0 and 1."""
    keras.utils.set_random_seed(3)
    mini = rn.presets["mini"].replace(num_classes=2, **TINY_NETWORK)
    model = rn.RetinaNet.from_config(mini.replace(image_size=SIDE, max_size=SIDE, resize="stretch"))
    rng = np.random.default_rng(4)
    for variable in model.weights:
        name = getattr(variable, "path", variable.name)
        if "subnet" in name and len(variable.shape) == 4:
            spread = 0.25 if "class" in name else 0.05
            variable.assign(rng.normal(0, spread, variable.shape).astype(np.float32))
    return rn.Detector(model, rn.data.LabelMap([3, 8], ["a", "b"]))


def expected_detections(detector, picture):
    """By loops, from the network's outputs on the stretched picture."""
    canvas = oracles.bilinear(picture, SIDE, SIDE).astype(np.float32)[None]
    outputs = detector.model(canvas, training=False)
    anchors = [level.numpy() for level in detector.model.anchors.by_level(tf.constant(canvas))]
    ends = np.cumsum([len(level) for level in anchors])[:-1]
    logits, deltas = (np.split(outputs[name][0].numpy(), ends) for name in ("class_logits", "box_deltas"))
    height, width = picture.shape[:2]
    return oracles.detections(logits, deltas, anchors, (SIDE / height, SIDE / width), (height, width))


@pytest.mark.slow
def test_boxes_are_in_the_pictures_own_pixels(detector):
    answer = {name: value.numpy() for name, value in detector(PICTURES).items()}
    for row, picture in enumerate(PICTURES):
        expected = expected_detections(detector, picture)
        assert answer["num_detections"][row] == len(expected) > 3
        for score, label, box, wanted in zip(
            answer["scores"][row], answer["labels"][row], answer["boxes"][row], expected, strict=False
        ):
            assert (label, score) == (wanted[1], pytest.approx(wanted[0], abs=1e-4))
            np.testing.assert_allclose(box, wanted[2], atol=1e-2)
    height, width = PICTURES[0].shape[:2]
    reach = answer["boxes"][0, : answer["num_detections"][0]].max(axis=0)
    assert SIDE < reach[2] <= width and reach[3] <= height < SIDE, "beyond the square in x, within it in y"


@pytest.mark.once
def test_streams_augmentation_and_signatures_agree(detector):
    """What evaluation, test-time augmentation and a served model compute is the detector's own answer."""
    answer = {name: value.numpy() for name, value in detector(PICTURES).items()}
    for index, found in detect_all(detector, map(encode, PICTURES), batch_size=2):
        count = answer["num_detections"][index]
        np.testing.assert_allclose(found["boxes"], answer["boxes"][index, :count], atol=1e-3)
    augmented = AugmentedDetector(detector, flip=False)(PICTURES)
    np.testing.assert_allclose(augmented["boxes"], answer["boxes"], atol=1e-3)
    served = ServedDetector(detector, lambda canvases: detector.levels(canvases, training=False))
    result = served.serving_default(tf.constant([encode(picture) for picture in PICTURES]))
    ymin, xmin, ymax, xmax = np.moveaxis(result["detection_boxes"].numpy(), -1, 0)
    for row, picture in enumerate(PICTURES):
        height, width = picture.shape[:2]
        boxes = np.stack([xmin[row] * width, ymin[row] * height, xmax[row] * width, ymax[row] * height], -1)
        np.testing.assert_allclose(boxes, answer["boxes"][row], atol=1e-3)


def test_another_size_is_a_square_too(detector):
    assert rn.Detector(detector.model, image_size=96).describe()["max_size"] == 96
    with pytest.raises(rn.InputError, match="max_size=100 must equal image_size=64"):
        rn.Detector(detector.model, max_size=100)
