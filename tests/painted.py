"""Pictures whose objects are painted in their class' colour, as scenes and as shards, and the check of boxes by it."""

import json

import numpy as np
import tensorflow as tf
from PIL import Image

from retinanet_tf.data.augmentation import Scene
from retinanet_tf.data.records.prepare import prepare
from tests.datasets import CATEGORIES, annotation

WIDE, TALL = (100, 60), (60, 100)
BLACK = (0.0, 0.0, 0.0)
PLAIN = {"image_size": 60, "max_size": 100, "size_multiple": 32, "batch_size": 4, "pixel_mean": BLACK, "flip": 0.5}


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
