"""Augmentation by colour: where objects are painted in their class' colour, boxes are where the paint is."""

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.presets import presets
from retinanet_tf.data import augmentation, pipeline, transforms
from retinanet_tf.data.augmentation import Scene
from retinanet_tf.data.records.damage import DamageLog
from retinanet_tf.data.shuffle import Pools
from retinanet_tf.errors import InputError
from tests.batches import damage, same
from tests.painted import BLACK, PLAIN, TALL, WIDE, check_paint, key, real, scene, write_painted

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


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six wide and four tall pictures."""
    return write_painted(tmp_path_factory.mktemp("painted"), [WIDE] * 6 + [TALL] * 4)


@pytest.mark.once
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


@pytest.mark.once
def test_a_blend_has_the_boxes_of_both_where_their_paint_is(shards):
    most = 0
    for images, objects in pipeline.load(shards, **PLAIN, mixup=1.0).take(8):
        for row, image in enumerate(images.numpy()):
            boxes, labels = real(objects, row)
            check_paint(image, boxes, labels, threshold=2.0)
            most = max(most, len(boxes))
    assert most == 6


@pytest.mark.once
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


@pytest.mark.once
@pytest.mark.parametrize("size", [WIDE, TALL])
@pytest.mark.parametrize("name", ["square_crop", "overlap_crop", "cutout"])
def test_the_share_that_is_seen_is_the_share_of_painted_pixels(name, size):
    box = (20, 30, 50, 55)
    shares = []
    for number in range(25):
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
    """The side is the picture's: wherever its centre is, in 5/6 of rows and of columns, it covers one in the middle."""
    left = []
    for number in range(40):
        out = augmentation.cutout(scene((60, 60), [((25, 25, 35, 35), 0)]), key(1, number), 1.0, BLACK)
        left.append((out.image.numpy()[..., 0] > 125).sum())
        assert len(out.seen(0.1).boxes) == (left[-1] >= 10)  # of 100 pixels
    assert 19 <= left.count(0) <= 36, "27.8 are expected, three standard deviations are 8.7"


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


@pytest.mark.once
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


@pytest.mark.once
def test_a_picture_is_not_blended_with_itself(tmp_path):
    """The only tall picture stays as it is; the wide ones are blended with another one, never with themselves."""
    pattern = write_painted(tmp_path, [WIDE] * 2 + [TALL])
    counts = {False: set(), True: set()}
    for images, objects in pipeline.load(pattern, **PLAIN, mixup=1.0).take(9):
        for row in range(4):
            counts[images.shape[1] > images.shape[2]].add(len(real(objects, row)[0]))
    assert counts == {False: {6}, True: {3}}


@pytest.mark.once
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


@pytest.mark.once
def test_resume_and_workers_see_the_same_batches(shards):
    whole = list(pipeline.load(shards, **PLAIN, **EVERYTHING).take(5))
    same(whole[3:], pipeline.load(shards, start_step=3, **PLAIN, **EVERYTHING).take(2))
    second = pipeline.load(shards, shard=(1, 2), **PLAIN, **EVERYTHING).take(5)
    for (images, objects), (its_images, its_objects) in zip(whole, second, strict=True):
        np.testing.assert_array_equal(images[2:], its_images)
        for row in range(2):
            for mine, its in zip(real(objects, row + 2), real(its_objects, row), strict=True):
                np.testing.assert_array_equal(mine, its)


@pytest.mark.once
def test_mixing_ends_and_the_rest_is_as_without_it(shards):
    """Step 4 is the first one after a tenth of 40; the other random numbers are those of a job that never mixed."""
    config = presets["mini"].replace(num_classes=3, image_size=64, max_size=64, steps=40, batch_size=2, mix_until=0.1)
    config = config.replace(scale_jitter=(0.7, 1.4), mosaic=1.0, mixup=1.0)
    without = pipeline.load_for_training(config.replace(mosaic=0.0, mixup=0.0), shards, 3).take(3)
    mixed = pipeline.load_for_training(config, shards, 3).take(3)
    equal = [np.array_equal(one[0], other[0]) for one, other in zip(without, mixed, strict=True)]
    assert equal == [False, True, True]


@pytest.mark.once
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


@pytest.mark.once
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


@pytest.mark.once
def test_validation_is_not_augmented(shards):
    square = {**PLAIN, "max_size": 60}
    same(*(pipeline.load(shards, training=False, **square, **options) for options in ({}, EVERYTHING)))


def test_wrong_settings_are_named(shards):
    for name, value in (("mosaic", 1.5), ("mixup", -0.1), ("crop", -1), ("cutout", 2.0), ("min_visible", 1.1)):
        with pytest.raises(InputError, match=f"{name}={value} must lie in"):
            pipeline.load(shards, **PLAIN, **{name: value})
