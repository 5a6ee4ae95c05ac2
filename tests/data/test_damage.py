"""Damaged records: an error names them, or they are skipped, listed and replaced."""

import os
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.presets import presets
from retinanet_tf.data import pipeline
from retinanet_tf.data.inspect.inspect_dataset import inspect_dataset
from retinanet_tf.data.records.damage import DamageLog
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.errors import InputError
from tests.batches import SMALL, TALL, WIDE, damage, identify, seen
from tests.datasets import write_coco


@pytest.fixture
def own(tmp_path):
    """Pattern of three shards of twelve images, eight wide and four tall, to be damaged."""
    path, images = write_coco(tmp_path, [WIDE] * 8 + [TALL] * 4)
    prepare(path, images, tmp_path / "out", shards=3, progress=False)
    return str(tmp_path / "out" / "train-*.tfrecord")


@pytest.mark.once
@pytest.mark.parametrize("indexed", [True, False])
def test_a_damaged_record_names_its_file_and_number(own, indexed):
    path, _ = damage(own)
    if not indexed:
        (path.parent / "train.index.npz").unlink()
        with pytest.raises(InputError, match=f"record 2 of {path} is damaged"):
            pipeline.load(own, **SMALL)
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"record 2 of .*{path.name}.* is damaged"):
        list(pipeline.load(own, **SMALL).take(10))
    with pytest.raises(InputError, match=f"record 2 of {path} is damaged"):
        list(read_records(own))


@pytest.mark.once
@pytest.mark.parametrize("indexed", [True, False])
def test_damaged_records_are_skipped_listed_and_replaced(own, indexed):
    known = identify(own)
    path, image_id = damage(own)
    if not indexed:
        (path.parent / "train.index.npz").unlink()
    log = DamageLog()
    batches = seen(pipeline.load(own, flip=0.0, on_bad_record="skip", damage_log=log, **SMALL).take(12), known)
    assert log.records == [(str(path), 2)]
    assert image_id not in {i for batch in batches for i in batch} and all(len(batch) == 4 for batch in batches)
    # A scan without an index ends at the damaged record, and loses the one after it too.
    assert len({i for batch in batches for i in batch}) == (11 if indexed else 10)


def test_a_shard_cut_before_the_start_loses_only_what_is_missing(own):
    index = read_index(own)
    path = pathlib.Path(index.files[2])
    rows = np.flatnonzero(index.shard == 2)
    with open(path, "r+b") as file:
        file.truncate(int(index.offset[rows[2]] + 10))
    with pytest.raises(InputError, match="train-00002-of-00003.tfrecord has .* bytes but was written with"):
        pipeline.load(own, **SMALL)
    log = DamageLog()
    kept = read_index(own, log.add)
    assert log.records == [(str(path), 2), (str(path), 3)] and len(kept) == 10
    # So do what names the shapes of batches and the images of a step, in a job that goes on without them.
    config = presets["paper"].replace(image_size=30, max_size=50, max_level=5, batch_size=4)
    for call in (pipeline.batch_shapes, lambda *arguments: pipeline.image_ids(*arguments, step=0)):
        with pytest.raises(InputError, match="was written with"):
            call(config, own)
        assert call(config.replace(on_bad_record="skip"), own)
    # A scan without an index finds the same.
    (path.parent / "train.index.npz").unlink()
    log = DamageLog()
    assert len(read_index(own, log.add)) == 10 and log.records == [(str(path), 2)]


def test_a_step_with_a_record_that_cannot_be_read_names_its_place(own):
    path, image_id = damage(own)
    config = presets["paper"].replace(image_size=30, max_size=50, max_level=5, batch_size=4, on_bad_record="skip")
    named = {name for step in range(6) for name in pipeline.image_ids(config, own, step)}
    assert f"record 2 of {path}" in named and str(image_id) not in named


def test_incomplete_and_mixed_sets_of_shards(own, caplog):
    """A shard that is missing is told once; a pattern of a part is a choice; two sets of one name are refused."""
    folder = pathlib.Path(own).parent
    read_index(str(folder / "train-0000[01]-of-00003.tfrecord"))
    assert not caplog.records
    (folder / "train-00001-of-00003.tfrecord").rename(folder / "other")
    for _ in range(2):
        assert len(read_index(own)) == 8
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'train'} has 2 of its 3 shards: the others' images are missing."
    ]
    (folder / "other").rename(folder / "train-00001-of-00002.tfrecord")
    with pytest.raises(InputError, match="has shards train of 2 and of 3"):
        read_index(own)


@pytest.mark.once
def test_a_shard_cut_in_the_middle_of_training_does_not_end_it(own, tmp_path):
    log = DamageLog(tmp_path / "damaged.txt")
    stream = iter(pipeline.load(own, on_bad_record="skip", damage_log=log, **SMALL))
    for _ in range(3):
        next(stream)
    path = pathlib.Path(read_index(own).files[0])
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    for _ in range(20):
        images, objects = next(stream)
        assert len(images) == 4
    # Only what is missing is lost: the file's first half still holds its first record.
    assert log.records and {name for name, _ in log.records} == {str(path)} and (str(path), 0) not in log.records
    listed = (tmp_path / "damaged.txt").read_text().splitlines()
    assert listed == [f"{name} record {number}" for name, number in log.records]


@pytest.mark.once
def test_an_image_that_was_only_checked_by_its_header_is_named_when_it_does_not_decode(tmp_path):
    path, images = write_coco(tmp_path, [WIDE] * 4, seed=200)
    whole = (images / "000001.jpg").read_bytes()
    (images / "000001.jpg").write_bytes(whole[:-100])  # the header is whole
    prepare(path, images, tmp_path / "out", verify="header", progress=False)
    pattern = str(tmp_path / "out" / "train-*")
    with pytest.raises(tf.errors.InvalidArgumentError, match="record 1 of .*its image does not decode"):
        list(pipeline.load(pattern, **SMALL).take(2))
    log = DamageLog()
    assert len(list(pipeline.load(pattern, on_bad_record="skip", damage_log=log, **SMALL).take(3))) == 3
    assert [number for _, number in log.records] == [1]


@pytest.mark.once
def test_a_dataset_that_is_damaged_throughout_still_ends_with_a_name(own):
    for shard in range(3):
        for number in range(4):
            damage_all(own, shard, number)
    with pytest.raises(tf.errors.InvalidArgumentError, match="record .* is damaged"):
        list(pipeline.load(own, on_bad_record="skip", **SMALL).take(1))


def damage_all(shards, shard, number):
    index = read_index(shards)
    (record,) = np.flatnonzero((index.shard == shard) & (index.number == number))
    path = pathlib.Path(index.files[shard])
    data = bytearray(path.read_bytes())
    data[int(index.offset[record]) + 30] ^= 0xFF
    path.write_bytes(data)


def masked_crc(data):
    """TFRecord's checksum: CRC-32C, bit by bit, rotated by 15 and moved by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def set_length(shards, number, length):
    """Gives a record of the second file a length field with a right checksum; returns the file."""
    index = read_index(shards)
    (record,) = np.flatnonzero((index.shard == 1) & (index.number == number))
    start, path = int(index.offset[record]) - 12, pathlib.Path(index.files[1])
    data, field = bytearray(path.read_bytes()), struct.pack("<Q", length(index, record))
    assert bytes(data[start + 8 : start + 12]) == struct.pack("<I", masked_crc(data[start : start + 8]))
    data[start : start + 12] = field + struct.pack("<I", masked_crc(field))
    path.write_bytes(data)
    return path


LENGTHS = {
    "2^40": lambda *_: 2**40,
    "2^62": lambda *_: 2**62,
    "2^63": lambda *_: 2**63,
    "2^64-1": lambda *_: 2**64 - 1,
    "one beyond the end": lambda index, row: os.path.getsize(index.files[1]) - index.offset[row] - 4 + 1,
    "into the next record": lambda index, row: index.length[row] + 7,
    "none": lambda *_: 0,
}


@pytest.mark.once
@pytest.mark.parametrize(("number", "length"), [(2, length) for length in LENGTHS] + [(0, "2^63"), (3, "none")])
def test_a_wrong_length_with_a_right_checksum_is_a_damaged_record(own, number, length, tmp_path):
    path = set_length(own, number, LENGTHS[length])
    name = f"record {number} of {path} is damaged"
    for _ in ("with an index", "without"):
        with pytest.raises(InputError, match=name):
            pipeline.load(own, **SMALL)
        with pytest.raises(InputError, match=name):
            list(read_records(own))
        if number == 2:
            report = inspect_dataset(own, presets["mini"], tmp_path / "report")
            assert len(report.errors) == 1 and report.errors[0].startswith(name)
        (path.parent / "train.index.npz").unlink(missing_ok=True)


@pytest.mark.once
@pytest.mark.parametrize("length", LENGTHS)
def test_a_wrong_length_is_skipped(own, length):
    path = set_length(own, 1, LENGTHS[length])
    for left in (11, 9):  # with an index; without one, all after it in its file is lost
        log = DamageLog()
        index = read_index(own, log.add)
        assert len(index) == left and log.records == [(str(path), 1)]
        if length in ("2^63", "into the next record"):
            images, _ = next(iter(pipeline.load(own, on_bad_record="skip", **SMALL)))
            assert len(images) == 4
        (path.parent / "train.index.npz").unlink(missing_ok=True)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("value", [2**40, 2**63 - 1, -1, -(2**63), 13])
def test_wrong_offsets_and_lengths_of_an_index_are_damaged_records(own, column, value):
    path = pathlib.Path(own).parent / "train.index.npz"
    index = dict(np.load(path))
    index["rows"][5, column] = value
    np.savez(path, **index)
    with pytest.raises(InputError, match="record 1 of .*train-00001-of-00003.tfrecord is damaged"):
        read_index(own)
    assert len(read_index(own, lambda *_: None)) == 11


@pytest.mark.parametrize(
    "change",
    [
        {"version": np.array(99)},
        {"rows": np.zeros((3, 2), np.int64)},
        {"rows": np.zeros((12, 5))},
        {"bytes": np.array([1])},
        {"shard": np.array(["x"] * 11)},
        {"shard": np.array([object()])},
        b"no archive",
        b"",
    ],
)
def test_an_index_that_is_none_is_left_aside(own, change):
    whole = read_index(own)
    path = pathlib.Path(own).parent / "train.index.npz"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        np.savez(path, **{**dict(np.load(path)), **change})
    again = read_index(own)
    for name in ("shard", "number", "offset", "length", "width", "height", "boxes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_files_that_are_none_are_refused(own):
    folder = pathlib.Path(own).parent
    for name, make in (("x.tfrecord", os.mkfifo), ("y.tfrecord", os.mkdir)):
        make(folder / name)
        for read in (read_index, lambda pattern: list(read_records(pattern))):
            with pytest.raises(InputError, match=f"{name} isn't a regular file"):
                read(str(folder / f"[{name[0]}]*.tfrecord"))


@pytest.mark.once
@pytest.mark.parametrize("name", ["data [v2]", "a?b*c", "[", "(1) {x} [!a]"])
def test_shards_in_folders_with_the_characters_of_patterns(own, name, tmp_path):
    known = identify(own)
    folder = pathlib.Path(own).parent.rename(tmp_path / name)
    batches = pipeline.load(folder / "train-*.tfrecord", training=False, **SMALL)
    assert sorted(i for batch in seen(batches, known) for i in batch) == sorted(known.values())
