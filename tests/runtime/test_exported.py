"""Exported files in their own runtimes: by name, each row its own picture's; what isn't an export is refused."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.runtime.exported import ExportedDetector
from tests.exported_files import HEIGHT, LABELS, METADATA, WIDTH, write_litert, write_onnx
from tests.small_detectors import clutter

WRITERS = {
    "any.onnx": write_onnx,
    "one.onnx": lambda path: write_onnx(path, 1),
    "three.onnx": lambda path: write_onnx(path, 3),
    "one.tflite": lambda path: write_litert(path, 1),
    "two.tflite": lambda path: write_litert(path, 2),
}
BATCHES = {"any.onnx": None, "one.onnx": 1, "three.onnx": 3, "one.tflite": 1, "two.tflite": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module", params=WRITERS)
def detector(request, folder):
    return ExportedDetector(folder / request.param)


def test_what_the_file_says_goes_with_it(folder, tmp_path):
    for name, batch in BATCHES.items():
        shutil.copy(folder / name, tmp_path / name)
        detector = ExportedDetector(tmp_path / name, threads=1)
        assert detector.metadata == {**METADATA, "input": {"batch": batch, "height": HEIGHT, "width": WIDTH}}
        assert detector.label_map == LabelMap([1, 18, 90], ["a,b", "żółw", '"x"'])
        assert detector.label_map.to_json() == LABELS
        assert detector.input_shape == (batch, HEIGHT, WIDTH)


def test_the_answers_are_the_files_by_name(detector):
    """Class 0 comes first and counts; empty rows aren't class 0."""
    batch = detector.input_shape[0] or 2
    images = np.full((batch, HEIGHT, WIDTH, 3), [51, 0, 204], np.uint8)
    answer = detector.run(images, np.tile(np.float32([[20, 40]]), (batch, 1)))
    assert {name: (value.shape, value.dtype.name) for name, value in answer.items()} == {
        "boxes": ((batch, 3, 4), "float32"),
        "scores": ((batch, 3), "float32"),
        "labels": ((batch, 3), "int32"),
        "num_detections": ((batch,), "int32"),
    }
    for row in range(batch):
        np.testing.assert_array_equal(answer["boxes"][row], [[0, 0, 40, 20], [0, 0, 20, 10], [0] * 4])
        np.testing.assert_allclose(answer["scores"][row], [0.2, 0.2, 0], atol=1e-6)
        np.testing.assert_array_equal(answer["labels"][row], [0, 2, -1])
    assert answer["num_detections"].tolist() == [2] * batch


def test_each_row_is_its_own_pictures(detector):
    """A picture, a blank one and others in one call are as each alone, whatever the order; boxes are in own pixels."""
    pictures = [clutter(1), np.zeros((90, 40, 3), np.uint8), clutter(2, 33, 20), clutter(3, 200, 301)]
    answer = detector(pictures)
    assert answer["num_detections"].tolist() == [2, 0, 2, 2]
    np.testing.assert_array_equal(answer["labels"][1], [-1, -1, -1])
    backwards = detector(pictures[::-1])
    for index, picture in enumerate(pictures):
        alone = detector(picture)
        for name, values in answer.items():
            np.testing.assert_array_equal(values[index], alone[name][0])
            np.testing.assert_array_equal(values[index], backwards[name][3 - index])
        height, width = picture.shape[:2]
        if index != 1:
            whole, corner = answer["boxes"][index, :2]
            np.testing.assert_allclose(whole, [0, 0, width, height], rtol=1e-6)
            np.testing.assert_allclose(corner, [0, 0, width / 2, height / 2], rtol=1e-6)
            red = detector.prepare(picture).canvas[..., 0].mean() / 255
            assert answer["scores"][index, 0] == pytest.approx(red, abs=1e-5)
    assert len(set(answer["scores"][:, 0])) == 4


def test_threads_get_their_own_pictures_answers(detector):
    pictures = [clutter(seed, 40 + seed, 60) for seed in range(8)]
    expected = [detector(picture)["scores"] for picture in pictures]
    with ThreadPoolExecutor(4) as threads:
        scores = list(threads.map(lambda picture: detector(picture)["scores"], pictures * 20))
    np.testing.assert_array_equal(scores, expected * 20)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_stream_gives_the_same_in_order(detector, batch_size):
    pictures = [clutter(1), np.zeros((90, 40, 3), np.uint8), clutter(2, 33, 20), clutter(3, 200, 301)]
    answer = detector(pictures)
    streamed = list(detector.detect_all(iter(pictures), batch_size))
    assert [index for index, _ in streamed] == [0, 1, 2, 3]
    for index, found in streamed:
        count = answer["num_detections"][index]
        assert len(found["boxes"]) == count
        for name, values in found.items():
            np.testing.assert_array_equal(values, answer[name][index, :count])


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None])
def test_a_stream_of_no_size_is_refused(detector, batch_size):
    with pytest.raises(InputError, match="batch_size=.* must be a whole number above 0"):
        next(detector.detect_all([clutter(1)], batch_size))


def test_a_stream_takes_what_a_call_takes(detector, tmp_path):
    picture = clutter(1)
    Image.fromarray(picture).save(tmp_path / "a.png")
    (_, expected), *others = list(detector.detect_all([picture, tmp_path / "a.png", Image.fromarray(picture)], 3))
    for _, found in others:
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
    with pytest.raises(InputError, match=r"images\[1\] is of type float32; give RGB pixels"):
        list(detector.detect_all([picture, (picture / 255).astype(np.float32)]))


def test_no_pictures_no_detections(detector):
    answer = detector([])
    assert {name: value.shape for name, value in answer.items()} == {
        **{"boxes": (0, 3, 4), "scores": (0, 3), "labels": (0, 3), "num_detections": (0,)}
    }
    assert list(detector.detect_all([])) == []


def test_a_batch_of_pictures_in_one_array(detector):
    pictures = np.stack([clutter(1), clutter(2)])
    for name, values in detector(list(pictures)).items():
        np.testing.assert_array_equal(detector(pictures)[name], values)


@pytest.mark.parametrize("dtype, shape", [(np.float32, (HEIGHT, WIDTH, 3)), (np.uint8, (WIDTH, HEIGHT, 3))])
def test_other_canvases_are_refused(detector, dtype, shape):
    batch = detector.input_shape[0] or 1
    with pytest.raises(InputError, match="takes uint8 of shape"):
        detector.run(np.zeros((batch, *shape), dtype), np.ones((batch, 2), np.float32))


@pytest.mark.parametrize("shape", [(2,), (1, 1), (9, 2)])
def test_other_sizes_are_refused(detector, shape):
    batch = detector.input_shape[0] or 3
    with pytest.raises(InputError, match=rf"sizes must be \({batch}, 2\)"):
        detector.run(np.zeros((batch, HEIGHT, WIDTH, 3), np.uint8), np.ones(shape, np.float32))


def test_pictures_are_named(detector):
    with pytest.raises(InputError, match=r"images\[1\] is of type float64"):
        detector([clutter(1), np.zeros((5, 7, 3))])


@pytest.mark.parametrize(("name", "package"), [("any.onnx", "onnxruntime"), ("one.tflite", "ai_edge_litert")])
def test_without_its_runtime_the_extra_is_named(folder, name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install 'retinanet_tf\[{'onnx' if 'onnx' in name else 'litert'}\]'"):
        ExportedDetector(folder / name)


@pytest.mark.parametrize("name", ["any.onnx", "one.tflite"])
@pytest.mark.parametrize("damage", ["half", "empty", "text", "folder", "missing", "first half overwritten"])
def test_damaged_files_are_refused(folder, name, damage, tmp_path):
    content = (folder / name).read_bytes()
    path = tmp_path / name
    half = len(content) // 2
    changed = {"half": content[:half], "empty": b"", "text": b"a detector " * 99}
    changed["first half overwritten"] = b"\xff" * half + content[half:]
    if damage in changed:
        path.write_bytes(changed[damage])
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=name):
        ExportedDetector(path)


@pytest.mark.parametrize("write", [write_onnx, write_litert])
def test_metadata_are_needed(write, tmp_path):
    path = tmp_path / ("a.onnx" if write is write_onnx else "a.tflite")
    write(path, metadata=None)
    with pytest.raises(InputError, match="has no metadata of retinanet_tf"):
        ExportedDetector(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "list of"),
        ({"labels": LABELS[:2]}, "a class that its metadata don't name"),
        ({"preprocessing": {}}, "lacks 'padding'"),
        ({"preprocessing": {"padding": [0.5, 0, 0]}}, "metadata are damaged"),
        ({"preprocessing": {"padding": [0, 0]}}, "metadata are damaged"),
    ],
)
def test_wrong_metadata_are_refused(change, message, tmp_path):
    write_onnx(tmp_path / "a.onnx", metadata={**METADATA, **change})
    with pytest.raises(InputError, match=f"a.onnx.*{message}"):
        ExportedDetector(tmp_path / "a.onnx")(clutter(1))


@pytest.mark.parametrize(
    "names", [{"images": "pixels_in"}, {"num_detections": "count"}, {"int32[B] num": "int64[B] num"}]
)
def test_other_models_are_refused(names, tmp_path):
    if "int32[B] num" in names:
        names = {**names, "num_detections = Cast <to = 6>": "num_detections = Cast <to = 7>"}
    write_onnx(tmp_path / "a.onnx", **names)
    with pytest.raises(InputError, match="a.onnx isn't an exported detector|it isn't an export of a detector"):
        ExportedDetector(tmp_path / "a.onnx")


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match="a.pb is neither an ONNX file"):
        ExportedDetector(tmp_path / "a.pb")
