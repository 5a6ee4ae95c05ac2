"""Predictions on files: what is found is written in the input's order; what can't be read stops nothing."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.predict import find_images, predict
from retinanet_tf.visualize import class_colour


class Quarter(Detector):
    """Finds one object of class 1 with score .8 in the lower right quarter of every image, and a weak one."""

    def __init__(self):
        self.label_map, self.config = LabelMap([2, 70], ["cup", "toilet"]), DetectConfig(max_detections=3)

    def prepare(self, image):
        return tf.zeros((8, 8, 3)), tf.ones(2), tf.cast(tf.shape(image)[:2], tf.float32)

    def detect_prepared(self, prepared):
        h, w = np.array([size.numpy() for _, _, size in prepared], np.float32).T
        zero = np.zeros_like(h)
        boxes = np.stack([[w / 2, h / 2, w, h], [zero, zero, w / 4, h / 4], [zero] * 4], 0).transpose(2, 0, 1)
        answer = {"boxes": boxes, "scores": [[0.8, 0.1, 0]] * len(h), "labels": [[1, 0, -1]] * len(h)}
        return {name: tf.constant(v) for name, v in {**answer, "num_detections": [2] * len(h)}.items()}


@pytest.fixture
def folder(tmp_path):
    """a.png, more/a.jpg (another size), more/b.JPG, a broken file and one that is no image."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name, size in (("a.png", (400, 330)), ("more/a.jpg", (330, 420)), ("more/b.JPG", (400, 330))):
        Image.new("RGB", size, (128, 128, 128)).save(tmp_path / "in" / name, "PNG" if name == "a.png" else "JPEG")
    (tmp_path / "in" / "broken.jpg").write_bytes((tmp_path / "in" / "more" / "a.jpg").read_bytes()[:300])
    (tmp_path / "in" / "notes.txt").write_text("not looked at in a folder")
    return tmp_path / "in"


def test_files_folders_and_patterns_each_once(folder):
    inputs = [folder / "more" / "b.JPG", folder, folder / "**" / "*.png"]
    names = [path[len(str(folder)) + 1 :] for path in find_images(inputs)]
    assert names == ["more/b.JPG", "a.png", "broken.jpg", "more/a.jpg"]
    with pytest.raises(InputError, match=r"x\*\.png"):
        find_images([folder / "x*.png"])


def test_pictures_json_and_sheet(folder, tmp_path):
    out = tmp_path / "out"
    images, unreadable = predict(Quarter(), [folder], out, batch_size=2, progress=False)
    assert [path for path, _ in unreadable] == [str(folder / "broken.jpg")]
    assert json.loads((out / "detections.json").read_text()) == images
    assert [entry["file"] for entry in images] == [str(folder / n) for n in ("a.png", "more/a.jpg", "more/b.JPG")]
    assert [entry["picture"] for entry in images] == ["pictures/a.jpg", "pictures/a-2.jpg", "pictures/b.jpg"]
    second = images[1]
    assert (second["width"], second["height"]) == (330, 420)
    best, weak = second["detections"]
    assert (best["category_id"], best["category"], best["bbox"]) == (70, "toilet", [165, 210, 165, 210])
    assert best["score"] == pytest.approx(0.8, abs=1e-6) and weak["category"] == "cup"
    picture = np.asarray(Image.open(out / second["picture"])).astype(int)
    assert picture.shape == (420, 330, 3)
    assert np.abs(picture[211, 175:320] - class_colour(1)).mean() < 30, "the outline of the toilet, JPEG aside"
    assert np.abs(picture[105, 40:330] - 128).max() < 30, "the weak cup isn't drawn"
    assert Image.open(out / "contact_sheet.jpg").size[0] > 600


def test_nothing_readable_still_says_so(folder, tmp_path):
    images, unreadable = predict(Quarter(), [folder / "broken.jpg", folder / "notes.txt"], tmp_path, progress=False)
    assert images == [] and len(unreadable) == 2
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert not (tmp_path / "contact_sheet.jpg").exists()


def test_awkward_files(test_data, tmp_path):
    """Real awkward files: each is either predicted or named, none stops the run; broken ones are named."""
    folder = tmp_path / "awkward"
    shutil.copytree(test_data / "awkward", folder)
    files = [str(path) for path in sorted(folder.iterdir()) if path.suffix not in (".txt", ".json")]
    images, unreadable = predict(Quarter(), files, tmp_path / "out", progress=False)
    assert sorted([entry["file"] for entry in images] + [path for path, _ in unreadable]) == sorted(files)
    broken = {path.rsplit("/", 1)[1] for path, _ in unreadable}
    assert {"empty.jpg", "header_only.jpg", "huge_dims.png", "text_named.jpg", "real_truncated.jpg"} <= broken
    assert not {"plain.jpg", "cmyk.jpg", "gray.jpg", "rgba.png", "one_pixel.jpg", "very_wide.jpg"} & broken
    sizes = {entry["file"].rsplit("/", 1)[1]: (entry["width"], entry["height"]) for entry in images}
    with Image.open(folder / "exif6.jpg") as turned:
        assert sizes["exif6.jpg"] == turned.size[::-1], "shown upright"
