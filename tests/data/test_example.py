"""Records: ids of any kind are read as they were written, and what a record must have is missed."""

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.data.pipeline import load
from retinanet_tf.data.records.example import from_example, parse_example
from tests.small_detectors import clutter, encode

BOX = "image/object/bbox"


def record(**changes):
    """A record as other tools write it; a change of None leaves the key out."""
    features = {"image/encoded": [encode(clutter(0))], "image/height": [50], "image/width": [70], **changes}
    kinds = {bytes: ("bytes_list", tf.train.BytesList), int: ("int64_list", tf.train.Int64List)}
    feature = {}
    for key, values in features.items():
        if values is not None:
            name, kind = kinds.get(type(values[0]), ("float_list", tf.train.FloatList))
            feature[key] = tf.train.Feature(**{name: kind(value=values)})
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([b"17"], 17),
        ([b"0"], 0),
        ([b"-3"], -3),
        ([b"0001"], "0001"),
        ([b"-0"], "-0"),
        ([b"--5"], "--5"),
        ([b"+7"], "+7"),
        ([b" 8"], " 8"),
        ([b"1_000"], "1_000"),
        ([b"9" * 5000], "9" * 5000),
        (["²".encode()], "²"),
        (["٣".encode()], "٣"),
        ([b"0002_flip"], "0002_flip"),
        ([b"caf\xe9"], r"caf\xe9"),
        ([b"caf\xe8"], r"caf\xe8"),
        ([b""], ""),
        ([17], 17),
        ([1.5], ""),
        (None, ""),
    ],
)
def test_ids_are_read_as_they_were_written(written, read):
    data = record(**{"image/source_id": written})
    image_id = from_example(data).annotations.image_id
    assert image_id == read and type(image_id) is type(read)
    assert parse_example(tf.constant(data))["height"] == 50, "training doesn't look at the id"


@pytest.mark.parametrize(
    "change",
    [
        {"image/encoded": None},
        {"image/encoded": [b""]},
        {"image/width": [0]},
        {"image/height": [-5]},
        {"image/height": [1, 2]},
        {"image/width": None},
        {"image/object/class/label": [1, 2]},
        {"image/object/class/label": [1], f"{BOX}/xmin": [0.5]},
        {"image/object/class/label": [1], "image/object/exact": [b"too short"]},
        {
            "image/object/class/label": [1],
            **{f"{BOX}/{key}": [float("nan")] for key in ("xmin", "ymin", "xmax", "ymax")},
        },
    ],
)
def test_records_that_lack_something_are_refused(change):
    with pytest.raises(ValueError):
        from_example(record(**change))
    with pytest.raises(ValueError):
        from_example(b"no record")


def test_a_record_without_objects_has_none():
    annotations = from_example(record()).annotations
    parsed = parse_example(tf.constant(record()))
    assert len(annotations) == len(parsed["boxes"]) == 0 and annotations.boxes.shape == (0, 4)
    assert np.array_equal(parsed["iscrowd"], []) and annotations.file_name == ""


@pytest.mark.once
@pytest.mark.parametrize("size", [(25, 35), (70, 50), (51, 70)])
def test_an_image_of_another_size_than_its_record_says_is_damaged(tmp_path, size):
    """Its boxes, shares of the image in the record, would be put elsewhere."""
    (tmp_path / "labels.json").write_text('[{"id": 1, "name": "thing"}]')
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        for data in (record(), record(**{"image/encoded": [encode(clutter(0, *size))]})):
            writer.write(data)
    with pytest.raises(tf.errors.InvalidArgumentError, match="record 1 of .* has another size"):
        list(load(tmp_path / "x.tfrecord", training=False, batch_size=2))
