"""Records: ids of any kind are read as they were written, and what a record must have is missed."""

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.data.pipeline import load
from retinanet_tf.data.records.example import from_example, parse_example
from retinanet_tf.data.records.prepare import prepare
from tests.datasets import write_coco
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


@pytest.mark.parametrize("boxes", [0, 2])
def test_readers_that_declare_the_types_of_the_object_detection_api_parse_what_prepare_writes(tmp_path, boxes):
    """Also of an image without objects, whose lists are empty."""
    path, images = write_coco(tmp_path, [(60, 40)], boxes_an_image=boxes)
    prepare(path, images, tmp_path, "val", progress=False)
    (data,) = tf.data.TFRecordDataset(str(tmp_path / "val-00000-of-00001.tfrecord"))
    declared = {
        "image/encoded": tf.io.FixedLenFeature((), tf.string, ""),
        "image/format": tf.io.FixedLenFeature((), tf.string, "jpeg"),
        "image/filename": tf.io.FixedLenFeature((), tf.string, ""),
        "image/source_id": tf.io.FixedLenFeature((), tf.string, ""),
        "image/key/sha256": tf.io.FixedLenFeature((), tf.string, ""),
        "image/height": tf.io.FixedLenFeature((), tf.int64, 1),
        "image/width": tf.io.FixedLenFeature((), tf.int64, 1),
        "image/object/bbox/xmin": tf.io.VarLenFeature(tf.float32),
        "image/object/bbox/xmax": tf.io.VarLenFeature(tf.float32),
        "image/object/bbox/ymin": tf.io.VarLenFeature(tf.float32),
        "image/object/bbox/ymax": tf.io.VarLenFeature(tf.float32),
        "image/object/class/label": tf.io.VarLenFeature(tf.int64),
        "image/object/class/text": tf.io.VarLenFeature(tf.string),
        "image/object/area": tf.io.VarLenFeature(tf.float32),
        "image/object/is_crowd": tf.io.VarLenFeature(tf.int64),
    }
    parsed = tf.io.parse_single_example(data, declared)
    assert parsed["image/height"] == 40 and parsed["image/width"] == 60 and parsed["image/format"] == b"jpeg"
    of_objects = [value for key, value in parsed.items() if key.startswith("image/object/")]
    assert [len(value.values) for value in of_objects] == [boxes] * 8
    assert len(from_example(data.numpy()).annotations) == len(parse_example(data)["boxes"]) == boxes


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
