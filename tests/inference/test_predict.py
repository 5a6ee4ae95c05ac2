"""Predictions on files: detections are written in the input's order; unreadable files stop nothing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from retinanet_tf.errors import InputError
from retinanet_tf.inference import predict as module
from retinanet_tf.inference.images import to_image
from retinanet_tf.inference.predict import find_images, predict
from retinanet_tf.patterns import split_list
from tests.small_detectors import Quarter, clutter


@pytest.fixture
def folder(tmp_path):
    """a.png, more/a.jpg (another size), more/b.JPG, a broken file and one that isn't an image."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name, size in (("a.png", (400, 330)), ("more/a.jpg", (330, 420)), ("more/b.JPG", (400, 330))):
        Image.new("RGB", size, (128, 128, 128)).save(tmp_path / "in" / name, "PNG" if name == "a.png" else "JPEG")
    (tmp_path / "in" / "broken.jpg").write_bytes((tmp_path / "in" / "more" / "a.jpg").read_bytes()[:300])
    (tmp_path / "in" / "notes.txt").write_text("left out of a folder's images")
    return tmp_path / "in"


def test_files_folders_and_patterns_each_once(folder, monkeypatch):
    inputs = [folder / "more" / "b.JPG", folder, folder / "**" / "*.png"]
    names = [path[len(str(folder)) + 1 :] for path in find_images(inputs)]
    assert names == ["more/b.JPG", "a.png", "broken.jpg", "more/a.jpg"]
    monkeypatch.chdir(folder)
    found = find_images(["more/a.jpg", "./more/a.jpg", folder / "more", "."])
    assert found[:2] == ["more/a.jpg", f"{folder}/more/b.JPG"] and len(found) == 4
    with pytest.raises(InputError, match=r"x\*\.png"):
        find_images([folder / "x*.png"])
    with pytest.raises(InputError, match="no image or video is given"):
        predict(Quarter(), [], folder / "out")
    with pytest.raises(InputError, match="the output folder '' must be a local folder"):
        predict(Quarter(), [folder], "")
    for wrong, said in (({"batch_size": 0}, "batch_size=0 must be a whole"), ({"min_score": "auto"}, "min_score=auto")):
        with pytest.raises(InputError, match=said):
            predict(Quarter(), [folder], folder / "out", **wrong)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_and_one_format_need_no_list(folder, tmp_path, kind):
    path = folder / "a.png"
    assert find_images(kind(path)) == [str(path)]
    predictions = predict(Quarter(), kind(path), tmp_path / "out", save="yolo", progress=False)
    assert list(predictions.pictures) == [str(path)] and predictions.saved


def test_pictures_results_and_sheet(folder, tmp_path, monkeypatch):
    drawn, draw = [], module.draw_detections
    monkeypatch.setattr(module, "draw_detections", lambda *args, **kw: drawn.append(len(args[1])) or draw(*args, **kw))
    out, names = tmp_path / "out", ("a.png", "more/a.jpg", "more/b.JPG")
    predictions = predict(Quarter(), [folder], out, batch_size=2, progress=False)
    assert [path for path, _ in predictions.unreadable] == [str(folder / "broken.jpg")]
    assert list(predictions.pictures) == [str(folder / name) for name in names]
    assert [path.name for path in predictions.pictures.values()] == ["a.jpg", "a-2.jpg", "b.jpg"]
    for path, picture in predictions.pictures.items():
        assert Image.open(path).size == Image.open(picture).size
    assert json.loads((out / "detections.json").read_text()) == predictions.detections
    assert [row["image_id"] for row in predictions.detections] == [str(folder / name) for name in names for _ in "12"]
    best, weak = predictions.detections[2:4]
    score, weak_score = best.pop("score"), weak.pop("score")
    assert (score, weak_score) == pytest.approx((0.8, 0.1))
    path = str(folder / "more" / "a.jpg")
    assert best == {"image_id": path, "category_id": 70, "bbox": [165, 210, 165, 210], "category": "toilet"}
    assert weak == {"image_id": path, "category_id": 2, "bbox": [0, 0, 82.5, 105], "category": "cup"}
    assert drawn == [1, 1, 1] and predictions.drawn == {"toilet": 3}, "the weak ones are in the JSON alone"
    assert Image.open(out / "contact_sheet.jpg").size[0] > 600


@pytest.mark.parametrize("inside", ["", "out", "more/deep/out"])
@pytest.mark.parametrize("pattern", ["", "**/*.jpg", "**"])
def test_output_inside_the_input_is_not_read_again(folder, inside, pattern):
    """The second and third run find what the first found, the third with an output folder of its own."""
    runs = [
        list(predict(Quarter(), [folder / pattern], folder / out, progress=False).pictures)
        for out in (inside, inside, "other")
    ]
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) in (1, 3)
    again = predict(Quarter(), [folder / inside / "pictures"], folder / "third", progress=False)
    assert len(again.pictures) == len(runs[0]), "a folder of pictures that is named is read"


@pytest.mark.parametrize("given", ["out/pictures", "out/pictures/*.jpg", "out/pictures/a.jpg", "out/contact_sheet.jpg"])
def test_no_input_is_overwritten(folder, given):
    predict(Quarter(), [folder / "a.png"], folder / "out", progress=False)
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*.*")}
    with pytest.raises(InputError, match="would be overwritten"):
        predict(Quarter(), [folder / given], folder / "out", progress=False)
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*.*")} == before


def test_files_of_ones_own_are_not_replaced(folder):
    """Pictures in a folder "pictures" of the input, and annotations beside it; of an earlier run they are."""
    own = folder / "pictures" / "a.jpg"
    own.parent.mkdir()
    shutil.copy(folder / "more" / "a.jpg", own)
    (folder / "set" / "labels").mkdir(parents=True)
    before = own.read_bytes()
    for output, more in ((folder, {}), (folder / "set", {"save": "yolo"})):
        with pytest.raises(InputError, match="exists and isn't of an earlier prediction"):
            predict(Quarter(), folder, output, progress=False, **more)
    assert own.read_bytes() == before and not (folder / "detections.json").exists()
    for _ in range(2):
        predict(Quarter(), folder / "more", folder / "again", save="yolo", progress=False)


def test_a_name_as_long_as_they_can_be(folder, tmp_path):
    path = folder / ("x" * 251 + ".jpg")
    shutil.copy(folder / "more" / "a.jpg", path)
    assert predict(Quarter(), path, tmp_path / "out", progress=False).pictures[str(path)].exists()


def test_pipes_devices_folders_and_hidden_files(folder, tmp_path):
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.jpg").mkdir()
    for name in ("._a.png", ".thumbnails/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.png", folder / name)
    predictions = predict(Quarter(), [folder, "/dev/zero", folder / "*"], tmp_path / "out", progress=False)
    assert len(predictions.pictures) == 3
    unreadable = {os.path.basename(path): reason for path, reason in predictions.unreadable}
    assert unreadable.keys() == {"broken.jpg", "pipe.png", "zero", "notes.txt"}
    assert "regular file" in unreadable["pipe.png"] and "regular file" in unreadable["zero"]


@pytest.mark.parametrize("name", ["x[1].png", "what?.png", "a, b.png", "line\nbreak.png", "café ☕.png", "b\udcff.png"])
def test_file_names_are_taken_as_they_stand(folder, name, tmp_path):
    try:
        shutil.copy(folder / "a.png", folder / name)
    except OSError:
        pytest.skip("this file system refuses the name")
    (path,) = split_list(str(folder / name))
    predictions = predict(Quarter(), [path], tmp_path / "out", progress=False)
    assert list(predictions.pictures) == [str(folder / name)] and not predictions.unreadable
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 2


@pytest.mark.parametrize("mode, orientation", [("L", 1), ("RGB", 6), ("L", 3)])
def test_the_detector_sees_the_pixels_of_pillow(tmp_path, mode, orientation):
    """Grey and turned files too, without being coded again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(clutter(1)).convert(mode).save(tmp_path / "a.jpg", exif=exif)
    seen = []

    class Watching(Quarter):
        def prepare(self, image):
            seen.append(image.numpy())
            return super().prepare(image)

    predict(Watching(), [tmp_path / "a.jpg"], tmp_path / "out", progress=False)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")).convert("RGB")
    np.testing.assert_array_equal(seen[0], upright)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, "png") for mode in ("RGB", "RGBA", "L", "LA", "P", "I;16")),
        *((mode, "jpg") for mode in ("RGB", "L", "CMYK")),
        *((mode, "gif") for mode in ("L", "P")),
        *(("RGB", suffix) for suffix in ("bmp", "tif", "webp")),
    ],
)
def test_one_picture_is_the_same_as_path_bytes_pillow_image_array_and_for_predict(tmp_path, mode, suffix):
    """Arrays are RGB: the decoded file is one. Black ink, all of 16 bits, a transparent colour."""
    pixels = Image.fromarray(clutter(1))
    if mode == "I;16":
        picture = Image.fromarray(np.random.default_rng(1).integers(0, 65536, clutter(1).shape[:2], np.uint16))
    elif mode == "CMYK":
        picture = Image.merge("CMYK", [*pixels.split(), Image.linear_gradient("L").resize(pixels.size)])
    else:
        picture = pixels.convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    path = tmp_path / f"a.{suffix}"
    picture.save(path, **({"transparency": picture.getpixel((0, 0))} if mode == "P" else {}))
    seen = []

    class Watching(Quarter):
        def prepare(self, image):
            seen.append(image.numpy())
            return super().prepare(image)

    predict(Watching(), [path], tmp_path / "out", progress=False)
    encoded = path.read_bytes()
    forms = (path, str(path), encoded, bytearray(encoded), tf.constant(encoded), Image.open(path), seen[0])
    for form in (*forms, seen[0].astype(np.float32)):
        np.testing.assert_array_equal(to_image(form, 0), seen[0])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_bytes_are_taken_as_they_are_stored(tmp_path, suffix):
    """A path is turned upright by its EXIF data. Pillow turns a TIFF by itself."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(clutter(1, 40, 60)).save(tmp_path / f"a.{suffix}", exif=exif)
    upright, stored = to_image(tmp_path / f"a.{suffix}", 0), to_image((tmp_path / f"a.{suffix}").read_bytes(), 0)
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))
    assert stored.shape == (40, 60, 3)


def test_unreadable_files_alone(folder, tmp_path):
    inputs = [folder / "broken.jpg", folder / "notes.txt"]
    predictions = predict(Quarter(), inputs, tmp_path, progress=False)
    assert (predictions.detections, len(predictions.unreadable)) == ([], 2)
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert not (tmp_path / "contact_sheet.jpg").exists()


def test_awkward_files(test_data, tmp_path):
    """Real awkward files: each is either predicted or named, none stops the run; broken ones are named."""
    folder = tmp_path / "awkward"
    shutil.copytree(test_data / "awkward", folder)
    files = [str(path) for path in sorted(folder.iterdir()) if path.suffix not in (".txt", ".json")]
    predictions = predict(Quarter(), files, tmp_path / "out", progress=False)
    broken = {path.rsplit("/", 1)[1] for path, _ in predictions.unreadable}
    assert sorted([*predictions.pictures, *(path for path, _ in predictions.unreadable)]) == sorted(files)
    assert {"empty.jpg", "header_only.jpg", "huge_dims.png", "text_named.jpg", "real_truncated.jpg"} <= broken
    assert not {"plain.jpg", "cmyk.jpg", "gray.jpg", "rgba.png", "one_pixel.jpg", "very_wide.jpg"} & broken
    lower_right = predictions.detections[2 * list(predictions.pictures).index(str(folder / "exif6.jpg"))]["bbox"]
    with Image.open(folder / "exif6.jpg") as turned:
        assert lower_right[2:] == [side / 2 for side in turned.size[::-1]], "detected upright"
