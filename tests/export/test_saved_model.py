"""The SavedModel: loadable with tensorflow alone, answers as the detector does, refuses what could hurt it."""

import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_detectors import small_detector
from tensorflow_serving.apis import prediction_log_pb2

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.export.freeze import with_precision
from retinanet_tf.export.saved_model import _version_folder, export
from retinanet_tf.inference.detector import Detector

LABELS = LabelMap([3, 18, 44], ["ellipse", "étoile", "cross"])


def encode(pixels, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def pictures(*sizes):
    """Clutter of the given (height, width) sizes, uint8."""
    rng = np.random.default_rng(0)
    return [np.asarray(Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize(size[::-1])) for size in sizes]


@pytest.fixture(scope="module")
def detector():
    return small_detector(LABELS)


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    return export(detector, tmp_path_factory.mktemp("export") / "retinanet", metrics={"AP": 0.5})


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(str(exported)).signatures


def as_pixels(answer, sizes):
    """xyxy boxes in pixels of the served normalised yxyx boxes."""
    height, width = np.array(sizes, np.float32).T[..., None]
    y1, x1, y2, x2 = np.moveaxis(answer["detection_boxes"].numpy(), -1, 0)
    return np.stack([x1 * width, y1 * height, x2 * width, y2 * height], -1)


def check_equal(answer, expected, sizes):
    assert int(expected["num_detections"].numpy().sum()) > len(sizes), "the test needs detections"
    np.testing.assert_array_equal(answer["num_detections"].numpy(), expected["num_detections"].numpy())
    np.testing.assert_allclose(answer["detection_scores"].numpy(), expected["scores"].numpy(), atol=1e-5)
    scale = np.array(sizes).max()
    np.testing.assert_allclose(as_pixels(answer, sizes) / scale, expected["boxes"].numpy() / scale, atol=1e-5)
    labels = expected["labels"].numpy()
    np.testing.assert_array_equal(answer["detection_classes"].numpy(), np.array([-1, *LABELS.ids])[labels + 1])
    names = np.array([b"", *(name.encode() for name in LABELS.names)], object)
    np.testing.assert_array_equal(answer["detection_class_names"].numpy(), names[labels + 1])


def test_encoded_images_of_mixed_sizes_answer_as_the_detector(detector, signatures):
    sizes = [(60, 80), (80, 60), (40, 100), (60, 80), (200, 30), (1, 1), (64, 64)]
    images = pictures(*sizes)
    encoded = [encode(image, "PNG" if number % 2 else "BMP") for number, image in enumerate(images)]
    answer = signatures["serving_default"](input_tensor=tf.constant(encoded))
    check_equal(answer, detector(images), sizes)
    alone = signatures["serving_default"](input_tensor=tf.constant(encoded[2:3]))
    for name, value in alone.items():
        if name != "detection_class_names":
            np.testing.assert_allclose(value[0].numpy(), answer[name][2].numpy(), atol=1e-5)


def test_image_tensor_answers_as_the_detector(detector, signatures):
    images = np.stack(pictures((50, 70), (50, 70), (50, 70)))
    images[1] = images[1][::-1]
    answer = signatures["image_tensor"](input_tensor=tf.constant(images))
    check_equal(answer, detector(images), [(50, 70)] * 3)


def test_tf_example_answers_as_serving_default(signatures):
    encoded = [encode(image) for image in pictures((50, 70), (70, 50))]
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[one])),
                    "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
                }
            )
        ).SerializeToString()
        for one in encoded
    ]
    ours = signatures["tf_example"](tf_example=tf.constant(examples))
    theirs = signatures["serving_default"](input_tensor=tf.constant(encoded))
    for name, value in theirs.items():
        if name in ("detection_boxes", "detection_scores"):  # two runs of one network may differ in the last bits
            np.testing.assert_array_max_ulp(ours[name].numpy(), value.numpy(), maxulp=4)
        else:
            np.testing.assert_array_equal(ours[name].numpy(), value.numpy())


def test_outputs_are_the_object_detection_apis(signatures):
    for signature in signatures.values():
        outputs = signature.structured_outputs
        floats = {"detection_boxes", "detection_scores", "detection_classes", "num_detections"}
        assert set(outputs) == floats | {"detection_class_names"}
        assert all(outputs[name].dtype == tf.float32 for name in floats)


def test_empty_batches(signatures):
    for name, empty in {
        "serving_default": tf.zeros([0], tf.string),
        "tf_example": tf.zeros([0], tf.string),
        "image_tensor": tf.zeros([0, 40, 50, 3], tf.uint8),
    }.items():
        (key,) = signatures[name].structured_input_signature[1]
        answer = signatures[name](**{key: empty})
        assert answer["detection_boxes"].shape == (0, 30, 4) and answer["num_detections"].shape == (0,)


@pytest.mark.parametrize("bad", [b"", b"\xff\xd8\xff", b"text", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a" + bytes(40)])
def test_unreadable_image_is_named_by_its_index(signatures, bad):
    good = encode(pictures((50, 70))[0])
    for place in (0, 2):
        batch = [good, good, good]
        batch[place] = bad
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"images\[{place}\]"):
            signatures["serving_default"](input_tensor=tf.constant(batch))


def test_awkward_files_alone_and_in_a_batch(signatures, test_data):
    """An image, or a clean refusal that names it; never anything else."""
    good = (test_data / "awkward" / "plain.jpg").read_bytes()
    refused = set()
    for path in sorted((test_data / "awkward").iterdir()):
        if path.suffix in (".txt", ".json"):
            continue
        for batch, place in (([path.read_bytes()], 0), ([good, path.read_bytes(), good], 1)):
            try:
                answer = signatures["serving_default"](input_tensor=tf.constant(batch))
                assert np.isfinite(answer["detection_boxes"].numpy()).all()
            except tf.errors.InvalidArgumentError as error:
                assert f"images[{place}]" in error.message
                refused.add(path.name)
    assert refused == {
        *("animated.gif", "empty.jpg", "gif_named.jpg", "header_only.jpg", "huge_dims.png", "real_broken.png"),
        *("real_truncated.jpg", "real_truncated.png", "real_zero_width.gif", "text_named.jpg"),
        *("truncated_60pct.jpg", "webp_named.jpg"),
    }


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_lower_precisions_are_close(detector, precision):
    """Float32 answers; boxes and scores differ by what the format rounds off."""
    served = with_precision(detector, precision)
    assert served.levels(np.zeros((1, 64, 96, 3), np.float32))["class_logits"][0].dtype == precision
    found, expected = ({k: v[0].numpy() for k, v in d(pictures((50, 70))).items()} for d in (served, detector))
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    matched = 0
    for box, score in zip(expected["boxes"][:10], expected["scores"][:10], strict=True):
        nearest = np.abs(found["boxes"] - box).max(1).argmin()
        matched += np.abs(found["boxes"][nearest] - box).max() < 1.0 and abs(found["scores"][nearest] - score) < 0.05
    assert matched >= 8
    assert keras.mixed_precision.global_policy().name == "float32", "the process' own setting is as it was"


def test_lower_precision_is_what_is_exported(detector, tmp_path):
    folder = export(detector, tmp_path, precision="bfloat16")
    answer = tf.saved_model.load(str(folder)).signatures["image_tensor"](
        input_tensor=tf.constant(pictures((50, 70))[0][None])
    )
    expected = with_precision(detector, "bfloat16")(pictures((50, 70)))
    np.testing.assert_allclose(answer["detection_scores"].numpy(), expected["scores"].numpy(), atol=0.02)
    assert json.loads((folder / "assets" / "export.json").read_text())["precision"] == "bfloat16"
    with pytest.raises(InputError, match="precision='int8'"):
        export(detector, tmp_path, precision="int8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_weights_are_constants_and_stored_once(exported, detector):
    """No variables file to read, and one copy of the weights for the three signatures."""
    weights = sum(4 * np.prod(variable.shape) for variable in detector.model.weights)
    size = (exported / "saved_model.pb").stat().st_size
    assert size < 1.5 * weights + 1_500_000
    assert not tf.saved_model.load(str(exported)).signatures["serving_default"].variables


def test_loads_with_tensorflow_alone(exported, tmp_path):
    """In a process that could not import this package, and that has none of its names."""
    (tmp_path / "a.png").write_bytes(encode(pictures((50, 70))[0]))
    code = (
        "import sys, tensorflow as tf\n"
        f"model = tf.saved_model.load({str(exported)!r})\n"
        f"image = tf.io.read_file({str(tmp_path / 'a.png')!r})\n"
        "answer = model.signatures['serving_default'](input_tensor=tf.stack([image]))\n"
        "assert not [name for name in sys.modules if name.startswith('retinanet_tf')]\n"
        "print('answer', answer['detection_boxes'].shape)\n"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "answer (1, 30, 4)" in done.stdout, done.stderr


def test_assets_say_what_the_model_is(exported):
    assert json.loads((exported / "assets" / "labels.json").read_text()) == LABELS.to_json()
    description = json.loads((exported / "assets" / "export.json").read_text())
    assert description["metrics"] == {"AP": 0.5}
    assert description["detector"]["image_size"] == 64 and description["detector"]["score_threshold"] == 0.05
    assert description["model"]["backbone"] == "resnet10_w16" and description["precision"] == "float32"
    assert {"tensorflow", "retinanet_tf", "commit"} <= set(description["made_by"])


def test_warm_up_records_replay(exported, signatures):
    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    logs = [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    assert len(logs) == 2
    for log in logs:
        request = log.predict_log.request
        assert request.model_spec.name == "retinanet"
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        assert signatures[request.model_spec.signature_name](**inputs)["num_detections"].shape == (1,)


def test_versions_follow_each_other_and_never_change(detector, exported):
    root = exported.parent
    assert exported.name == "1"
    with pytest.raises(InputError, match="exists"):
        export(detector, exported)
    assert [entry.name for entry in root.iterdir()] == ["1"], "nothing half-written stays"
    (root / "7").mkdir()
    assert _version_folder(root).name == "8" and _version_folder(root / "30").name == "30"


def test_failure_leaves_nothing(detector, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(InputError, match="No space left"):
        export(detector, tmp_path / "m")
    assert list((tmp_path / "m").iterdir()) == []


def test_ids_that_float32_cannot_hold_are_refused(detector, tmp_path):
    big = Detector(detector.model, LabelMap([1, 2, 2**24 + 1], ["a", "b", "c"]), detector.config)
    with pytest.raises(InputError, match=str(2**24 + 1)):
        export(big, tmp_path / "m")
