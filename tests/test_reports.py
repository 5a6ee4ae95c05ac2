"""Inputs of public bug reports, RETINANET_TF_TEST_DATA/reports: each has the outcome that its README.txt calls right.

A test is named after the number of its folder; the last one finds folders without a test.
"""

import itertools
import json
import re
import runpy
import shutil
import sys
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_detectors import TINY_NETWORK, small_detector
from small_jobs import TINY

import retinanet_tf as rn
from retinanet_tf.config.flagfile import flagfile
from retinanet_tf.visualize import draw_detections

CUP = [("cup", [25, 17, 72, 48])]


@pytest.fixture(scope="module")
def reports(test_data):
    """The folder of the reports."""
    if not (test_data / "reports").is_dir():
        pytest.skip(f"{test_data} has no folder reports: the inputs of bug reports.")
    return test_data / "reports"


@pytest.fixture
def report(reports, request):
    """The folder whose number is in the test's name."""
    number = request.node.name.split("_")[1]
    return next(reports.glob(f"{number}-*"))


class Retinanet:
    """`retinanet COMMAND --flag=value …` in a folder of its own."""

    def __init__(self, forked, folder):
        self.forked, self.folder, self.outputs = forked, folder, itertools.count()

    def run(self, command, *flags, **more):
        """(status, everything printed); flags that are None are left out."""
        flags = [*flags, *(f"--{name}={value}" for name, value in more.items() if value is not None)]
        status, printed = self.forked.run(command, flags, folder=self.folder)
        assert "Traceback" not in printed, printed
        return status, printed

    def __call__(self, command, *flags, **more):
        """What a command printed that succeeds."""
        status, printed = self.run(command, *flags, **more)
        assert status == 0, printed
        return printed

    def refused(self, command, *flags, status=1, **more):
        """The sentence of a command that fails with one, as its last line, and leaves no file."""
        before = set(self.folder.rglob("*"))
        ended, printed = self.run(command, *flags, **more)
        # TensorFlow says at its first use that there is no GPU.
        lines = [line for line in printed.splitlines() if " cuda_" not in line]
        assert ended == status and [line for line in lines if "error:" in line] == lines[-1:], (ended, printed)
        assert lines[-1].startswith("error: ") and set(self.folder.rglob("*")) == before
        return lines[-1]

    def prepared(self, annotations, images=None, **more):
        """(what `prepare` printed, its records' annotations by file name, its label map)."""
        more = {"output": f"shards{next(self.outputs)}", "name": "train", **more}
        printed = self("prepare", annotations=annotations, images=images, num_workers=1, **more)
        pattern = self.folder / more["output"] / f"{more['name']}-*.tfrecord"
        records = [record.annotations for record in rn.data.read_records(pattern)]
        found = {one.file_name: one for one in records}
        assert len(found) == len(records), "a file name came twice"
        return printed, found, rn.data.LabelMap.load(pattern.parent / "labels.json")

    def objects(self, *arguments, **more):
        """{file name: [(category, xyxy box)]} of the records that `prepare` writes."""
        _, found, label_map = self.prepared(*arguments, **more)
        names = dict(zip(label_map.ids, label_map.names, strict=True))
        return {
            name: [(names[i], box.tolist()) for i, box in zip(one.category_ids, one.boxes, strict=True)]
            for name, one in found.items()
        }

    def inspected(self, data, images=None):
        """(status, errors and warnings) of `inspect`."""
        output = f"inspection{next(self.outputs)}"
        status, printed = self.run("inspect", data=data, images=images, output=output)
        assert (self.folder / output / "report.html").exists(), printed
        report = json.loads((self.folder / output / "report.json").read_text())
        return status, " ".join(report["errors"] + report["warnings"])

    def metrics(self, **more):
        """metrics.json of `evaluate`."""
        more = {"output": f"metrics{next(self.outputs)}", **more}
        self("evaluate", **more)
        return json.loads((self.folder / more["output"] / "metrics.json").read_text())


@pytest.fixture
def retinanet(forked, tmp_path):
    return Retinanet(forked, tmp_path)


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    """A .keras file of a small detector for cup, dog and rare, with its labels.json."""
    detector = small_detector(rn.data.LabelMap([1, 2, 3], ["cup", "dog", "rare"]))
    path = tmp_path_factory.mktemp("detector") / "model.keras"
    detector.model.save(path)
    detector.label_map.save(path.parent / "labels.json")
    return path


def small_job(**settings):
    """The flags of a small job on shards with one category."""
    return flagfile(TINY.replace(num_classes=1, batch_size=2, **settings)).splitlines()


def test_01_list_of_names_with_blanks(report, retinanet, tmp_path):
    """The list of the report, and one of `street 7`."""
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (tmp_path / folder).mkdir()
        shutil.copyfile(report / folder / f"photo.{suffix}", tmp_path / folder / f"street 7.{suffix}")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("street 7\n")
    assert retinanet.objects(tmp_path, split="train") == {"street 7.jpg": [("cup", [4, 4, 50, 50])]}
    found = retinanet.objects(report, split="train")
    assert {name: objects[0][1] for name, objects in found.items()} == {
        "photo.jpg": [4, 4, 50, 50],  # VOC counts pixels from 1
        "photo (1).jpg": [14, 4, 60, 50],
        "photo (2).jpg": [24, 4, 70, 50],
    }


def test_02_xml_of_another_encoding(report, retinanet):
    assert set(retinanet.prepared(report / "gbk")[2].names) == {"汽车", "行人"}
    sentence = retinanet.refused("prepare", annotations=report / "cp1252", output="out")
    assert "0.xml" in sentence and "UTF-8" in sentence


@pytest.mark.once
def test_03_brackets_in_folder_names(report, retinanet, tmp_path):
    retinanet.prepared(report / "boxes.csv", report / "images", output="data [v2]")
    flags = [*small_job(steps=2, checkpoint_steps=1), "--data=data [v2]/train-*.tfrecord", "--run_dir=run [1]"]
    retinanet("train", *flags)
    for path in (tmp_path / "run [1]/model.weights.h5", *(tmp_path / "run [1]/checkpoints").glob("step-2.*")):
        path.unlink()  # as a job that was killed in its second step
    assert "resuming after 1 of 2 steps" in retinanet("train", *flags)

    # TensorFlow itself can't load a SavedModel from such a folder.
    assert "export [1]" in retinanet.refused("export", checkpoint="run [1]", output="export [1]")
    retinanet("export", checkpoint="run [1]", output="export")
    serve = tf.saved_model.load(str(tmp_path / "export/1")).signatures["serving_default"]
    assert serve(tf.constant([(report / "images/a.jpg").read_bytes()]))["num_detections"].shape == (1,)
    shutil.copytree(report / "images", tmp_path / "photos [2]")
    assert "on 1 images" in retinanet("predict", checkpoint="run [1]", images="photos [2]/*.jpg", output="out [3]")


@pytest.mark.slow
def test_04_image_listed_again(report, retinanet):
    printed, found, _ = retinanet.prepared(report / "train.json", report / "photos")
    assert {name: len(one) for name, one in found.items()} == {"a.jpg": 3, "b.jpg": 1}
    for text in (printed, retinanet.inspected(report / "train.json", report / "photos")[1]):
        assert "a.jpg (3 times)" in text


@pytest.mark.slow
def test_05_ids_of_two_kinds(report, retinanet, tmp_path, detector_file):
    """The right answer has AP 1, and what a detector finds has the same numbers when it is scored again."""
    shards = report / "val-*.tfrecord"
    images = [record.annotations for record in rn.data.read_records(shards)]
    assert [image.image_id for image in images] == ["0001", "0002", "0002_flip"]
    right = [
        {"image_id": image.image_id, "category_id": 1, "bbox": box, "score": 0.9}
        for image in images
        for box in rn.data.xyxy_to_coco(image.boxes).tolist()
    ]
    (tmp_path / "right.json").write_text(json.dumps(right))
    assert retinanet.metrics(results="right.json", data=shards)["AP"] == pytest.approx(1.0)
    found = retinanet.metrics(checkpoint=detector_file, data=shards, output="found")
    cups = [row for row in json.loads((tmp_path / "found/detections.json").read_text()) if row["category_id"] == 1]
    (tmp_path / "cups.json").write_text(json.dumps(cups))
    again = retinanet.metrics(results="cups.json", data=shards)
    assert cups and found["images"] == 3 and all(again[name] == found[name] for name in ("AP", "AR100", "images"))


def test_06_malformed_results(report, retinanet):
    paths = sorted({*report.glob("*.json")} - {report / "bom.json", report / "gt.json"})
    assert len(paths) == 8
    for path in paths:
        sentence = retinanet.refused("evaluate", results=path, annotations=report / "gt.json")
        field = {"image": "image_id", "three": "bbox"}.get(path.stem.split("_")[-1], path.stem.split("_")[-1])
        assert f"detection 0 has {field}" in sentence or f"detection 0 (image 1) has {field}" in sentence
        assert ("text" in sentence) == (path.stem in ("string_image", "string_score"))
    assert "AP 100.0" in retinanet("evaluate", results=report / "bom.json", annotations=report / "gt.json")


@pytest.mark.slow
def test_07_category_name_twice(report, retinanet, tmp_path):
    printed, _, label_map = retinanet.prepared(report / "train.json", report / "photos", output="shards")
    assert "several categories are named 'fish'" in printed and "without an object: fish (0)" in printed
    assert label_map.ids == (0, 1, 2) and label_map.names == ("fish", "fish", "cup")
    summary = json.loads((tmp_path / "shards/train.summary.json").read_text())
    assert summary["categories"] == {"fish (0)": 0, "fish (1)": 1, "cup": 1}
    metrics = retinanet.metrics(results=report / "results.json", annotations=report / "two_fish.json")
    assert metrics["per_category"] == pytest.approx({"fish (0)": 0.0, "fish (1)": 1.0, "cup": 1.0})


def test_08_names_that_the_font_lacks(report, tmp_path, monkeypatch):
    """No two letters look alike, as squares for missing ones would; without a font, each becomes its category id."""
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(report / "draw_names.py"))["names"]
    assert Image.open("drawn.png").size == (400, 440)
    letters = [*{letter: None for name in names for letter in name}]
    grey, box = np.full((100, 200, 3), 128, np.uint8), np.array([[10, 50, 190, 90]], np.float32)
    pictures = [draw_detections(grey, box, [0], [0.9], [letter], ids=[i]) for i, letter in enumerate(letters)]
    assert len({picture.tobytes() for picture in pictures}) == len(letters) > 15


@pytest.mark.slow
def test_09_more_than_a_hundred_objects(report, retinanet):
    flags = {"results": report / "perfect.json", "annotations": report / "gt.json"}
    printed = retinanet("evaluate", **flags)
    assert "AP  33.7" in printed and "more than 100 objects" in printed
    printed = retinanet("evaluate", **flags, max_detections=300)
    assert "AP 100.0" in printed and "more than" not in printed


@pytest.mark.parametrize(("name", "category"), [("result.json", "cup"), ("boxes.csv", "happy")])
def test_10_backslashes_in_file_names(report, retinanet, name, category):
    assert [*retinanet.objects(report / name, report / "photos").values()] == [[(category, CUP[0][1])]]


@pytest.mark.slow
def test_11_val_lacks_a_category(report, retinanet, detector_file):
    images = report / "photos"
    retinanet.prepared(report / "train.json", images, output="both")
    _, found, label_map = retinanet.prepared(report / "val.json", images, output="both", name="val")
    assert label_map.names == ("cup", "dog", "rare") and [len(one) for one in found.values()] == [2]
    for source in ({"annotations": report / "val.json", "images": images}, {"data": "both/val-*.tfrecord"}):
        assert retinanet.metrics(checkpoint=detector_file, **source)["per_category"]["rare"] == -1.0


@pytest.mark.once
def test_12_go_on_longer(reports, retinanet, tmp_path):
    boxes = next(reports.glob("03-*"))
    retinanet.prepared(boxes / "boxes.csv", boxes / "images", output="shards")
    job = [*small_job(steps=2, checkpoint_steps=1), "--data=shards/train-*.tfrecord"]
    retinanet("train", *job, run_dir="run")
    for change in ("--steps=4", "--learning_rate=0.0001"):
        sentence = retinanet.refused("train", *job, change, run_dir="run")
        assert change[2:].split("=")[0] in sentence and "give --init_weights=run and another --run_dir" in sentence
    retinanet("train", *job, "--steps=4", init_weights="run", run_dir="longer")
    assert (tmp_path / "longer/model.weights.h5").exists()

    record = json.loads((tmp_path / "run/run.json").read_text())
    record["made_by"]["keras"] = other = "2.15.0" if hasattr(keras, "ops") else "3.15.1"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    (tmp_path / "run/model.weights.h5").unlink()  # as a job that was killed before its end
    sentence = retinanet.refused("train", *job, run_dir="run")
    assert all(part in sentence for part in (f"Keras {other}", f"Keras {keras.__version__}", "--init_weights=run"))


def test_13_null_and_text_fields(report, retinanet):
    images = report / "photos"
    crowd, unnumbered = (
        retinanet.prepared(report / name, images)[1]["a.jpg"] for name in ("crowd_null.json", "no_id.json")
    )
    assert crowd.iscrowd.tolist() == [False, False] and len(set(unnumbered.annotation_ids.tolist())) == 2
    for path in (report / "bbox_null.json", report / "bbox_empty.json"):
        sentence = retinanet.refused("prepare", annotations=path, images=images, output="out")
        assert "annotation 2" in sentence and "--on_bad_image=skip" in sentence
        assert retinanet.objects(path, images, on_bad_image="skip") == {"a.jpg": CUP}
    flags = {"annotations": report / "cat_name_null.json", "images": images, "output": "out"}
    assert "name None" in retinanet.refused("prepare", **flags) and len(list(report.glob("*.json"))) == 5


def answers(script, capsys, folder, monkeypatch):
    """{case: what a script of a report printed of it}, the network being a small one."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(rn, "RetinaNet", partial(rn.RetinaNet, **TINY_NETWORK))
    runpy.run_path(str(script), run_name="__main__")
    return dict(re.findall(r"^(\w+) (.*)$", capsys.readouterr().out, re.MULTILINE))


@pytest.mark.slow
def test_14_one_image_and_a_path(report, tmp_path, capsys, monkeypatch):
    """Detected on, or one sentence."""
    printed = answers(report / "one_image.py", capsys, tmp_path, monkeypatch)
    assert printed.pop("uint16").startswith("InputError images[0] has values from 0 to 65278")
    assert set(printed) == {"array", "path", "Path", "picture", "bytes", "grey", "paths"}
    for answer in printed.values():
        assert re.fullmatch(r"\[\d+\] \[\[[\d.e-]+\]\]", answer), printed


def test_15_csv_of_other_tools(report, retinanet):
    semicolons = report / "semicolon.csv"
    for path in {*report.glob("*.csv")} - {semicolons}:
        assert retinanet.objects(path, report / "photos") == {"a.jpg": CUP}, path.name
    flags = {"annotations": semicolons, "images": report / "photos", "output": "out"}
    assert "line 1 has semicolons" in retinanet.refused("prepare", **flags)


def test_16_split_of_background_alone(report, retinanet):
    printed, found, _ = retinanet.prepared(report / "val.json", report / "photos", name="val")
    assert [len(one) for one in found.values()] == [0, 0] and "warning: " in printed and "no box" in printed


@pytest.mark.slow
def test_17_every_box_a_crowd(report, retinanet):
    printed, _, _ = retinanet.prepared(report / "train.json", report / "photos")
    for text in (printed, retinanet.inspected(report / "train.json", report / "photos")[1]):
        assert "all 4 boxes" in text and "crowds" in text and "no box at all" not in text


def refused_files(report, retinanet):
    """The sentences of both commands that read the JSON files of a report."""
    Image.new("RGB", (80, 60)).save(retinanet.folder / "a.jpg")
    for path in sorted(report.glob("*.json")):
        for command, flag in (("prepare", "annotations"), ("inspect", "data")):
            sentence = retinanet.refused(command, **{flag: path}, images=".", output="out")
            assert path.name in sentence
            yield sentence


def test_h01_empty_images_list(report, retinanet):
    assert all("annotation 1 belongs to image id 1" in sentence for sentence in refused_files(report, retinanet))


def test_h02_json_beyond_python(report, retinanet):
    assert len(list(refused_files(report, retinanet))) == 12


def test_h03_names_that_are_no_text(report, retinanet):
    parts = ("image 1 has the file_name", "category has id 1 and name")
    assert all(any(part in sentence for part in parts) for sentence in refused_files(report, retinanet))


@pytest.mark.slow
def test_h04_record_of_a_terabyte(report, retinanet, tmp_path, detector_file):
    for path in (detector_file, report / "labels.json"):
        shutil.copyfile(path, tmp_path / path.name)
    data, damaged = report / "big-*.tfrecord", f"record 0 of {report / 'big-00000-of-00001.tfrecord'} is damaged"
    assert damaged in retinanet.refused("evaluate", checkpoint="model.keras", data=data)
    assert damaged in retinanet.refused("train", data=data, preset="mini", num_classes=3, run_dir="run")
    status, said = retinanet.inspected(data)
    assert status == 1 and damaged in said


def test_h05_checkpoints_that_do_not_load(report, retinanet, tmp_path):
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    for path in {*report.iterdir()} - {report / "README.txt"}:
        if path.suffix == ".h5":
            sentence = retinanet.refused("import-weights", source="keras", file=path, output="out")
        else:
            sentence = retinanet.refused("predict", checkpoint=path, images="a.jpg", output="out")
        assert path.name in sentence


def test_h06_flag_file_that_is_not_utf8(report, retinanet):
    assert "c.flags" in retinanet.refused("train", status=2, flagfile=report / "c.flags")


@pytest.mark.once
def test_h07_keras_user(report, tmp_path, capsys, monkeypatch):
    """Trained with finite losses or copied, or one sentence."""
    printed = answers(report / "keras_user.py", capsys, tmp_path, monkeypatch)
    if "models.retinanet.RetinaNet" in printed["clone"]:  # Keras 2
        del printed["clone"]
    trained = {name: json.loads(printed.pop(name).replace("'", '"')) for name in ("jit", "sample_weight")}
    assert all(np.isfinite(history["loss"]).all() for history in trained.values())
    refused = {"no_loss", "metrics", "normalised_boxes", "pixels_0_1", "labels_too_large", "wrong_keys"}
    assert set(printed) - {"clone"} == refused
    assert all(re.fullmatch(r"InputError .+\.", answer) for answer in printed.values()), printed


def test_every_report_has_a_test(reports):
    folders = {folder.name.partition("-")[0] for folder in reports.iterdir() if folder.is_dir()}
    assert folders <= {name.split("_")[1] for name in globals() if name.startswith("test_")}
