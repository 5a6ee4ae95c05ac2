"""`retinanet predict` with exported files, without TensorFlow and Keras, and what else it refuses."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.inference.results import to_results
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.preprocess import resize, to_pixels
from tests.exported_files import write_litert, write_onnx
from tests.small_detectors import clutter

ROOT = Path(__file__).resolve().parents[2]
# First the class with numpy, Pillow and the runtime alone, then the command, which also draws and reads flags.
PREDICT = """
import sys
never = ("tensorflow", "keras", "h5py", "pycocotools", "tensorboard")
later = ("absl", "matplotlib", "tqdm", "requests")
sys.modules.update(dict.fromkeys([*never, *later]))
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.preprocess import resize, to_pixels
folder = sys.argv[1]
for suffix in ("onnx", "tflite"):
    answer = ExportedDetector(f"{folder}/a.{suffix}")(f"{folder}/photos/turned.jpg")
    assert answer["boxes"][0, 0].tolist() == [0, 0, 50, 70], answer
for name in later:
    del sys.modules[name]
from retinanet_tf.cli.main import main
for suffix in ("onnx", "tflite"):
    flags = f"--model={folder}/a.{suffix} --images={folder}/photos --output={folder}/{suffix} --min_score=0.5"
    sys.argv = ["retinanet", "predict", *flags.split()]
    try:
        main()
    except SystemExit as end:
        assert end.code == 1, "one file is no picture"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    write_onnx(folder / "a.onnx")
    write_litert(folder / "a.tflite")
    (folder / "photos").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    red = np.full((50, 70, 3), [250, 40, 100], np.uint8)
    Image.fromarray(red).save(folder / "photos/turned.jpg", exif=turned)
    Image.fromarray(clutter(1, 33, 44)).save(folder / "photos/clutter.png")
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(folder / "photos/dark.png")
    (folder / "photos/broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.mark.once
def test_predict_without_tensorflow(folder):
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, folder], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" on 3 images") == 2 and done.stderr.count("broken.jpg") == 2
    found = {}
    for suffix in ("onnx", "tflite"):
        rows = found[suffix] = json.loads((folder / suffix / "detections.json").read_text())
        assert [Path(row["image_id"]).name for row in rows] == ["clutter.png"] * 2 + ["turned.jpg"] * 2
        whole, corner = rows[2:]
        assert whole["bbox"] == [0, 0, 50, 70] and corner["bbox"] == [0, 0, 25, 35], "upright"
        assert (whole["category_id"], whole["category"]) == (1, "a,b")
        assert (corner["category_id"], corner["category"]) == (90, '"x"')
        pictures = folder / suffix / "pictures"
        assert {path.name for path in pictures.iterdir()} == {"clutter.jpg", "dark.jpg", "turned.jpg"}
        with Image.open(pictures / "turned.jpg") as picture:
            assert picture.size[0] / picture.size[1] == 50 / 70
        assert (folder / suffix / "contact_sheet.jpg").exists()
    for one, other in zip(found["onnx"], found["tflite"], strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5) and one == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model={}/nowhere.onnx"], "nowhere.onnx can't be read: No such file"),
        (["--model={}/photos/broken.tflite"], "broken.tflite has no metadata"),
        (["--model={}/a.onnx", "--test_flip"], "--test_flip needs a trained detector"),
        (["--model={}/a.onnx", "--tiles=64"], "--tiles needs a trained detector"),
        (["--model={}/a.onnx", "--test_merge=fusion"], "--test_merge needs a trained detector"),
        (["--model={}/saved"], "saved/assets/labels.json can't be read"),
        (["--model={}/versions"], "versions/10/assets/labels.json can't be read"),
    ],
)
def test_other_models_are_refused_in_a_sentence(folder, arguments, message, forked):
    (folder / "photos/broken.tflite").write_bytes(b"no model")
    (folder / "saved").mkdir(exist_ok=True)
    (folder / "saved/saved_model.pb").write_bytes(b"no model")
    for version in ("9", "10"):
        (folder / "versions" / version).mkdir(parents=True, exist_ok=True)
        (folder / "versions" / version / "saved_model.pb").write_bytes(b"no model")
    images = [f"--images={folder}/photos/clutter.png", f"--output={folder}/none"]
    status, text = forked.run("predict", [*(argument.format(folder) for argument in arguments), *images])
    assert status == 1 and message in text and "Traceback" not in text
    assert not (folder / "none").exists()


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
def test_the_example_of_serving_finds_what_the_runtime_finds(folder, name, monkeypatch, capsys):
    """It has the resizing of its own; a photo is shrunk to less than half, one has 16 bits."""
    photos, expected = [str(folder / "photos/turned.jpg"), str(folder / "large.png"), str(folder / "deep.png")], []
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)).save(photos[1])
    Image.fromarray(np.full((50, 70), 200 * 257, np.uint16)).save(photos[2])
    monkeypatch.setattr(sys, "argv", ["run_exported.py", str(folder / name), *photos])
    example = runpy.run_path(str(ROOT / "serving/run_exported.py"), run_name="__main__")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    detector = ExportedDetector(folder / name)
    pixels = [to_pixels(photo) for photo in photos]
    for index, found in detector.detect_all(pixels):
        np.testing.assert_array_equal(example["resize"](pixels[index], 32, 43), resize(pixels[index], 32, 43))
        results = to_results(found, photos[index], detector.label_map.ids)
        expected += [row for row in results if row["score"] >= 0.3]
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        assert (row["file"], row["category_id"]) == (other["image_id"], other["category_id"])
        np.testing.assert_allclose(row["bbox"], other["bbox"], atol=0.01)
        assert row["score"] == pytest.approx(other["score"], abs=1e-4)
