"""The detector: however an image comes in, the same boxes in its own pixels come out."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.evaluator import detect_all
from retinanet_tf.inference.detector import Detector, settings, to_image
from retinanet_tf.models.retinanet import RetinaNet

CONFIG = presets["mini"].replace(
    num_classes=3, backbone="resnet10_w16", image_size=64, max_size=96, fpn_channels=16, subnet_channels=16
)


def make(**options):
    """A network whose random scores spread over the threshold; the same in every call."""
    keras.utils.set_random_seed(2)
    model = RetinaNet.from_config(CONFIG)
    for variable in model.weights:
        if "class_subnet" in getattr(variable, "path", variable.name) and len(variable.shape) == 4:
            variable.assign(np.random.default_rng(3).normal(0, 0.1, variable.shape).astype(np.float32))
    return Detector(model, LabelMap([1, 5, 9], ["a", "b", "c"]), DetectConfig(max_detections=30), **options)


@pytest.fixture(scope="module")
def detector():
    return make()


def picture(number, height=50, width=70):
    rng = np.random.default_rng(number)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((width, height)))


def same(one, other, atol=1e-4):
    for name, value in one.items():
        np.testing.assert_allclose(np.asarray(value), np.asarray(other[name]), atol=atol)


def first(answer, index):
    return {name: value[index] for name, value in answer.items()}


def test_arrays_bytes_and_batches_are_the_same_images(detector):
    images = [picture(0), picture(1), picture(2)]
    answer = detector(images)
    assert answer["boxes"].shape == (3, 30, 4) and answer["labels"].dtype == tf.int32
    assert (answer["num_detections"].numpy() > 3).all()
    same(detector(np.stack(images)), answer)
    same(detector([tf.io.encode_png(image).numpy() for image in images]), answer)
    same(detector(tf.stack([tf.io.encode_png(image) for image in images])), answer)
    same(detector([image.astype(np.float32) for image in images]), answer)


def test_mixed_sizes_answer_each_for_itself(detector):
    """In input order, whatever shares a canvas with what."""
    images = [picture(0), picture(1, 70, 50), picture(2, 20, 90), picture(3), picture(4, 1, 1), picture(5, 70, 50)]
    answer = detector(images)
    for index, image in enumerate(images):
        same(first(answer, index), first(detector([image]), 0))
        height, width = image.shape[:2]
        assert np.all(answer["boxes"][index].numpy() <= [width, height, width, height])


def test_boxes_are_in_the_images_own_pixels(detector):
    """An image that is resized by exactly two has the boxes of its double, halved."""
    large = np.kron(picture(0, 32, 48), np.ones((2, 2, 1), np.uint8))
    reference = Detector(detector.model, detector.label_map, detector.config, 64, 96)(large[None])
    assert reference["num_detections"][0] > 3
    enlarged = Detector(detector.model, detector.label_map, detector.config, 64, 96)(
        [tf.cast(tf.image.resize(picture(0, 32, 48), [64, 96]), tf.float32)]
    )
    small = detector([picture(0, 32, 48)])
    np.testing.assert_allclose(small["boxes"].numpy() * 2, enlarged["boxes"].numpy(), atol=1e-3)
    np.testing.assert_allclose(small["scores"].numpy(), enlarged["scores"].numpy(), atol=1e-5)


def test_answers_are_sorted_and_empty_places_marked(detector):
    answer = {
        name: value.numpy() for name, value in detector([picture(0), np.full((40, 40, 3), 127, np.uint8)]).items()
    }
    assert np.all(np.diff(answer["scores"], axis=1) <= 0)
    for row, count in enumerate(answer["num_detections"]):
        assert np.all(answer["labels"][row, :count] >= 0) and np.all(answer["scores"][row, :count] > 0.05)
        assert np.all(answer["labels"][row, count:] == -1) and not answer["boxes"][row, count:].any()


def test_nothing_in_nothing_out(detector):
    answer = detector([])
    assert answer["boxes"].shape == (0, 30, 4) and answer["num_detections"].shape == (0,)


def test_inside_a_graph(detector):
    """`prepare` and `detect_canvases` in one tf.function, as serving uses them."""

    @tf.function
    def graph(image):
        return detector.detect_canvases(*(part[None] for part in detector.prepare(image)))

    same(graph(tf.constant(picture(3))), detector([picture(3)]))


def test_xla_compiles_the_network(detector):
    same(make(jit_compile=True)([picture(0), picture(1)]), detector([picture(0), picture(1)]), atol=1e-2)


def test_replicas_share_the_images_and_count_each_once(detector):
    """Two replicas, groups of 1, 3 and 5 images: none divides evenly."""
    images = [picture(k) for k in range(5)] + [picture(9, 70, 50)] + [picture(k, 64, 64) for k in range(3)]
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = make()
        answer = mirrored(images)
        streamed = dict(detect_all(mirrored, images, batch_size=2))
    expected = detector(images)
    same(answer, expected)
    assert sorted(streamed) == list(range(9))
    for index, found in streamed.items():
        count = int(expected["num_detections"][index])
        np.testing.assert_allclose(found["scores"], expected["scores"][index][:count].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", r"images\[1\] can't be decoded"),
        (np.zeros((5, 5), np.uint8), r"images\[1\] has shape \(5, 5\)"),
        (np.zeros((5, 5, 4), np.uint8), r"images\[1\] has shape"),
        (np.zeros((0, 5, 3), np.uint8), r"images\[1\] has shape"),
    ],
)
def test_what_is_no_image_is_named(detector, image, message):
    with pytest.raises(InputError, match=message):
        detector([picture(0), image])


def test_label_map_of_another_model_is_refused(detector):
    with pytest.raises(InputError, match="num_classes=3 of the model disagrees with the 2 categories"):
        Detector(detector.model, LabelMap([1, 2], ["a", "b"]))


def test_settings_and_defaults(detector):
    assert settings(detector) == {"image_size": 64, "max_size": 96, **dataclasses.asdict(detector.config)}
    assert Detector(detector.model).label_map.ids == (0, 1, 2)
    assert to_image(picture(0), 0).shape == (50, 70, 3)
