"""Transforms: geometry against plain numpy, one result eagerly and in tf.data, and the paper's resize rule."""

import numpy as np
import oracles
import pytest
import tensorflow as tf

from retinanet_tf.data import transforms
from retinanet_tf.data.batching import CanvasBatch
from tests.datasets import picture

MEAN = (123.675, 116.28, 103.53)
BOXES = np.array([[1, 2, 30, 20], [0, 0, 40, 30], [10.5, 3.25, 11, 29.75]], np.float32)


@pytest.mark.parametrize("size, short, long", [((30, 40), 60, 100), ((40, 30), 20, 33), ((5, 50), 20, 40)])
def test_resize_is_bilinear_with_half_pixel_centres(size, short, long):
    image = picture(size[1], size[0])
    resized, scale = transforms.resize(tf.constant(image), short, long)
    height, width = transforms.resized_shape(*size, short, long)
    assert resized.shape == (height, width, 3) and resized.dtype == tf.float32
    np.testing.assert_allclose(resized, oracles.bilinear(image, height, width), atol=2e-3)
    np.testing.assert_allclose(scale, [height / size[0], width / size[1]], rtol=1e-7)


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (24, 24), (5, 50)])
def test_stretched_images_are_squares(size):
    """Both sides 24, each by its own factor."""
    image = picture(size[1], size[0])
    resized, scale = transforms.resize(tf.constant(image), 24, 24, "stretch")
    np.testing.assert_allclose(resized, oracles.bilinear(image, 24, 24), atol=2e-3)
    np.testing.assert_allclose(scale, [24 / size[0], 24 / size[1]], rtol=1e-6)
    boxes, seed, half = tf.constant([[1.0, 1.0, size[1] - 1, size[0] - 1]]), tf.constant([1, 2]), (0.5, 0.50001)
    jittered, moved, _ = transforms.random_jitter(tf.constant(image), boxes, seed, 24, 24, half, 0.0, MEAN, "stretch")
    np.testing.assert_allclose(jittered, oracles.bilinear(image, 12, 12), atol=2e-3)
    np.testing.assert_allclose(moved, boxes * ([12 / size[1], 12 / size[0]] * 2), rtol=1e-5)


# Worked by hand from §4.1: shorter side s, unless the longer one would exceed its limit.
@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (600, 800)),
        ((640, 480), (800, 600)),
        ((500, 500), (600, 600)),
        ((427, 640), (600, 899)),  # 640 · 600 / 427 = 899.3
        ((200, 800), (250, 1000)),  # 600 would make 2400: limited by 1000
        ((20, 3000), (7, 1000)),  # 20 / 3 = 6.67
        ((1, 5000), (1, 1000)),  # never 0
        ((1, 1), (600, 600)),
    ],
)
def test_the_rule_of_the_paper(size, expected):
    assert transforms.resized_shape(*size, 600, 1000) == expected
    tensors = transforms.resized_shape(tf.constant(size[0]), tf.constant(size[1]), 600, 1000)
    assert tuple(int(t) for t in tensors) == expected


def test_integers_and_tensors_agree_for_every_size():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 4000, (300, 2)).tolist():
        tensors = transforms.resized_shape(tf.constant(height), tf.constant(width), 800, 1333)
        assert tuple(int(t) for t in tensors) == transforms.resized_shape(height, width, 800, 1333)


@pytest.mark.parametrize("axis", [0, 1])
def test_flipping_twice_is_nothing_and_once_is_a_mirror(axis):
    image = picture(40, 30)
    once = transforms.flip(tf.constant(image), tf.constant(BOXES), axis)
    np.testing.assert_array_equal(once[0], np.flip(image, axis))
    # A box still frames the same pixels: paint it, flip, and find the paint.
    for box, flipped in zip(BOXES[:2].astype(int), np.asarray(once[1])[:2].astype(int), strict=True):
        painted = np.zeros((30, 40, 3), np.uint8)
        painted[box[1] : box[3], box[0] : box[2]] = 255
        rows, columns = np.nonzero(transforms.flip(tf.constant(painted), tf.constant(BOXES), axis)[0].numpy()[..., 0])
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == flipped.tolist()
    twice = transforms.flip(*once, axis)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_allclose(twice[1], BOXES, atol=1e-5)
    empty = transforms.flip(tf.constant(image), tf.zeros((0, 4)), axis)
    assert empty[1].shape == (0, 4)


def test_resizing_commutes_with_flipping():
    image = tf.constant(picture(41, 29))
    first = transforms.resize(transforms.flip(image, tf.zeros((0, 4)), 1)[0], 60, 100)[0]
    last = transforms.flip(transforms.resize(image, 60, 100)[0], tf.zeros((0, 4)), 1)[0]
    np.testing.assert_allclose(first, last, atol=1e-3)


def test_padding_is_the_mean_and_the_image_is_untouched():
    image = tf.constant(picture(40, 30), tf.float32)
    for height, width in ((64, 128), (tf.constant(64), tf.constant(128)), (30, 40)):
        canvas = transforms.pad_to(image, height, width, MEAN).numpy()
        np.testing.assert_array_equal(canvas[:30, :40], image)
        outside = np.ones(canvas.shape[:2], bool)
        outside[:30, :40] = False
        np.testing.assert_array_equal(canvas[outside], np.broadcast_to(np.float32(MEAN), (outside.sum(), 3)))


@pytest.mark.parametrize("tall", [False, True])
def test_a_whole_batch_on_its_canvas_is_padding_one_by_one(tall):
    sizes = [(30, 50), (32, 40), (5, 64)]
    images = [picture(*(size if tall else size[::-1]), seed).astype(np.float32) for seed, size in enumerate(sizes)]
    ragged = tf.ragged.constant([[0], [1, 2], []], dtype=tf.int32, ragged_rank=1)
    pixels = tf.constant(b"".join(image.tobytes() for image in images))
    ends = np.cumsum([0] + [image.nbytes for image in images])
    shapes = tf.constant([image.shape for image in images])

    @tf.function
    def fill():
        def example(i):
            raw = tf.strings.substr(pixels, tf.gather(ends, i), tf.gather(ends, i + 1) - tf.gather(ends, i))
            image = tf.reshape(tf.io.decode_raw(raw, tf.float32), shapes[i])
            return image, tf.gather(tf.constant(BOXES), ragged[i]), ragged[i]

        return CanvasBatch(32, 64, MEAN).fill(3, tf.constant(tall), example)

    batch, objects = fill()
    expected = [transforms.pad_to(tf.constant(i), *((64, 32) if tall else (32, 64)), MEAN) for i in images]
    np.testing.assert_array_equal(batch, np.stack(expected))
    np.testing.assert_array_equal(objects["labels"], [[0] + [-1] * 7, [1, 2] + [-1] * 6, [-1] * 8])
    np.testing.assert_array_equal(objects["boxes"][1, :2], BOXES[1:3])
    assert not objects["boxes"].numpy()[2].any()


def test_shifting_moves_image_and_boxes_together():
    image = np.zeros((30, 40, 3), np.float32)
    image[4:20, 10:25] = 255
    box = tf.constant([[10.0, 4, 25, 20]])
    for offset in ((0, 0), (7, 3), (-2, -6), (9, -3)):
        out, moved = transforms.shift_into(tf.constant(image), box, tf.constant(offset), 50, 60, (0.0, 0.0, 0.0))
        rows, columns = np.nonzero(out.numpy()[..., 0])
        np.testing.assert_array_equal(moved[0], [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert out.shape == (50, 60, 3)


@pytest.mark.parametrize("scale", [(0.3, 0.5), (0.8, 1.25), (1.5, 2.5)])
def test_jitter_keeps_boxes_on_their_objects(scale):
    # A bright rectangle on black; wherever jitter takes it, its box must frame what is bright (to the blur's pixel).
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:45, 30:50] = 255
    box = tf.constant([[30.0, 20, 50, 45]])
    seen, factors = 0, []
    for number in range(40):
        out, boxes, share = transforms.random_jitter(
            tf.constant(image), box, tf.constant([7, number]), 60, 100, scale, 0.5, (0.0, 0.0, 0.0)
        )
        assert out.shape[0] <= 60 and out.shape[1] <= 100
        boxes = boxes[transforms.visible(boxes, share, 0.0)]
        rows, columns = np.nonzero(out.numpy()[..., 0] > 127)
        if not len(boxes):
            assert len(rows) <= 120  # at most a sliver of it is left
            continue
        seen += 1
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0], found, atol=1.51)
        if found[0] > 0 and found[2] < out.shape[1]:
            factors.append(float(boxes[0, 2] - boxes[0, 0]) / 20)
    assert seen > 20
    if factors:
        assert min(factors) >= scale[0] - 0.05 and max(factors) <= scale[1] + 0.05


def test_no_jitter_is_the_plain_resize():
    image = tf.constant(picture(40, 30))
    out, boxes, share = transforms.random_jitter(
        image, tf.constant(BOXES), tf.constant([1, 2]), 60, 100, (1, 1), 0, MEAN
    )
    plain, scale = transforms.resize(image, 60, 100)
    np.testing.assert_allclose(out, plain, atol=1e-4)
    np.testing.assert_allclose(boxes, transforms.scale_boxes(tf.constant(BOXES), scale), atol=1e-4)
    np.testing.assert_array_equal(share, np.ones(len(BOXES)))


def test_colour_jitter_stays_in_range_and_zero_strength_is_nothing():
    image = tf.constant(picture(20, 10), tf.float32)
    np.testing.assert_allclose(transforms.random_colour(image, tf.constant([1, 2]), 0.0), image, atol=1e-3)
    changed = transforms.random_colour(image, tf.constant([1, 2]), 0.4).numpy()
    assert changed.min() >= 0 and changed.max() <= 255 and np.abs(changed - image).mean() > 1


SEED = [3, 4]
OPERATIONS = {
    "resize": lambda i, b: transforms.resize(i, 50, 90),
    "flip": lambda i, b: transforms.flip(i, b, 1),
    "vertical": lambda i, b: transforms.flip(i, b, 0),
    "random flip": lambda i, b: transforms.random_flip(i, b, tf.constant(SEED), 0.5, 0.5),
    "jitter": lambda i, b: transforms.random_jitter(i, b, tf.constant(SEED), 50, 90, (0.5, 2.0), 0.5, MEAN),
    "colour": lambda i, b: (transforms.random_colour(i, tf.constant(SEED), 0.3), b),
    "pad": lambda i, b: (transforms.pad_to(i, 64, 128, MEAN), b),
    "shift": lambda i, b: transforms.shift_into(i, b, tf.constant([3, -5]), 50, 60, MEAN),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_result_eagerly_and_in_tf_data(name):
    image, operation = picture(40, 30), OPERATIONS[name]
    eager = operation(tf.constant(image), tf.constant(BOXES))
    (graph,) = tf.data.Dataset.from_tensors((image, BOXES)).map(operation)
    for one, other in zip(eager, graph, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
        assert one.dtype == other.dtype
