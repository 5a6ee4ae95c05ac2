"""Repeat-factor sampling: LVIS' factors, their exact counts, and an order that is still a function of (seed, step)."""

import json
import math
import pathlib
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.presets import presets
from retinanet_tf.data import pipeline
from retinanet_tf.data.inspect.report import inspect
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.repeat_factors import repeat_factors, with_repeats
from retinanet_tf.data.shuffle import Pools, shuffled
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from tests.batches import SMALL, TALL, WIDE, same
from tests.datasets import write_coco


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Pattern of three shards: cats in ten of eleven images, dogs in four, a cup in one of the four tall ones."""
    folder = tmp_path_factory.mktemp("shards")
    path, images = write_coco(folder, [WIDE] * 4 + [TALL] * 4 + [WIDE] * 3)
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        image, even = row["image_id"] // 10, row["id"] % 2 == 0
        row["category_id"] = 90 if even and image in (0, 5) else 3 if even and image % 2 else 7
    assert content["annotations"][1]["iscrowd"]  # the other cup
    path.write_text(json.dumps(content))
    prepare(path, images, folder / "out", shards=3, progress=False)
    return str(folder / "out" / "train-*.tfrecord")


def naive(images, threshold):
    """The factors by LVIS' definition, in loops; each image is a list of its objects' categories."""

    def share(category):
        return sum(category in image for image in images) / len(images)

    if threshold == "auto":
        threshold = float(np.median([share(category) for category in {c for image in images for c in image}]))
    return [max([1.0, *(math.sqrt(threshold / share(category)) for category in image)]) for image in images]


def sequence(repeat, count, seed=0):
    """The first `count` records of an endless order."""
    draw = tf.function(lambda positions: shuffled(np.arange(len(repeat)), positions, seed, np.array(repeat)))
    return draw(tf.range(count, dtype=tf.int64)).numpy()


# Factors.


def test_factors_by_hand():
    """f = 1/2, 1/2 and 1/8 of eight images; t = 1/2 is the median: √(1/2 / 1/8) = 2, and √2 for t = 1/4."""
    present = [np.array(ids) for ids in ([0], [0], [0, 1, 2], [0], [1], [1], [1], [])]
    for threshold in (0.5, "auto"):
        found = repeat_factors(present, threshold)
        assert found.images.tolist() == [1, 1, 2, 1, 1, 1, 1, 1] and found.threshold == 0.5
        assert found.shares == {0: 0.5, 1: 0.5, 2: 0.125} and found.categories == {0: 1, 1: 1, 2: 2}
    assert repeat_factors(present, 0.25).images[2] == pytest.approx(math.sqrt(2))
    assert repeat_factors([np.array([], int)] * 3, "auto").images.tolist() == [1, 1, 1]
    large = [2**53, 2**53 + 1]  # one number in float64
    assert list(repeat_factors([np.array(large)], 1.0).shares) == large


@pytest.mark.parametrize("threshold", [0.001, 0.1, 0.5, 1.0, "auto"])
def test_factors_are_those_of_the_definition(threshold):
    rng = np.random.default_rng(0)
    chances = 0.6 / np.arange(1, 12) ** 1.5
    images = [np.flatnonzero(rng.uniform(size=11) < chances) * 7 for _ in range(200)]
    np.testing.assert_allclose(repeat_factors(images, threshold).images, naive(images, threshold), rtol=1e-12)


def test_shards_have_the_factors_of_their_objects_with_and_without_an_index(shards, tmp_path):
    """Crowds and images without objects repeat nothing; without a whole index shards are read through."""
    records = [record.annotations for record in read_records(shards)]
    index = read_index(shards)
    for threshold in ("auto", 1.0):
        expected = naive([image.category_ids[~image.iscrowd].tolist() for image in records], threshold)
        assert max(expected) == expected[5] == pytest.approx(math.sqrt(11 * (threshold == 1.0 or 4 / 11)))
        np.testing.assert_allclose(with_repeats(index, threshold)[0].repeat, expected, rtol=1e-12)
    stored = index.present
    for path in pathlib.Path(shards).parent.glob("train-*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for write in (False, True):
        if write:
            with np.load(pathlib.Path(shards).parent / "train.index.npz") as arrays:
                older = {name: arrays[name] for name in ("version", "bytes", "shard", "rows")}
            np.savez(tmp_path / "train.index.npz", **older)
        scanned = read_index(tmp_path / "train-*.tfrecord").present
        assert [ids.tolist() for ids in scanned] == [ids.tolist() for ids in stored]


# Counts.


def test_whole_factors_are_exact_in_every_epoch():
    epochs = sequence([1, 3, 1, 2], 7 * 50).reshape(50, 7)
    assert (np.sort(epochs, axis=1) == [0, 1, 1, 1, 2, 3, 3]).all()
    assert len({tuple(epoch) for epoch in epochs}) > 45


@pytest.mark.parametrize("seed", range(4))
def test_halves_and_quarters_are_exact_in_two_and_four_epochs(seed):
    pairs = sequence([1, 1.5], 5 * 40, seed).reshape(40, 5)
    assert ((pairs == 1).sum(axis=1) == 3).all()
    fours = sequence([1.25, 2.75, 1, 1, 3], 36 * 30, seed).reshape(30, 36)
    assert all(np.bincount(four).tolist() == [5, 11, 4, 4, 12] for four in fours)


def test_counts_never_drift_from_their_factors():
    """√2 as the pre-mortem has it: 1, 1, 1 and √2 in a thousand epochs; and any factors, at any moment."""
    assert np.abs(np.bincount(sequence([1, 1, 1, math.sqrt(2)], 4414)) - [1000, 1000, 1000, 1414]).max() <= 2
    repeat = 1 + np.random.default_rng(0).exponential(size=40)
    order = sequence(repeat, 20_000)
    for end in range(500, 20_000, 500):
        expected = end * repeat / repeat.sum()
        assert (np.abs(np.bincount(order[:end], minlength=40) - expected) < 2 * repeat + 2).all()


def test_rounding_in_the_first_epoch_is_fair():
    """A thousand records with 1.3 and as many with 1: 1,300 of the 2,300 draws, not 1,000 first and more later."""
    order = sequence([1.3] * 1000 + [1.0] * 1000, 2000)
    assert abs((order < 1000).sum() - 2000 * 13 / 23) < 50


def test_without_repeats_the_order_is_a_plain_shuffle_per_epoch():
    """What runs before there were repeats drew: they resume."""
    shuffle = tf.random.experimental.stateless_shuffle
    plain = [shuffle(tf.range(9, dtype=tf.int64), tf.constant([5, epoch], tf.int64)) for epoch in range(4)]
    np.testing.assert_array_equal(sequence([1.0] * 9, 36, 5), np.concatenate(plain))


@pytest.mark.parametrize("tall_and_rare", [True, False])
def test_pools_share_the_steps_by_their_factors(tall_and_rare):
    """Three of ten images are tall, and either they or three wide ones are drawn three times per epoch."""
    width, height = np.array([4] * 7 + [3] * 3), np.array([3] * 7 + [4] * 3)
    repeat = np.ones(10)
    repeat[slice(7, 10) if tall_and_rare else slice(0, 3)] = 3.0
    pools = Pools.by_orientation(width, height, False, repeat)
    records, tall = pools.draw(tf.range(16 * 10, dtype=tf.int64), 4, 0)
    # Sixteen records per epoch, four steps: 640 draws are forty epochs.
    assert tall.numpy().sum() == (90 if tall_and_rare else 30)
    assert np.abs(np.bincount(records.numpy().ravel()) - 40 * repeat).max() <= 3


@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("repeat", [None, 1 + np.random.default_rng(1).exponential(size=11)], ids=["once", "repeated"])
def test_a_step_draws_the_same_alone_and_among_others(repeat, batch_size):
    pools = Pools.by_orientation(np.array([4] * 7 + [3] * 4), np.array([3] * 7 + [4] * 4), False, repeat)
    draw = tf.function(lambda steps: pools.draw(steps, batch_size, 1)[0], reduce_retracing=True)
    alone = [draw(tf.constant([step], tf.int64))[0] for step in range(40)]
    np.testing.assert_array_equal(draw(tf.range(40, dtype=tf.int64)), alone)


# Batches.


@pytest.fixture
def options():
    return {**SMALL, "repeat_threshold": 1.0, "scale_jitter": (0.7, 1.4)}


@pytest.mark.once
def test_a_repeated_order_resumes_in_the_middle_and_is_divided_among_workers(shards, options):
    whole = list(pipeline.load(shards, **options).take(8))
    same(whole[5:], pipeline.load(shards, start_step=5, **options).take(3))
    parts = [list(pipeline.load(shards, shard=(worker, 2), **options).take(8)) for worker in range(2)]
    for step, (images, objects) in enumerate(whole):
        np.testing.assert_array_equal(images, np.concatenate([part[step][0] for part in parts]))
        np.testing.assert_array_equal(objects["boxes"], np.concatenate([part[step][1]["boxes"] for part in parts]))


@pytest.mark.once
@pytest.mark.parametrize("shard_by", ["records", "files"])
def test_every_image_is_drawn_as_often_as_its_factor_says(shards, shard_by):
    """Also where a worker has files of its own: the factors are those of the whole."""
    config = presets["paper"].replace(image_size=30, max_size=50, max_level=5, batch_size=60, shard_by=shard_by)
    config = config.replace(repeat_threshold=1.0)
    index, _ = with_repeats(read_index(shards), 1.0)
    ids = [str(record.annotations.image_id) for record in read_records(shards)]
    own = index.shard == 0 if shard_by == "files" else np.ones(11, bool)
    shard = (0, 3) if shard_by == "files" else (0, 1)
    drawn = Counter(name for step in range(12) for name in pipeline.image_ids(config, shards, step, shard))
    counts = np.array([drawn[name] for name in ids])
    expected = own * index.repeat / (own * index.repeat).sum() * counts.sum()
    assert counts.sum() == 12 * (20 if shard_by == "files" else 60)
    # Steps of one canvas each: a pool is ahead of the other by a step at most.
    assert np.abs(counts - expected).max() < (20 if shard_by == "files" else 15)


@pytest.mark.once
def test_a_threshold_that_repeats_nothing_is_said_and_changes_nothing(shards, caplog):
    with caplog.at_level("WARNING", "absl"):
        unchanged = list(pipeline.load(shards, repeat_threshold=0.001, **SMALL).take(6))
    assert "repeat_threshold=0.001 repeats no image: the rarest category, cup, is in 9.09% of them; auto" in caplog.text
    assert "; auto would be 0." in caplog.text
    same(unchanged, pipeline.load(shards, **SMALL).take(6))


# The report.


def annotated(counts):
    """100 images of 80x80 with `counts` objects of each class, one per image as far as they go."""
    images = []
    for number in range(100):
        ids = np.array([c + 1 for c, count in enumerate(counts) for _ in range(count // 100 + (number < count % 100))])
        boxes = np.array([[i % 8 * 9, i // 8 * 9, i % 8 * 9 + 8, i // 8 * 9 + 8] for i in range(len(ids))], float)
        columns = (boxes.reshape(-1, 4), ids, np.full(len(ids), 64.0), np.zeros(len(ids), bool), np.arange(len(ids)))
        images.append(ImageAnnotations(number, f"{number}.jpg", 80, 80, *columns))
    return Annotations("mine", images, LabelMap([1, 2, 3], ["cat", "dog", "mouse"]))


@pytest.mark.once
@pytest.mark.parametrize(
    ("counts", "sampling", "alpha"),
    [
        ((100, 80, 60), False, False),
        ((100, 80, 30), False, False),  # √(80 / 30) = 1.63
        ((100, 80, 5), True, True),  # √(80 / 5) = 4
        ((300, 500, 100), False, False),
        ((1000, 500, 90), False, True),  # in nearly every image, one of its 18
    ],
)
def test_the_report_says_when_rare_classes_matter(counts, sampling, alpha):
    report = inspect(annotated(counts), presets["mini"])
    assert any("mouse the most" in warning for warning in report.warnings) == sampling
    assert any(f"mouse has {counts[2]} objects" in warning for warning in report.warnings) == alpha
    if counts[2] == 5:
        (sentence,) = [warning for warning in report.warnings if "mouse the most, 4.00 times" in warning]
        # 5 of 100 images come four times: 1.15 times as many.
        assert "repeat_threshold=0.8 (auto): an epoch has 1.15 times the images; 1 of 3 categories" in sentence
        assert "(it is in 5.00% of the images)" in sentence
        assert report.facts["images with each category"]["mouse"] == "5.00%, repeat factor 4.00"
        decided = inspect(annotated(counts), presets["mini"].replace(repeat_threshold=0.2, class_alpha="mouse=0.5"))
        assert not any("mouse" in warning and "objects: mouse" not in warning for warning in decided.warnings)
        assert decided.facts["images with each category"]["mouse"] == "5.00%, repeat factor 2.00"
