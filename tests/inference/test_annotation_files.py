"""Detections as annotations: `prepare` reads each format back to the same boxes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference.predict import predict
from tests.datasets import picture


class Boxes:
    """Detections by the size of a picture: none on wide ones, else three at odd places, one of them weak."""

    label_map, config = LabelMap([2, 7, 70], ["cup", "tea, green", "no"]), DetectConfig(max_detections=3)

    def detect_all(self, images, batch_size):
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            scale = np.array([width, height, width, height], np.float32)
            boxes = np.array([[0, 0.1234567, 1 / 3, 1], [0.7, 0.31, 1, 0.6543211], [0, 0, 0.5, 0.5]], np.float32)
            count = 0 if width > height else 3
            answer = {"boxes": boxes * scale, "scores": np.float32([0.9, 0.7, 0.1]), "labels": np.array([1, 2, 0])}
            yield index, {name: values[:count] for name, values in answer.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Pictures, two of one name in different folders, one turned and one without detections; what predict saved."""
    folder = tmp_path_factory.mktemp("saved")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size, more in (
        ("a/1.jpg", (640, 963), {}),
        ("b/1.jpg", (333, 500), {}),
        ("b/turned.jpg", (700, 301), {"exif": exif}),
        ("empty.png", (90, 40), {}),
    ):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(*size)).save(path, **more)
    done = predict(Boxes(), [folder / "photos"], folder / "out", save=["coco", "csv", "yolo"], progress=False)
    assert done.saved == ["annotations.json", "annotations.csv", "labels/"]
    return folder, done


@pytest.mark.parametrize("name", ["annotations.json", "annotations.csv", "labels"])
def test_prepare_reads_what_predict_saved(found, name, tmp_path):
    folder, done = found
    annotations, images = read_source(folder / "out" / name, images=str(folder / "photos"))
    summary = prepare(annotations, images, tmp_path, progress=False)
    assert (summary["images"], summary["boxes"], summary["images_without_objects"]) == (4, 6, 1)
    assert not any(summary["counts"][kind] for kind in ("clipped_boxes", "zero_size_boxes", "outside_boxes"))
    names = dict(zip(annotations.label_map.ids, annotations.label_map.names, strict=True))
    records = {record.annotations.file_name: record.annotations for record in read_records(tmp_path / "train-*")}
    assert set(records) == {"a/1.jpg", "b/1.jpg", "b/turned.jpg", "empty.png"}
    assert (records["b/turned.jpg"].width, records["b/turned.jpg"].height) == (301, 700)
    for file_name, record in records.items():
        rows = [row for row in done.detections if row["image_id"] == str(folder / "photos" / file_name)]
        drawn = [row for row in rows if row["score"] >= 0.3]
        assert [names[i] for i in record.category_ids] == [row["category"] for row in drawn]
        boxes = np.array([row["bbox"] for row in drawn]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(record.boxes, boxes, atol=0.01)


def test_labels_in_a_folder_of_the_pictures_are_read_back(found, tmp_path):
    photos = shutil.copytree(found[0] / "photos", tmp_path / "photos")
    predict(Boxes(), [photos], photos / "found", save=["yolo"], progress=False)
    annotations, _ = read_source(photos / "found" / "labels", images=str(photos))
    assert [image.file_name for image in annotations.images] == ["a/1.jpg", "b/1.jpg", "b/turned.jpg", "empty.png"]


def test_each_file_is_what_others_read(found):
    folder, _ = found
    labels = {str(path.relative_to(folder / "out" / "labels")) for path in (folder / "out" / "labels").rglob("*.txt")}
    assert labels == {"a/1.txt", "b/1.txt", "b/turned.txt", "empty.txt", "classes.txt"}
    assert (folder / "out" / "labels" / "empty.txt").read_bytes() == b""
    assert (folder / "out" / "labels" / "classes.txt").read_text() == "cup\ntea, green\nno\n"
    lines = (folder / "out" / "labels" / "a" / "1.txt").read_text()
    assert [line.split(" ")[0] for line in lines.splitlines()] == ["1", "2"] and not any(
        line != line.strip() for line in lines.splitlines()
    )
    coco = json.loads((folder / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a/1.jpg", "b/1.jpg", "b/turned.jpg", "empty.png"]
    assert coco["categories"] == Boxes.label_map.to_json()
    assert [row["category_id"] for row in coco["annotations"]] == [7, 70] * 3


def test_what_cannot_be_saved_is_said_before_anything_is_written(found, tmp_path):
    folder, _ = found
    Image.fromarray(picture(40, 40)).save(tmp_path / "1.jpg")
    Image.fromarray(picture(40, 40)).save(tmp_path / "1.png")
    (tmp_path / "clip.mp4").touch()
    for save, inputs, said in (
        (["voc"], ["1.jpg"], "save=voc must be one of coco, csv, yolo"),
        (["yolo"], ["1.jpg", "1.png"], "to one file, labels/1.txt"),
        (["csv"], ["clip.mp4"], "clip.mp4 is a video"),
    ):
        with pytest.raises(InputError, match=said):
            predict(Boxes(), [tmp_path / name for name in inputs], tmp_path / "out", save=save, progress=False)
    assert not (tmp_path / "out").exists()
