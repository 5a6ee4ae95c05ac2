"""Augmentation by colour: where objects are painted in their class' colour, boxes are where the paint is."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.presets import presets
from retinanet_tf.data import augmentation, pipeline, transforms
from retinanet_tf.data.augmentation import Scene
from retinanet_tf.data.records.damage import DamageLog
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.shuffle import Pools
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference.tiles import TiledDetector
from tests.batches import damage, same
from tests.datasets import CATEGORIES, annotation

WIDE, TALL = (100, 60), (60, 100)
BLACK = (0.0, 0.0, 0.0)
PLAIN = {"image_size": 60, "max_size": 100, "size_multiple": 32, "batch_size": 4, "pixel_mean": BLACK, "flip": 0.5}
EVERYTHING = {
    **{"crop": 50, "overlap_crop": 0.7, "mosaic": 0.6, "mixup": 0.5, "cutout": 0.3, "vertical_flip": 0.5},
    **{"scale_jitter": (0.6, 1.5), "translate_jitter": 0.3, "colour_jitter": 0.2},
}
GEOMETRY = {
    "jitter": {"scale_jitter": (0.6, 1.8), "translate_jitter": 0.3},
    "crop": {"crop": 50},
    "crop larger than a side": {"crop": 70, "vertical_flip": 0.5},
    "overlap_crop": {"overlap_crop": 1.0},
    "mosaic": {"mosaic": 1.0},
    "mosaic, jittered": {"mosaic": 0.7, "scale_jitter": (0.4, 1.5), "translate_jitter": 0.5},
    "together": {"crop": 50, "overlap_crop": 0.5, "mosaic": 0.5, "scale_jitter": (0.6, 1.5), "translate_jitter": 0.3},
}


def key(*numbers):
    return tf.constant(numbers, tf.int64)


def painted(size, objects, background=0):
    """(H, W, 3) uint8 with each (box, label) of `objects` painted in its channel alone."""
    image = np.full((size[1], size[0], 3), background, np.uint8)
    for (x1, y1, x2, y2), label in objects:
        image[y1:y2, x1:x2] = np.eye(3, dtype=np.uint8)[label] * 250
    return image


def scene(size, objects):
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label in objects], np.int32)
    return Scene.whole(tf.constant(painted(size, objects)), tf.constant(boxes), tf.constant(labels))


def write_painted(folder, sizes, objects_each=3, seed=0):
    """Shards of painted pictures with objects 4 px apart at least and an unpainted crowd; returns their pattern."""
    rng = np.random.default_rng(seed)
    ids = sorted(category["id"] for category in CATEGORIES)
    images, annotations = [], []
    (folder / "images").mkdir()
    for number, (width, height) in enumerate(sizes):
        cells, objects = rng.permutation(9), []
        for cell in cells[:objects_each]:
            x, y = cell % 3 * width // 3 + rng.integers(2, 6), cell // 3 * height // 3 + rng.integers(2, 6)
            objects.append(((x, y, x + rng.integers(8, 13), y + rng.integers(8, 13)), int(rng.integers(3))))
        name = f"{number}.png"
        Image.fromarray(painted((width, height), objects)).save(folder / "images" / name)
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in objects:
            box = [int(x1), int(y1), int(x2 - x1), int(y2 - y1)]
            annotations.append(annotation(len(annotations) + 1, number + 1, box, ids[label]))
        cell = cells[-1]
        box = [int(cell % 3 * width // 3 + 3), int(cell // 3 * height // 3 + 3), 12, 12]
        annotations.append(annotation(len(annotations) + 1, number + 1, box, ids[0], iscrowd=1))
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(content))
    prepare(folder / "instances.json", folder / "images", folder / "out", shards=2, progress=False)
    return str(folder / "out" / "train-*.tfrecord")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six wide and four tall pictures."""
    return write_painted(tmp_path_factory.mktemp("painted"), [WIDE] * 6 + [TALL] * 4)


def real(objects, row):
    """Boxes and labels of one image of a batch, the padding left out; which is behind them and of zeros."""
    labels = objects["labels"][row].numpy()
    count = int((labels >= 0).sum())
    assert (labels[:count] >= 0).all() and not objects["boxes"][row, count:].numpy().any()
    return objects["boxes"][row, :count].numpy(), labels[:count]


def boxed(shape, boxes, margin):
    """Pixels (H, W) bool whose centres lie in one of the boxes, each larger by `margin` px on all sides."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for x1, y1, x2, y2 in boxes:
        inside |= (x > x1 - margin) & (x < x2 + margin) & (y > y1 - margin) & (y < y2 + margin)
    return inside


def check_paint(image, boxes, labels, threshold=125.0):
    """Every box is full of its class' paint, and outside of the boxes of its class there is none, to 2 px.

    A box narrower than a pixel doesn't count, so that a line of its paint may be left.
    """
    for label in range(3):
        paint = image[..., label] > threshold
        mine = boxes[labels == label]
        assert paint[boxed(paint.shape, mine, -2.0)].all()
        left = paint & ~boxed(paint.shape, mine, 2.0)
        assert not (left[1:, 1:] & left[:-1, 1:] & left[1:, :-1] & left[:-1, :-1]).any()


@pytest.mark.parametrize("name", GEOMETRY)
def test_boxes_are_where_their_paint_is(shards, name):
    """On wide and tall pictures, every object with a pixel counting as visible; crowds have no box."""
    shapes, count = set(), 0
    for images, objects in pipeline.load(shards, **PLAIN, **GEOMETRY[name], min_visible=0.0).take(8):
        shapes.add(images.shape[1:3])
        for row, image in enumerate(images.numpy()):
            boxes, labels = real(objects, row)
            assert (boxes >= 0).all() and (boxes[:, 2:] - boxes[:, :2] >= 1.0).all()
            check_paint(image, boxes, labels)
            count += len(boxes)
    canvases = {(64, 64)} if GEOMETRY[name].get("crop") == 50 else {(64, 128), (128, 64)}
    assert shapes == {tf.TensorShape(canvas) for canvas in canvases} and count > 30


def test_a_blend_has_the_boxes_of_both_where_their_paint_is(shards):
    most = 0
    for images, objects in pipeline.load(shards, **PLAIN, mixup=1.0).take(8):
        for row, image in enumerate(images.numpy()):
            boxes, labels = real(objects, row)
            check_paint(image, boxes, labels, threshold=2.0)
            most = max(most, len(boxes))
    assert most == 6


@pytest.mark.parametrize("name", ["jitter", "cutout"])
def test_a_higher_minimum_leaves_boxes_out_and_changes_nothing_else(shards, name):
    options = GEOMETRY.get(name, {"cutout": 0.6})
    every, some = (pipeline.load(shards, **PLAIN, **options, min_visible=least).take(4) for least in (0.0, 0.6))
    counts = np.zeros(2, int)
    for (images, objects), (its_images, its_objects) in zip(every, some, strict=True):
        np.testing.assert_array_equal(images, its_images)
        for row in range(len(images)):
            all_boxes, kept = real(objects, row)[0], real(its_objects, row)[0]
            assert {box.tobytes() for box in kept} <= {box.tobytes() for box in all_boxes}
            counts += len(all_boxes), len(kept)
    assert counts[0] > counts[1] > 0


@pytest.mark.parametrize("size", [WIDE, TALL])
@pytest.mark.parametrize("name", ["square_crop", "overlap_crop", "cutout"])
def test_the_share_that_is_seen_is_the_share_of_painted_pixels(name, size):
    box = (20, 30, 50, 55)
    shares = []
    for number in range(60):
        whole = scene(size, [(box, 1)])
        seed = key(5, number)
        if name == "square_crop":
            out = augmentation.square_crop(whole, seed, 40)
        elif name == "overlap_crop":
            out = augmentation.overlap_crop(whole, seed, 1.0)
        else:
            out = augmentation.cutout(whole, seed, 0.7, BLACK)
        paint = out.image.numpy()[..., 1] > 125
        shares.append(float(out.share[0]))
        assert paint.sum() == pytest.approx(shares[-1] * 30 * 25, abs=1e-3)
        if name == "cutout":
            np.testing.assert_array_equal(out.boxes[0], box)
        elif paint.any():
            rows, columns = np.nonzero(paint)
            np.testing.assert_array_equal(out.boxes[0], [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert len(set(shares)) > 5 and max(shares) == 1.0


# Worked by hand: a window from (256, 128) of 256x256; the second object keeps 2.5 of its 50 columns, the third all.
def test_the_rule_of_visibility():
    boxes = [((250, 130, 300, 170), 0), ((506, 200, 606, 250), 1), ((256, 128, 512, 384), 2)]
    part = scene((640, 480), boxes).window(tf.constant([128, 256]), tf.constant([256, 256]))
    np.testing.assert_allclose(part.boxes, [[0, 2, 44, 42], [250, 72, 256, 122], [0, 0, 256, 256]])
    np.testing.assert_allclose(part.share, [0.88, 0.06, 1.0], rtol=1e-6)
    assert [part.seen(least).labels.numpy().tolist() for least in (0.0, 0.1, 0.88, 0.9, 1.0)] == [
        *([0, 1, 2], [0, 2], [0, 2], [2], [2])
    ]
    narrow = tf.constant([[3.0, 0.0, 3.9, 50.0]])
    assert not transforms.visible(narrow, tf.ones(1), 0.0)[0], "less than a pixel wide"


@pytest.mark.parametrize("new", [(667, 1000), (1401, 2101), (3802, 5702)])
def test_an_object_up_to_the_border_is_wholly_seen_at_any_scale(new):
    boxes = tf.constant([[2990.3, 10.0, 3001.0, 20.0], [0.0, 1990.0, 7.0, 2001.0]])
    scaled = transforms.scale_boxes(boxes, tf.cast(tf.constant(new) / [2001, 3001], tf.float32))
    assert transforms.visible(*transforms.cut(scaled, *new), 1.0).numpy().all()


def test_a_square_that_covers_an_object_hides_it():
    """The side is the whole picture's: an object in the middle is always under the square, and has no box."""
    for number in range(20):
        out = augmentation.cutout(scene((60, 60), [((25, 25, 35, 35), 0)]), key(1, number), 1.0, BLACK)
        seen = (out.image.numpy()[..., 0] > 125).any()
        assert bool(len(out.seen(0.1).boxes)) == (float(out.share[0]) > 0.1) and seen == (float(out.share[0]) > 0)


def test_square_crops_of_tall_pictures_fit_the_tall_canvas(tmp_path):
    """Where one picture is smaller than the crop there are two canvases; an enlarged square lies on its own one."""
    pattern = write_painted(tmp_path, [TALL] * 4 + [(70, 54)])
    shapes = set()
    for images, objects in pipeline.load(pattern, **PLAIN, crop=55, scale_jitter=(1.5, 1.9), min_visible=0.0).take(6):
        shapes.add(tuple(images.shape))
        for row, image in enumerate(images.numpy()):
            check_paint(image, *real(objects, row))
    assert shapes == {(4, 128, 64, 3), (4, 64, 128, 3)}


@pytest.mark.parametrize("size", [(46, 34), (46, 16)])
def test_a_crop_is_a_tile_as_a_detector_resizes_it(tmp_path, size):
    """Pixel by pixel, so that objects have one size in training and in detection on tiles of that side."""
    from small_detectors import small_detector

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


# The frame is 100x80 (width x height). Each window shows its picture's top left; the first has an object 30 px wide
# from 2 px before its right end on, the second one of which 60 % are left.
def test_a_mosaic_cuts_at_its_quarters():
    def window(slot, size):
        width = int(size[1])
        objects = {
            0: [((width - 2, 2, width + 28, 12), 0)],
            1: [((width - 6, 2, width + 4, 12), 1)],
            2: [((0, 0, 5, 5), 2)],
            3: [],
        }[slot]
        return scene((200, 200), objects).window(tf.constant([0, 0]), size if slot != 2 else tf.constant([10, 12]))

    for number in range(10):
        out = augmentation.mosaic(window, key(7, number), tf.constant([80, 100]), (9.0, 9.0, 9.0)).seen(0.1)
        image = out.image.numpy()
        assert image.shape == (80, 100, 3) and out.labels.numpy().tolist() == [1, 2]
        rows, columns = np.nonzero(image[..., 2] > 125)
        y = rows.min()
        np.testing.assert_array_equal(out.boxes, [[94, 2, 100, 12], [0, y, 5, y + 5]])
        assert 20 <= y <= 60 and (image[y + 10 :, :15] == 9.0).all(), "a small picture lies at its quarter's top left"
        corner = np.nonzero(image[2, :, 0] > 125)[0]
        assert len(corner) == 2 and 25 <= corner[1] + 1 <= 75


def test_a_mosaic_of_four_full_pictures_has_all_their_objects(tmp_path):
    """At a quarter of the size every picture fits its quarter: 4 x 8 boxes, where one picture has 8."""
    pattern = write_painted(tmp_path, [WIDE] * 5, objects_each=8)
    options = {**PLAIN, "mosaic": 1.0, "scale_jitter": (0.25, 0.25)}
    for images, objects in pipeline.load(pattern, **options).take(3):
        assert images.shape == (4, 64, 128, 3) and objects["labels"].shape == (4, 32)
        assert [len(real(objects, row)[0]) for row in range(4)] == [32] * 4


def test_a_blend_is_one_weight_for_all_pixels_and_leaves_boxes_alone():
    rng = np.random.default_rng(0)
    one = Scene.whole(
        tf.constant(rng.uniform(0, 255, (30, 50, 3)), tf.float32), tf.constant([[1.5, 2.25, 30, 20]]), tf.constant([2])
    )
    other = Scene.whole(
        tf.constant(rng.uniform(0, 255, (40, 20, 3)), tf.float32), tf.constant([[3.0, 4, 9, 39]]), tf.constant([1])
    )
    mean, weights = (10.0, 20.0, 30.0), []
    mine, its = (transforms.pad_to(s.image, 40, 50, mean).numpy() for s in (one, other))
    for number in range(300):
        out = augmentation.mixup(one, other, key(8, number), mean)
        np.testing.assert_array_equal(out.boxes, tf.concat([one.boxes, other.boxes], 0))
        assert out.labels.numpy().tolist() == [2, 1] and out.labels.dtype == tf.int32
        weights.append(((out.image.numpy() - its)[0, 0] / (mine - its)[0, 0])[0])
        if number < 5:
            np.testing.assert_allclose(out.image, weights[-1] * mine + (1 - weights[-1]) * its, atol=0.05)
    # Beta(1.5, 1.5): mean 1/2, variance 1/16.
    assert np.mean(weights) == pytest.approx(0.5, abs=0.05) and np.var(weights) == pytest.approx(1 / 16, abs=0.015)


def test_a_picture_is_not_blended_with_itself(tmp_path):
    """The only tall picture stays as it is; the wide ones are blended with another one, never with themselves."""
    pattern = write_painted(tmp_path, [WIDE] * 2 + [TALL])
    counts = {False: set(), True: set()}
    for images, objects in pipeline.load(pattern, **PLAIN, mixup=1.0).take(9):
        for row in range(4):
            counts[images.shape[1] > images.shape[2]].add(len(real(objects, row)[0]))
    assert counts == {False: {6}, True: {3}}


def test_partners_are_others_of_the_same_orientation_and_evenly_drawn():
    pools = Pools.by_orientation(np.array([4, 3, 4, 3, 4, 3, 4, 4]), np.array([3, 4, 3, 4, 3, 4, 3, 3]), False)
    steps = tf.range(400, dtype=tf.int64)
    groups, tall = pools.draw_groups(steps, 4, 1, 3)
    records, its_tall = pools.draw(steps, 4, 1)
    np.testing.assert_array_equal(groups[..., 0], records)
    np.testing.assert_array_equal(tall, its_tall)
    own, partners = groups.numpy()[..., :1], groups.numpy()[..., 1:]
    assert (own != partners).all() and (np.isin(partners, pools.tall) == tall.numpy()[:, None, None]).all()
    for pool in (pools.wide, pools.tall):
        for record in pool:
            drawn = partners[(own == record)[..., 0]].ravel()
            counts = np.array([(drawn == other).sum() for other in pool if other != record])
            assert counts.min() > 0.75 * counts.mean()
    alone = [pools.draw_groups(tf.constant([step], tf.int64), 4, 1, 3)[0][0] for step in range(17, 22)]
    np.testing.assert_array_equal(alone, groups[17:22])
    single = Pools.by_orientation(np.array([4]), np.array([3]), False).draw_groups(steps[:3], 2, 0, 1)[0]
    assert not single.numpy().any()


def test_resume_and_workers_see_the_same_batches(shards):
    whole = list(pipeline.load(shards, **PLAIN, **EVERYTHING).take(5))
    same(whole[3:], pipeline.load(shards, start_step=3, **PLAIN, **EVERYTHING).take(2))
    second = pipeline.load(shards, shard=(1, 2), **PLAIN, **EVERYTHING).take(5)
    for (images, objects), (its_images, its_objects) in zip(whole, second, strict=True):
        np.testing.assert_array_equal(images[2:], its_images)
        for row in range(2):
            for mine, its in zip(real(objects, row + 2), real(its_objects, row), strict=True):
                np.testing.assert_array_equal(mine, its)


def test_mixing_ends_and_the_rest_is_as_without_it(shards):
    """Step 4 is the first one after a tenth of 40; the other random numbers are those of a job that never mixed."""
    config = presets["mini"].replace(num_classes=3, image_size=64, max_size=64, steps=40, batch_size=2, mix_until=0.1)
    config = config.replace(scale_jitter=(0.7, 1.4), mosaic=1.0, mixup=1.0)
    without = pipeline.load_for_training(config.replace(mosaic=0.0, mixup=0.0), shards, 3).take(3)
    mixed = pipeline.load_for_training(config, shards, 3).take(3)
    equal = [np.array_equal(one[0], other[0]) for one, other in zip(without, mixed, strict=True)]
    assert equal == [False, True, True]


def test_all_batches_have_one_of_the_shapes_that_are_named(shards):
    """No shape is new to a compiled step: the canvases are the usual ones, M a power of two up to a bound."""
    config = presets["mini"].replace(num_classes=3, image_size=60, max_size=100, max_level=5, batch_size=2)
    cropped = pipeline.batch_shapes(config.replace(**EVERYTHING), shards)
    assert set(cropped) == {(64, 64, 8), (64, 64, 16)}, "up to 5 x 3 objects"
    smaller = pipeline.batch_shapes(config.replace(crop=61), shards)
    assert set(smaller) == {(64, 128, 8), (128, 64, 8)}, "not all crops are squares"
    config = config.replace(**{**EVERYTHING, "crop": 0})
    named = set(pipeline.batch_shapes(config, shards))
    data = pipeline.load_for_training(config, shards)
    found = {(*images.shape[1:3], objects["labels"].shape[1]) for images, objects in data.take(16)}
    assert named == {(64, 128, 8), (64, 128, 16), (128, 64, 8), (128, 64, 16)} and found <= named and len(found) > 2


@pytest.mark.slow
def test_a_damaged_partner_is_named_or_replaced(tmp_path):
    pattern = write_painted(tmp_path, [WIDE] * 6)
    path, _ = damage(pattern, shard=1, number=1)
    options = {**PLAIN, "batch_size": 1, "mixup": 1.0}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"record 1 of .*{path.name}.* is damaged"):
        list(pipeline.load(pattern, **options).take(6))
    log = DamageLog()
    load = lambda **more: pipeline.load(pattern, on_bad_record="skip", damage_log=log, **options, **more)  # noqa: E731
    batches = list(load().take(6))
    assert log.records == [(str(path), 1)] and all(len(images) == 1 for images, _ in batches)
    same(batches[2:], load(start_step=2).take(4))


def test_validation_is_not_augmented(shards):
    square = {**PLAIN, "max_size": 60}
    same(*(pipeline.load(shards, training=False, **square, **options) for options in ({}, EVERYTHING)))


def test_wrong_settings_are_named(shards):
    for name, value in (("mosaic", 1.5), ("mixup", -0.1), ("crop", -1), ("cutout", 2.0), ("min_visible", 1.1)):
        with pytest.raises(InputError, match=f"{name}={value} must lie in"):
            pipeline.load(shards, **PLAIN, **{name: value})
