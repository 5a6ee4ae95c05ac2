"""Tiles: theorems about merging what is found on the pieces of a picture and on the whole."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from oracles import box_iou
from small_detectors import clutter, small_detector

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.evaluator import evaluate
from retinanet_tf.evaluation.source import Source
from retinanet_tf.inference.detector import Prepared, detect_all
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector
from retinanet_tf.inference.tiles import TiledDetector, Window

LABEL_MAP = LabelMap([1, 5, 9], ["a", "b", "c"])


def picture(height, width):
    """A picture whose pixels say where they are."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, 16 * (x // 256) + y // 256], axis=-1).astype(np.uint8)


class Finder:
    """Finds the visible part of each object, if that is a share of it of 30 %, with a score for the piece's size.

    Args:
        objects: (x1, y1, x2, y2, label) each.
        score: of what is found in a window.
        sees: whether a window shows an object; by default that share.
    """

    label_map = LABEL_MAP

    def __init__(self, objects, score=lambda window: 0.9, sees=lambda window, one, share: share >= 0.3, config=None):
        self.objects, self.score, self.sees, self.config = objects, score, sees, config or DetectConfig()

    def with_config(self, config):
        return Finder(self.objects, self.score, self.sees, config)

    def describe(self):
        return dataclasses.asdict(self.config)

    def prepare(self, image):
        return Prepared(image, tf.ones(2), tf.cast(tf.shape(image)[:2], tf.float32))

    def detect_prepared(self, batch):
        depth = self.config.max_detections
        answer = {
            "boxes": np.zeros((len(batch), depth, 4), np.float32),
            "scores": np.zeros((len(batch), depth), np.float32),
            "labels": np.full((len(batch), depth), -1, np.int32),
            "num_detections": np.zeros(len(batch), np.int32),
        }
        for row, image in enumerate(batch):
            corner, (height, width) = image.canvas.numpy()[0, 0].astype(int), image.canvas.shape[:2]
            left, top = corner[0] + 256 * (corner[2] // 16), corner[1] + 256 * (corner[2] % 16)
            window = Window(left, top, left + width, top + height)
            found = [self.visible(window, one) for one in self.objects]
            for index, (box, label) in enumerate([one for one in found if one][:depth]):
                answer["boxes"][row, index] = box - np.array([left, top, left, top])
                answer["labels"][row, index], answer["scores"][row, index] = label, self.score(window)
                answer["num_detections"][row] += 1
        return {name: tf.constant(value) for name, value in answer.items()}

    def visible(self, window, one):
        box = np.array([*np.maximum(one[:2], window[:2]), *np.minimum(one[2:4], window[2:])], float)
        share = np.maximum(box[2:] - box[:2], 0).prod() / ((one[2] - one[0]) * (one[3] - one[1]))
        return (box, one[4]) if self.sees(window, one, share) and share > 0 else None


def found(detector, height, width):
    """[(score, label, box)] of one picture, best first."""
    answer = {name: value.numpy()[0] for name, value in detector([picture(height, width)]).items()}
    count = answer["num_detections"]
    return [(answer["scores"][i], answer["labels"][i], answer["boxes"][i]) for i in range(count)]


def is_whole(window):
    return window[:2] == (0, 0) and window.x2 > 256


def test_windows_by_hand():
    windows = TiledDetector(Finder([]), 512).windows(700, 1000)
    assert windows == [*(Window(x, y, x + 512, y + 512) for y in (0, 188) for x in (0, 244, 488)), (0, 0, 1000, 700)]
    assert TiledDetector(Finder([]), 512).windows(300, 512) == [Window(0, 0, 512, 300)]
    assert [one.x1 for one in TiledDetector(Finder([]), 100, overlap=0.0).windows(50, 300)] == [0, 100, 200, 0]


@pytest.mark.parametrize("seed", range(20))
def test_tiles_cover_the_picture_and_share_the_overlap(seed):
    rng = np.random.default_rng(seed)
    side, overlap, height, width = rng.integers(32, 200), rng.uniform(0, 0.7), *rng.integers(1, 900, 2)
    *tiles, last = TiledDetector(Finder([]), int(side), overlap).windows(int(height), int(width))
    tiles = tiles or [last]
    seen = np.zeros((height, width), bool)
    for one in tiles:
        assert (one.x2 - one.x1, one.y2 - one.y1) == (min(side, width), min(side, height))
        seen[one.y1 : one.y2, one.x1 : one.x2] = True
    assert seen.all() and last == (0, 0, width, height)
    for starts in ({one.x1 for one in tiles}, {one.y1 for one in tiles}):
        steps = np.diff(sorted(starts))
        # To half a pixel of rounding; and fewer tiles wouldn't do.
        assert (steps <= side * (1 - overlap) + 0.5).all()
        assert len(starts) < 3 or max(starts) / (len(starts) - 2) > side * (1 - overlap) - 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_objects_smaller_than_the_overlap_are_each_found_once(seed):
    """However many there are, and whatever the tiles cut."""
    rng = np.random.default_rng(seed)
    objects = []
    for x, y in itertools.product(range(0, 660, 44), range(0, 484, 44)):
        width, height = rng.integers(6, 40, 2)
        left, top = x + rng.integers(0, 42 - width), y + rng.integers(0, 42 - height)
        objects.append((left, top, left + width, top + height, rng.integers(0, 3)))
    finder = Finder(objects, lambda window: rng.uniform(0.1, 0.9), lambda window, one, share: share >= 0.3)
    rows = found(TiledDetector(finder, 220, overlap=0.2), 484, 660)
    assert len(rows) == len(objects) > 100
    expected = {(*map(float, one[:4]), int(one[4])) for one in objects}
    assert {(*map(float, box), int(label)) for _, label, box in rows} == expected
    scores = [score for score, *_ in rows]
    assert scores == sorted(scores, reverse=True)


def test_parts_of_a_large_object_lose_to_the_whole_whatever_their_scores():
    large = (100, 50, 400, 150, 1)
    score = lambda window: 0.6 if is_whole(window) else 0.9  # noqa: E731
    ((value, label, box),) = found(TiledDetector(Finder([large], score), 256), 256, 500)
    assert value == pytest.approx(0.6) and label == 1
    np.testing.assert_array_equal(box, large[:4])
    # A large object of another class doesn't hide them.
    other = [(*large[:4], 1), (*large[:4], 2)]
    sees = lambda window, one, share: share >= 0.3 and is_whole(window) == (one[4] == 2)  # noqa: E731
    rows = found(TiledDetector(Finder(other, score, sees), 256), 256, 500)
    labels = [label for _, label, _ in rows]
    assert labels.count(1) > 1 and labels.count(2) == 1


def test_small_objects_inside_a_large_one_stay():
    objects = [(20, 20, 440, 200, 0), (60, 60, 80, 80, 0), (120, 60, 140, 80, 0)]
    rows = found(TiledDetector(Finder(objects), 256), 256, 500)
    assert sorted(tuple(box) for *_, box in rows) == sorted(one[:4] for one in objects)


@pytest.mark.parametrize("scores", [(0.8, 0.7), (0.7, 0.8), (0.8, 0.8)])
def test_an_object_as_wide_as_the_overlap_is_found_once(scores):
    """Each tile's border cuts it, and each box holds the other one."""
    tiled = TiledDetector(Finder([]), 256, overlap=0.2)
    first, second, _ = tiled.windows(256, 450)
    objects = [(second.x1, 50, first.x2, 90, 0)]
    score = lambda window: scores[int(window.x1 > 0)]  # noqa: E731
    sees = lambda window, one, share: share > 0.3 and not is_whole(window)  # noqa: E731
    ((value, _, box),) = found(TiledDetector(Finder(objects, score, sees), 256), 256, 450)
    assert value == pytest.approx(max(scores))
    np.testing.assert_array_equal(box, objects[0][:4])


@pytest.mark.slow
def test_all_of_many_objects_are_found_and_counted():
    """225 on nine tiles; a plain detector's 100, COCO's limit too, would hide most of them."""
    objects = [(x, y, x + 10, y + 10, 0) for x in range(5, 600, 40) for y in range(5, 600, 40)]
    tiled = TiledDetector(Finder(objects), 256)
    assert len(found(tiled, 600, 600)) == len(objects) == 225
    assert len(found(TiledDetector(Finder(objects), 256, max_detections=150), 600, 600)) == 150
    annotations = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": [x, y, 10, 10], "area": 100, "iscrowd": 0}
        for i, (x, y, *_) in enumerate(objects)
    ]
    images = [{"id": 7, "height": 600, "width": 600, "file_name": "a.png"}]
    instances = {"images": images, "annotations": annotations, "categories": LABEL_MAP.to_json()}
    source = Source(instances, LABEL_MAP, "split", lambda: iter([tf.io.encode_png(picture(600, 600)).numpy()]))
    assert evaluate(tiled, source, progress=False)["AP"] == pytest.approx(1.0)
    assert evaluate(tiled, source, progress=False, max_detections=100)["AR100"] == pytest.approx(100 / 225, abs=1e-3)


def test_nothing_found_is_nothing():
    assert found(TiledDetector(Finder([]), 256), 300, 600) == []


@pytest.fixture(scope="module")
def detector():
    return small_detector(LABEL_MAP, spread=0.1)


@pytest.mark.slow
def test_a_picture_of_one_tile_is_detected_as_always(detector):
    plain, tiled = detector([clutter(0)]), TiledDetector(detector, 70)([clutter(0)])
    # The plain detector stops at its 30 best.
    count = plain["num_detections"][0]
    assert count > 5
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(tiled[name][:, :count], plain[name][:, :count], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("augmented", [False, True])
def test_batches_make_no_difference(detector, augmented):
    tiled = TiledDetector(AugmentedDetector(detector, [48]) if augmented else detector, 64)
    pictures = [clutter(seed, *size) for seed, size in enumerate([(90, 150), (60, 60), (90, 150), (40, 130)])]
    answers = [dict(detect_all(tiled, pictures, batch_size)) for batch_size in (1, 3, 8)]
    for index in range(len(pictures)):
        for name, value in answers[0][index].items():
            assert len(value) > 5
            for other in answers[1:]:
                np.testing.assert_array_equal(value, other[index][name])


@pytest.mark.slow
def test_detections_lie_where_the_tiles_are(detector):
    """What a tile alone gives for an object that nothing else shows is there, moved to its place."""
    image = np.full((64, 256, 3), 114, np.uint8)
    image[:, 192:] = clutter(3, 64, 64)
    alone = detector.with_config(dataclasses.replace(detector.config, max_detections=1000))([image[:, 192:]])
    tiled = TiledDetector(detector, 64, overlap=0.0)([image])
    boxes, count = tiled["boxes"].numpy()[0], int(alone["num_detections"][0])
    best = [row for row in range(count) if alone["boxes"][0, row, 0] > 4][:5]
    assert len(best) == 5
    for row in best:
        moved = alone["boxes"][0, row].numpy() + np.float32([192, 0, 192, 0])
        assert max(box_iou(moved, other) for other in boxes) > 0.5


def test_description_and_refusals(detector):
    tiled = TiledDetector(detector, 64, 0.25, max_detections=40)
    assert tiled.describe() == {**detector.describe(), "max_detections": 40, "tiles": 64, "tile_overlap": 0.25}
    assert tiled.with_config(dataclasses.replace(tiled.config, score_threshold=0.5)).config.score_threshold == 0.5
    for options, message in (
        ({"side": 31}, "side=31 of the tiles must be a whole number of at least 32"),
        ({"side": 64.5}, "side=64.5 of the tiles must be a whole number"),
        ({"side": 64, "overlap": 1.0}, r"overlap=1 of the tiles must be in \[0, 1\)"),
        ({"side": 64, "max_detections": 0}, "max_detections=0 must lie in"),
    ):
        with pytest.raises(InputError, match=message):
            TiledDetector(detector, **options)
    with pytest.raises(InputError, match="must be a Detector or an AugmentedDetector"):
        TiledDetector(tiled, 64)
