"""What the tests of the pipeline share: small shards, batches recognised and compared, and records damaged."""

import pathlib

import numpy as np

from retinanet_tf.data import transforms
from retinanet_tf.data.decoding import decode_image
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from tests.datasets import write_coco

WIDE, TALL = (40, 30), (30, 40)
SMALL = {"image_size": 30, "max_size": 50, "size_multiple": 16, "batch_size": 4}


def write_shards(folder):
    """Writes three shards of eleven images, seven wide and four tall; returns their pattern."""
    path, images = write_coco(folder, [WIDE] * 4 + [TALL] * 3 + [(50, 20), (21, 20), TALL, (40, 30)])
    prepare(path, images, folder / "out", shards=3, progress=False)
    return str(folder / "out" / "train-*.tfrecord")


def identify(shards):
    """{image's resized first row: its id} to recognise unflipped images in batches."""
    known = {}
    for record in read_records(shards):
        image, _ = transforms.resize(decode_image(record.encoded), 30, 50)
        known[np.round(image.numpy()[0, :8]).tobytes()] = record.annotations.image_id
    return known


def seen(batches, known):
    return [[known[np.round(image.numpy()[0, :8]).tobytes()] for image in images] for images, _ in batches]


def same(one, other):
    for (images, objects), (its_images, its_objects) in zip(one, other, strict=True):
        np.testing.assert_array_equal(images, its_images)
        for key in ("boxes", "labels"):
            np.testing.assert_array_equal(objects[key], its_objects[key])


def damage(shards, shard=1, number=2, where=0.5):
    """Flips a byte of a record and returns its file and the image's id."""
    index = read_index(shards)
    (record,) = np.flatnonzero((index.shard == shard) & (index.number == number))
    image_id = list(read_records(shards))[record].annotations.image_id
    path = pathlib.Path(index.files[shard])
    data = bytearray(path.read_bytes())
    data[int(index.offset[record] + where * index.length[record])] ^= 0x55
    path.write_bytes(data)
    return path, image_id
