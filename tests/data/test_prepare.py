"""Prepared shards: records equal their source for any number of processes, and no interruption leaves half a split."""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.data.records import prepare as module
from retinanet_tf.data.records.example import parse_example
from retinanet_tf.data.records.prepare import prepare, prepare_splits
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.source import read_ground_truth
from tests.datasets import picture, write_coco

SIZES = [(64, 48), (48, 64), (90, 30), (50, 50), (33, 47)]


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.tfrecord"))}


def quiet(*args, **kwargs):
    return prepare(*args, progress=False, **kwargs)


def test_a_shard_read_back_is_what_went_in(tmp_path):
    path, images = write_coco(tmp_path, SIZES)
    summary = quiet(path, images, tmp_path / "out", shards=2)
    source = read_coco(path)
    records = list(read_records(str(tmp_path / "out" / "train-*.tfrecord")))
    assert len(records) == len(source.images) == summary["images"]
    for record, image in zip(records, source.images, strict=True):
        assert record.encoded == (images / image.file_name).read_bytes() and record.format == "jpeg"
        found = record.annotations
        for name in ("image_id", "file_name", "width", "height"):
            assert getattr(found, name) == getattr(image, name)
        for name in ("boxes", "category_ids", "area", "iscrowd", "annotation_ids"):
            np.testing.assert_array_equal(getattr(found, name), getattr(image, name))
    assert LabelMap.load(tmp_path / "out" / "labels.json") == source.label_map
    assert json.loads((tmp_path / "out" / "train.summary.json").read_text())["boxes"] == source.num_boxes == 8
    assert (summary["crowds"], summary["images_without_objects"]) == (1, 1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "labels.json",
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "train.index.npz",
        "train.summary.json",
    ]


def test_real_coco_goes_through_unchanged(test_data, tmp_path):
    folder = test_data / "coco_ccby"
    quiet(folder / "instances_val.json", folder / "images", tmp_path, "val", shards=3)
    raw = json.loads((folder / "instances_val.json").read_text())
    truth = read_ground_truth(tmp_path / "val-*").instances
    assert [i["id"] for i in truth["images"]] == [i["id"] for i in raw["images"]]
    by_id = {a["id"]: a for a in raw["annotations"]}
    assert len(truth["annotations"]) == len(by_id)
    for found in truth["annotations"]:
        expected = by_id[found["id"]]
        np.testing.assert_allclose(found["bbox"], expected["bbox"], atol=1e-11)
        for key in ("image_id", "category_id", "area", "iscrowd"):
            assert found[key] == expected[key]
    assert truth["categories"] == [{"id": c["id"], "name": c["name"]} for c in raw["categories"]]


def test_the_keys_are_those_of_the_object_detection_api(tmp_path):
    path, images = write_coco(tmp_path, SIZES[:1])
    quiet(path, images, tmp_path / "out")
    data = next(iter(tf.data.TFRecordDataset(str(tmp_path / "out" / "train-00000-of-00001.tfrecord")))).numpy()
    feature = tf.train.Example.FromString(data).features.feature
    assert feature["image/height"].int64_list.value[:] == [48] and feature["image/width"].int64_list.value[:] == [64]
    assert feature["image/source_id"].bytes_list.value[:] == [b"1"]
    assert (
        feature["image/key/sha256"].bytes_list.value[0].decode()
        == hashlib.sha256(feature["image/encoded"].bytes_list.value[0]).hexdigest()
    )
    image = read_coco(path).images[0]
    for key, column, size in (("xmin", 0, 64), ("ymin", 1, 48), ("xmax", 2, 64), ("ymax", 3, 48)):
        values = feature[f"image/object/bbox/{key}"].float_list.value
        np.testing.assert_allclose(values, image.boxes[:, column] / size, rtol=1e-6)
    assert feature["image/object/class/label"].int64_list.value[:] == image.category_ids.tolist()
    names = {7: b"cat", 3: b"dog", 90: b"cup"}
    assert feature["image/object/class/text"].bytes_list.value[:] == [names[i] for i in image.category_ids]
    assert feature["image/object/is_crowd"].int64_list.value[:] == [0, 1]


def test_records_of_other_tools_are_read(tmp_path):
    jpeg = tf.io.encode_jpeg(picture(20, 10)).numpy()
    floats = lambda *v: tf.train.Feature(float_list=tf.train.FloatList(value=v))  # noqa: E731
    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
                "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[10])),
                "image/width": tf.train.Feature(int64_list=tf.train.Int64List(value=[20])),
                "image/object/bbox/xmin": floats(0.1),
                "image/object/bbox/ymin": floats(0.2),
                "image/object/bbox/xmax": floats(0.5),
                "image/object/bbox/ymax": floats(0.9),
                "image/object/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[7])),
            }
        )
    )
    with tf.io.TFRecordWriter(str(tmp_path / "other.record")) as writer:
        writer.write(example.SerializeToString())
    (record,) = read_records(str(tmp_path / "other.record"))
    np.testing.assert_allclose(record.annotations.boxes, [[2, 2, 10, 9]], rtol=1e-6)
    assert record.annotations.area == pytest.approx(56, rel=1e-6) and not record.annotations.iscrowd.any()
    parsed = parse_example(tf.constant(example.SerializeToString()))
    np.testing.assert_allclose(parsed["boxes"], [[2, 2, 10, 9]], rtol=1e-6)
    assert parsed["iscrowd"].numpy().tolist() == [False]


@pytest.mark.once
def test_the_number_of_processes_does_not_show(tmp_path):
    path, images = write_coco(tmp_path, SIZES * 3)
    one = quiet(path, images, tmp_path / "one", shards=4)
    two = quiet(path, images, tmp_path / "two", shards=4, num_workers=3)
    assert one == two and digests(tmp_path / "one") == digests(tmp_path / "two")
    index = [np.load(tmp_path / name / "train.index.npz") for name in ("one", "two")]
    for column in ("rows", "present", "categories"):
        np.testing.assert_array_equal(*(arrays[column] for arrays in index))
    (images / "000009.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match="000009.jpg is no image"):
        quiet(path, images, tmp_path / "out", shards=4, num_workers=2)
    assert not (tmp_path / "out").exists()


def test_a_second_run_replaces_the_first(tmp_path):
    path, images = write_coco(tmp_path, SIZES)
    quiet(path, images, tmp_path / "out", shards=3)
    assert quiet(path, images, tmp_path / "out", shards=2, limit=2)["images"] == 2
    assert len(list((tmp_path / "out").glob("train-*.tfrecord"))) == 2
    assert len(list(read_records(str(tmp_path / "out" / "train-*.tfrecord")))) == 2
    quiet(path, images, tmp_path / "out", "val", shards=1)
    assert len(list((tmp_path / "out").glob("*.tfrecord"))) == 3


KILLED = """
import os, signal, sys
from retinanet_tf.data.records import shards
from retinanet_tf.data.records.prepare import prepare

def write_and_die(path, *arguments, write=shards.write_shard):
    report = write(path, *arguments)
    if "-00002-of-" in path:
        os.kill(os.getpid(), signal.SIGKILL)
    return report

shards.write_shard = write_and_die
prepare(*sys.argv[1:], shards=5)
"""


@pytest.mark.once
def test_kill_9_leaves_the_earlier_split_and_the_next_run_starts_over(tmp_path):
    path, images = write_coco(tmp_path, SIZES)
    out, partial = tmp_path / "out", tmp_path / "out" / "train.partial"
    quiet(path, images, out, limit=1)
    before = {file: file.read_bytes() for file in out.iterdir()}
    killed = subprocess.run([sys.executable, "-c", KILLED, path, images, out], timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL and len(list(partial.glob("*.tfrecord"))) == 3
    assert before == {file: file.read_bytes() for file in out.iterdir() if file != partial}
    quiet(path, images, out, shards=5)
    quiet(path, images, tmp_path / "fresh", shards=5)
    names = [sorted(file.name for file in folder.iterdir()) for folder in (out, tmp_path / "fresh")]
    assert names[0] == names[1] and digests(out) == digests(tmp_path / "fresh")


@pytest.mark.once
@pytest.mark.parametrize("begun", [0, 2])
def test_a_killed_worker_is_one_error(tmp_path, begun):
    """Killed while the other worker is being started, or once two shards have been begun."""
    path, images = write_coco(tmp_path, [(1200, 900)] * 24)
    partial = tmp_path / "out" / "train.partial"

    def kill():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if len(list(partial.glob("*"))) >= begun and (workers := multiprocessing.active_children()):
                return os.kill(workers[0].pid, signal.SIGKILL)
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises(InputError, match="worker process was killed"):
            quiet(path, images, tmp_path / "out", shards=24, num_workers=2)
    finally:
        thread.join()
    assert not (tmp_path / "out").exists()


def bad_arguments(case, folder, path, images):
    """Changes files, or returns the changed arguments of `prepare`."""
    content = json.loads(path.read_text())
    match case:
        case "missing image":
            (images / "000003.jpg").unlink()
        case "no box":
            content["annotations"] = []
        case "boxes as shares":
            for entry in content["annotations"]:
                entry["bbox"] = [0.25, 0.25, 0.5, 0.75]
        case "truncated image":
            (images / "000002.jpg").write_bytes((images / "000002.jpg").read_bytes()[:-200])
        case "wrong size":
            content["images"][1]["width"] = 999
        case "other categories":
            LabelMap([1], ["bird"]).save(folder / "labels.json")
            return {"output": folder}
        case "output is a file":
            (folder / "file").write_text("")
            return {"output": folder / "file" / "out"}
    path.write_text(json.dumps(content))
    return {
        "missing annotations": {"annotations": folder / "no.json"},
        "missing folder": {"images": folder / "nowhere"},
        "name": {"name": "a/b"},
        "limit": {"limit": 0},
        "choice": {"verify": "all"},
        "max_pixels": {"max_pixels": 3000},
    }.get(case, {})


@pytest.mark.parametrize(
    "case, message",
    [
        ("missing annotations", "no.json can't be read"),
        ("missing image", r"image 000003.jpg \(id 31 in .*instances.json\) isn't in"),
        ("missing folder", "image folder .*nowhere doesn't exist"),
        ("no box", "instances.json has no box at all"),
        ("boxes as shares", "instances.json: every box lies between 0 and 1"),
        ("truncated image", "000002.jpg doesn't decode"),
        ("wrong size", "000001.jpg has 48x64 pixels, but its annotation says 999x64"),
        ("other categories", r"has the category 3 \(dog\), but .*labels.json doesn't have it"),
        ("output is a file", "file/out can't be created"),
        ("name", "^name=a/b"),
        ("limit", "^limit=0"),
        ("choice", "^verify=all must be one of decode, header"),
        ("max_pixels", "000000.jpg has 64x48 pixels, more than max_pixels=3000"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, case, message):
    path, images = write_coco(tmp_path, SIZES)
    arguments = {"annotations": path, "images": images, "output": tmp_path / "out"}
    arguments |= bad_arguments(case, tmp_path, path, images)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        quiet(**arguments)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_later_split_may_have_a_part_of_the_categories(tmp_path):
    path, images = write_coco(tmp_path, SIZES)
    quiet(path, images, tmp_path / "out")
    labels = (tmp_path / "out" / "labels.json").read_bytes()
    content = json.loads(path.read_text())
    content["categories"] = content["categories"][:1]
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 7]
    path.write_text(json.dumps(content))
    summary = quiet(path, images, tmp_path / "out", "val")
    assert (tmp_path / "out" / "labels.json").read_bytes() == labels
    assert summary["categories"] == {"dog": 0, "cat": len(content["annotations"]), "cup": 0}
    for wrong in ({"id": 7, "name": "Cat"}, {"id": 8, "name": "cat"}, {"id": 91, "name": "mug"}):
        path.write_text(json.dumps({**content, "annotations": [], "categories": [wrong]}))
        with pytest.raises(InputError, match=f"category {wrong['id']} .{wrong['name']}., but .*labels.json"):
            quiet(path, images, tmp_path / "out", "val")


def test_a_csv_of_background_has_the_categories_of_its_folder(tmp_path):
    path, images = write_coco(tmp_path, SIZES)
    quiet(path, images, tmp_path / "out")
    (tmp_path / "val.csv").write_text("000001.jpg,,,,,\n000002.jpg,0,0,0,0,none\n")
    read = read_csv(tmp_path / "val.csv", LabelMap.load(tmp_path / "out" / "labels.json"))
    for annotations in (read, tmp_path / "val.csv"):  # a path: in any format, with the label map that is there
        assert quiet(annotations, images, tmp_path / "out", "val")["images_without_objects"] == 2


def test_several_splits_are_written_together_or_not_at_all(tmp_path):
    path, images = write_coco(tmp_path, SIZES)
    read = read_coco(path)
    splits = {"train": replace(read, images=read.images[:3]), "val": replace(read, images=read.images[3:])}
    summaries = prepare_splits(splits, images, tmp_path / "out", progress=False)
    assert [summary["images"] for summary in summaries.values()] == [3, 2]
    quiet(splits["val"], images, tmp_path / "alone", "val")
    assert digests(tmp_path / "alone").items() <= digests(tmp_path / "out").items()
    (images / read.images[-1].file_name).write_bytes(b"no picture")
    before = digests(tmp_path / "out")
    for folder in ("out", "new"):
        with pytest.raises(InputError, match=read.images[-1].file_name):
            prepare_splits(splits, images, tmp_path / folder, progress=False)
    assert digests(tmp_path / "out") == before and not (tmp_path / "new").exists()


def test_splits_with_other_categories_are_refused_before_anything_is_written(tmp_path):
    """Each numbers the names that it has itself: one id is another class in each."""
    path, images = write_coco(tmp_path, SIZES)
    read = read_coco(path)
    ids, names = read.label_map.ids, list(read.label_map.names)
    splits = {
        name: replace(read, label_map=LabelMap(ids, its), source=name)
        for name, its in {"train": names, "val": names[::-1]}.items()
    }
    message = f"val has the category {ids[0]} ({names[-1]}), but train calls it {names[0]!r}"
    with pytest.raises(InputError, match=re.escape(message)):
        prepare_splits(splits, images, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_another_label_map_that_came_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    path, images = write_coco(tmp_path, SIZES)
    write = module.write_shards
    other = LabelMap([7], ["gnu"])

    def slow(*arguments):
        other.save(tmp_path / "out" / "labels.json")
        return write(*arguments)

    monkeypatch.setattr(module, "write_shards", slow)
    with pytest.raises(InputError, match="labels.json of another"):
        quiet(path, images, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["labels.json"]
    assert LabelMap.load(tmp_path / "out" / "labels.json") == other


@pytest.mark.once
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_leaves_nothing(tmp_path, workers):
    """No shard, no folder, no process: the pipe to them ends."""
    path, images = write_coco(tmp_path, [(400, 300)] * 400)
    flags = [f"--annotations={path}", f"--images={images}", f"--output={tmp_path / 'out'}", f"--num_workers={workers}"]
    command = [sys.executable, "-m", "retinanet_tf", "prepare", "--shards=20", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        while not list(tmp_path.glob("out/*.partial/*")) and job.poll() is None:
            time.sleep(0.01)
        job.terminate()
        output, _ = job.communicate(timeout=60)
    assert job.returncode == 143, output
    assert not (tmp_path / "out").exists()


def test_what_is_left_when_the_last_step_is_interrupted_is_kept(tmp_path, monkeypatch):
    """The old shards are gone by then, so the new ones that have no name yet are not removed."""
    path, images = write_coco(tmp_path, SIZES)
    quiet(path, images, tmp_path / "out", shards=3)
    rename, renamed = os.replace, []

    def replace_two(source, target):
        if str(target).endswith(".tfrecord"):
            renamed.append(target)
            if len(renamed) == 3:
                raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(module.os, "replace", replace_two)
    with pytest.raises(KeyboardInterrupt):
        quiet(path, images, tmp_path / "out", shards=3)
    monkeypatch.undo()
    assert len(list((tmp_path / "out").rglob("*.tfrecord"))) == 3
    quiet(path, images, tmp_path / "out", shards=3)
    assert len(list((tmp_path / "out").glob("*.tfrecord"))) == 3 and not list((tmp_path / "out").glob("*.partial"))
