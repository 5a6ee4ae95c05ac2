"""Random crops: squares as detection on tiles sees them, and patches as SSD takes them."""

import numpy as np
import pytest
import tensorflow as tf
from small_detectors import small_detector

from retinanet_tf.data import augmentation, pipeline
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.inference.tiles import TiledDetector
from tests.painted import PLAIN, TALL, WIDE, check_paint, key, real, scene, write_painted


@pytest.mark.once
def test_square_crops_of_tall_pictures_fit_the_tall_canvas(tmp_path):
    """Where one picture is smaller than the crop there are two canvases; an enlarged square lies on its own one."""
    pattern = write_painted(tmp_path, [TALL] * 4 + [(70, 54)])
    shapes = set()
    for images, objects in pipeline.load(pattern, **PLAIN, crop=55, scale_jitter=(1.5, 1.9), min_visible=0.0).take(6):
        shapes.add(tuple(images.shape))
        for row, image in enumerate(images.numpy()):
            check_paint(image, *real(objects, row))
    assert shapes == {(4, 128, 64, 3), (4, 64, 128, 3)}


@pytest.mark.once
@pytest.mark.parametrize("size", [(46, 34), (46, 16)])
def test_a_crop_is_a_tile_as_a_detector_resizes_it(tmp_path, size):
    """Pixel by pixel, so that objects have one size in training and in detection on tiles of that side."""
    pattern = write_painted(tmp_path, [size])
    (record,) = read_records(pattern)
    picture = tf.io.decode_image(record.encoded).numpy()
    detector = TiledDetector(small_detector(LabelMap([1, 2, 3], ["a", "b", "c"])), 32)
    height, width = min(32, size[1]), min(32, size[0])
    tiles = {}
    for y in range(size[1] - height + 1):
        for x in range(size[0] - width + 1):
            tile = detector.detector.prepare(picture[y : y + height, x : x + width]).canvas
            tiles[np.round(tile).tobytes()] = (x, y)
    found = set()
    mean = detector.detector.model.config.pixel_mean
    options = {**PLAIN, "image_size": 64, "max_size": 96, "pixel_mean": mean, "flip": 0.0}
    for images, _ in pipeline.load(pattern, **options, crop=32).take(5):
        found |= {tiles.get(np.round(image).tobytes()) for image in images.numpy()}
    assert None not in found and len(found) > 5
    first = detector.windows(*size[::-1])[0]
    assert (first.x2 - first.x1, first.y2 - first.y1) == (width, height)


@pytest.mark.once
def test_half_of_the_crops_are_placed_to_show_an_object():
    """A small object is in 1 % of all squares; an object larger than the square is shown in part; none is no error."""
    draws = range(200)
    large = scene((500, 400), [((300, 200, 310, 210), 0)])
    shown = [float(augmentation.square_crop(large, key(2, n), 40).share[0]) == 1.0 for n in draws]
    assert 0.4 < np.mean(shown) < 0.62
    huge = scene((100, 60), [((0, 0, 100, 60), 2)])
    shares = [float(augmentation.square_crop(huge, key(2, n), 20).share[0]) for n in range(5)]
    np.testing.assert_allclose(shares, 400 / 6000, rtol=1e-6)
    empty = augmentation.square_crop(scene((100, 60), []), key(2, 0), 20)
    assert empty.image.shape == (20, 20, 3) and empty.boxes.shape == (0, 4)


def test_a_patch_overlaps_an_object_by_the_minimum_or_is_the_whole_picture(monkeypatch):
    """IoU from painted pixels; one of two objects is enough, and with no patch that serves the picture stays whole."""
    monkeypatch.setattr(augmentation, "MINIMUM_OVERLAPS", (0.6,) * 998)  # whole and 'any' are then rare
    size = (100, 80)
    ious, whole = [], 0
    for number in range(80):
        out = augmentation.overlap_crop(scene(size, [((10, 10, 80, 70), 0), ((85, 5, 95, 10), 1)]), key(3, number), 1.0)
        height, width = out.image.shape[:2]
        assert 0.29 < height / 80 <= 1 and 0.29 < width / 100 <= 1 and 0.48 < width * 80 / (height * 100) < 2.1
        seen = int((out.image.numpy()[..., 0] > 125).sum())
        whole += (height, width) == (80, 100)
        ious.append(seen / (height * width + 70 * 60 - seen))
    assert min(ious) >= 0.5 and min(iou for iou in ious if iou != 4200 / 8000) >= 0.6 and whole < 40
    for number in range(10):
        out = augmentation.overlap_crop(scene(size, [((50, 40, 55, 45), 0)]), key(3, number), 1.0)
        assert out.image.shape == (80, 100, 3)


@pytest.mark.once
def test_a_patch_may_be_anything_once_in_seven_and_without_objects():
    sizes = [augmentation.overlap_crop(scene((90, 90), []), key(4, n), 1.0).image.shape[:2] for n in range(140)]
    assert 8 < sum(size != (90, 90) for size in sizes) < 36
    assert all(
        augmentation.overlap_crop(scene((90, 90), []), key(4, n), 0.0).image.shape == (90, 90, 3) for n in range(5)
    )


@pytest.mark.parametrize("tall", [False, True])
def test_a_patch_has_the_orientation_of_its_canvas(tall):
    for number in range(40):
        objects = [((10, 10, 50, 50), 0)]
        out = augmentation.overlap_crop(scene(TALL if tall else WIDE, objects), key(6, number), 1.0, tf.constant(tall))
        assert (out.image.shape[0] > out.image.shape[1]) == tall
