"""The SavedModel: loadable with tensorflow alone, its answers the detector's."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest.mock import MagicMock

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_detectors import clutter, encode, small_detector

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.export import saved_model
from retinanet_tf.export.saved_model import export, with_precision
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.predict import predict
from retinanet_tf.inference.saved_model import SavedModelDetector
from retinanet_tf.models.layers import precision_policy

LABELS = LabelMap([3, 18, 44], ["ellipse", "étoile", "cross"])


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


@pytest.mark.slow
def test_encoded_images_of_mixed_sizes_answer_as_the_detector(detector, signatures):
    sizes = [(60, 80), (80, 60), (40, 100), (60, 80), (200, 30), (1, 1), (64, 64)]
    images = [clutter(number, *size) for number, size in enumerate(sizes)]
    encoded = [encode(image) for image in images]
    answer = signatures["serving_default"](input_tensor=tf.constant(encoded))
    check_equal(answer, detector(images), sizes)
    alone = signatures["serving_default"](input_tensor=tf.constant(encoded[2:3]))
    for name, value in alone.items():
        if name != "detection_class_names":
            np.testing.assert_allclose(value[0].numpy(), answer[name][2].numpy(), atol=1e-5)


@pytest.mark.slow
def test_image_tensor_answers_as_the_detector(detector, signatures):
    images = np.stack([clutter(0), clutter(1), clutter(2)])
    answer = signatures["image_tensor"](input_tensor=tf.constant(images))
    check_equal(answer, detector(images), [(50, 70)] * 3)


@pytest.mark.slow
def test_a_saved_model_is_a_detector_of_pictures(detector, exported):
    """As `retinanet predict` takes it: pictures of several sizes, in their own pixels, ids as class indices again."""
    images = [clutter(number, *size) for number, size in enumerate([(60, 80), (80, 60), (200, 30)])]
    expected = detector(images)
    loaded = SavedModelDetector(exported)
    assert loaded.label_map == LABELS
    for index, found in loaded.detect_all(images):
        count = int(expected["num_detections"][index])
        assert count and found["labels"].tolist() == expected["labels"][index, :count].numpy().tolist()
        np.testing.assert_allclose(found["scores"], expected["scores"][index, :count], atol=1e-5)
        np.testing.assert_allclose(found["boxes"], expected["boxes"][index, :count], atol=2e-3)


@pytest.mark.slow
def test_predict_turns_files_upright_for_a_saved_model_too(detector, exported, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(clutter(5, 96, 64)).save(tmp_path / "turned.jpg", exif=turned)
    run, loaded = (
        predict(one, [tmp_path / "turned.jpg"], tmp_path / name, progress=False).detections
        for name, one in (("run", detector), ("saved_model", SavedModelDetector(exported)))
    )
    assert len(run) > 3
    for row, other in zip(loaded, run, strict=True):
        assert row.pop("bbox") == pytest.approx(other.pop("bbox"), abs=2e-3)
        assert row.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert row == other


@pytest.mark.parametrize("damage", ["other", "broken"])
def test_other_saved_models_are_no_detector(damage, tmp_path):
    (tmp_path / "assets").mkdir()
    LABELS.save(tmp_path / "assets/labels.json")
    if damage == "other":
        tf.saved_model.save(tf.Module(), tmp_path)
    else:
        (tmp_path / "saved_model.pb").write_bytes(b"broken")
    with pytest.raises(InputError, match="can't be loaded as an exported detector"):
        SavedModelDetector(tmp_path)


def test_a_path_with_wildcards_is_named(tmp_path):
    (tmp_path / "[1]/assets").mkdir(parents=True)
    LABELS.save(tmp_path / "[1]/assets/labels.json")
    with pytest.raises(InputError, match="TensorFlow can't load a model from a path with \\["):
        SavedModelDetector(tmp_path / "[1]")


@pytest.mark.slow
def test_an_export_without_its_end_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "1")
    path = tmp_path / "1/variables/variables.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="can't be loaded as an exported detector: "):
        SavedModelDetector(tmp_path / "1")


@pytest.mark.once
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fixed_shapes_answer_as_the_detector_on_that_canvas(detector, tmp_path, jit_compile):
    shapes = [(2, 64, 96)] if jit_compile else [(2, 64, 96), (1, 96, 64)]
    path = export(detector, tmp_path / "fixed", fixed_shapes=shapes, jit_compile=jit_compile)
    names = dict(zip(("fixed_2x64x96", "fixed_1x96x64"), shapes, strict=False))
    signatures = tf.saved_model.load(str(path)).signatures
    assert set(names) < set(signatures) and set(names) < set(
        json.loads((path / "assets/export.json").read_text())["inputs"]
    )
    for name, (batch, height, width) in names.items():
        images = np.stack([clutter(number, height, width) for number in range(batch)])
        sizes = [(height, width)] * batch
        expected = detector.detect_canvases(
            tf.cast(images, tf.float32), tf.ones((batch, 2)), tf.constant(sizes, tf.float32)
        )
        answer = signatures[name](input_tensor=tf.constant(images))
        check_equal(answer, expected, sizes)
        definition = signatures[name].graph.as_graph_def().SerializeToString()
        assert (b"_XlaMustCompile" in definition) == jit_compile


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"jit_compile": True}, "jit_compile needs fixed_shapes"),
        ({"fixed_shapes": [(1, 64, 100)]}, "fixed_shapes=1x64x100 must be batch x height x width .* multiples of 32"),
        ({"fixed_shapes": [(0, 64, 64)]}, "fixed_shapes=0x64x64 must be"),
        ({"fixed_shapes": [(1, 64, 16416)]}, "fixed_shapes=1x64x16416 must be .* up to 16384"),
        ({"fixed_shapes": [(65537, 64, 64)]}, "fixed_shapes=65537x64x64 must be .* at most 65536 images"),
        ({"fixed_shapes": [(64, 64)]}, "fixed_shapes=64x64 must be"),
    ],
)
def test_wrong_fixed_shapes_are_refused(detector, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        export(detector, tmp_path / "wrong", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tf_example_answers_as_serving_default(signatures):
    encoded = [encode(clutter(0)), encode(clutter(1, 70, 50))]
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "empty"),
    [
        ("serving_default", tf.zeros([0], tf.string)),
        ("tf_example", tf.zeros([0], tf.string)),
        ("image_tensor", tf.zeros([0, 40, 50, 3], tf.uint8)),
    ],
)
def test_empty_batches(signatures, name, empty):
    (key,) = signatures[name].structured_input_signature[1]
    answer = signatures[name](**{key: empty})
    assert answer["detection_boxes"].shape == (0, 30, 4) and answer["num_detections"].shape == (0,)


@pytest.mark.slow
def test_awkward_files_alone_and_in_a_batch(signatures, test_data):
    """An image, or a clean refusal that names it; never anything else."""
    good = (test_data / "awkward" / "plain.jpg").read_bytes()
    refused = set()
    for path in sorted((test_data / "awkward").iterdir()):
        if path.suffix in (".txt", ".json"):
            continue
        for batch, index in (([path.read_bytes()], 0), ([good, path.read_bytes(), good], 1)):
            try:
                answer = signatures["serving_default"](input_tensor=tf.constant(batch))
                assert np.isfinite(answer["detection_boxes"].numpy()).all()
            except tf.errors.InvalidArgumentError as error:
                assert f"images[{index}]" in error.message
                refused.add(path.name)
    assert refused == {
        *(
            "animated.gif",
            "bmp_named.jpg",
            "empty.jpg",
            "gif_named.jpg",
            "header_only.jpg",
            "huge_dims.png",
            "real_broken.png",
        ),
        *("real_truncated.jpg", "real_truncated.png", "real_zero_width.gif", "text_named.jpg"),
        *("truncated_60pct.jpg", "webp_named.jpg"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_lower_precisions_are_close(detector, precision):
    """Float32 answers; boxes and scores differ by what the format rounds off."""
    served = with_precision(detector, precision)
    assert served.levels(np.zeros((1, 64, 96, 3), np.float32))["class_logits"][0].dtype == precision
    answer, expected = ({k: v[0].numpy() for k, v in d([clutter(0)]).items()} for d in (served, detector))
    assert answer["boxes"].dtype == answer["scores"].dtype == np.float32
    matched = 0
    for box, score in zip(expected["boxes"][:10], expected["scores"][:10], strict=True):
        nearest = np.abs(answer["boxes"] - box).max(1).argmin()
        matched += np.abs(answer["boxes"][nearest] - box).max() < 1.0 and abs(answer["scores"][nearest] - score) < 0.05
    assert matched >= 8
    assert keras.mixed_precision.global_policy().name == "float32", "the process' own setting is as it was"


@pytest.mark.once
def test_lower_precision_is_what_is_exported(detector, tmp_path):
    (tmp_path / "6").mkdir()
    # Its warm-up pictures, which an export checks, are made small enough.
    folder = export(detector, tmp_path, precision="bfloat16", max_pixels=900)
    assert folder.name == "7", "the next version"
    signature = tf.saved_model.load(str(folder)).signatures["image_tensor"]
    answer = signature(input_tensor=tf.constant(clutter(0)[None]))
    expected = with_precision(detector, "bfloat16")([clutter(0)])
    np.testing.assert_allclose(answer["detection_scores"].numpy(), expected["scores"].numpy(), atol=0.02)
    assert json.loads((folder / "assets" / "export.json").read_text())["precision"] == "bfloat16"


def test_weights_are_constants_and_stored_once(exported, detector):
    """No variables file to read, and one copy of the weights for the three signatures."""
    weights = sum(4 * np.prod(variable.shape) for variable in detector.model.weights)
    size = (exported / "saved_model.pb").stat().st_size
    assert size < 1.5 * weights + 1_500_000
    assert not tf.saved_model.load(str(exported)).signatures["serving_default"].variables


@pytest.mark.once
def test_loads_with_tensorflow_alone(exported, tmp_path):
    """In a process without this package on its path, which never imports it."""
    (tmp_path / "a.png").write_bytes(encode(clutter(0)))
    code = (
        "import sys, tensorflow as tf\n"
        f"model = tf.saved_model.load({str(exported)!r})\n"
        "answer = model.signatures['serving_default'](input_tensor=tf.stack([tf.io.read_file('a.png')]))\n"
        "assert not [name for name in sys.modules if name.startswith('retinanet_tf')]\n"
        "print('answer', answer['detection_boxes'].shape)\n"
    )
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": ""}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], check=False, **options)
    assert "answer (1, 30, 4)" in done.stdout, done.stderr


def test_assets_say_what_the_model_is(exported):
    assert json.loads((exported / "assets" / "labels.json").read_text()) == LABELS.to_json()
    description = json.loads((exported / "assets" / "export.json").read_text())
    assert description["metrics"] == {"AP": 0.5}
    assert description["detector"]["image_size"] == 64 and description["detector"]["score_threshold"] == 0.05
    assert description["model"]["backbone"] == "resnet10_w16" and description["precision"] == "float32"
    assert {"tensorflow", "retinanet_tf", "commit"} <= set(description["made_by"])


def test_a_version_never_changes(detector, exported):
    assert exported.name == "1"
    with pytest.raises(InputError, match="exists"):
        export(detector, exported)
    assert [entry.name for entry in exported.parent.iterdir()] == ["1"], "nothing half-written stays"


def test_a_full_disk_is_named(detector, tmp_path, interrupted):
    interrupted(OSError(28, "No space left on device"))
    with pytest.raises(InputError, match="No space left"):
        export(detector, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture
def interrupted(monkeypatch):
    """Makes an export fail by an exception, or by a signal to this process, when a part of the model is written."""
    monkeypatch.setattr(saved_model, "freeze", lambda served: None)
    monkeypatch.setattr(saved_model, "ServedDetector", MagicMock())
    # A process in the background may ignore Ctrl-C.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def by(fault):
        def save(module, folder, **options):
            os.makedirs(os.path.join(folder, "variables"))
            if isinstance(fault, BaseException):
                raise fault
            os.kill(os.getpid(), fault)
            time.sleep(10)

        monkeypatch.setattr(tf.saved_model, "save", save)

    yield by
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (RuntimeError("bug"), RuntimeError),
        (MemoryError(), MemoryError),
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
    ],
)
def test_an_interrupted_export_leaves_nothing(detector, tmp_path, interrupted, fault, raised):
    (tmp_path / "m" / "1").mkdir(parents=True)
    interrupted(fault)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised):
        export(detector, tmp_path / "m")
    assert [entry.name for entry in (tmp_path / "m").iterdir()] == ["1"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_killed_export_left_is_removed_and_nothing_else(detector, tmp_path, interrupted):
    """A running export holds its folder; hidden folders of others aren't touched."""
    for name in (".1.a1b2c3d4", ".12.________", ".3.running_", ".git", ".1.notes", "0"):
        (tmp_path / name / "inside").mkdir(parents=True)
    running = os.open(tmp_path / ".3.running_", os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_EX)
    interrupted(OSError(28, "No space left on device"))
    with pytest.raises(InputError):
        export(detector, tmp_path)
    os.close(running)
    assert {entry.name for entry in tmp_path.iterdir()} == {".3.running_", ".git", ".1.notes", "0"}


@pytest.mark.parametrize("name", ["exp [1]", "a[b", "a\\b", "[x]/model/3"])
def test_folders_that_tensorflow_cant_load_from_are_refused_before_computing(detector, tmp_path, monkeypatch, name):
    monkeypatch.setattr(saved_model, "freeze", lambda served: pytest.fail("it has begun"))
    with pytest.raises(InputError):
        export(detector, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("built", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_the_precision_asked_for_is_the_one_computed_in(built, wanted):
    """Whatever the process' policy was when the detector was built."""
    with precision_policy(built):
        detector = small_detector(LABELS)
    served = with_precision(detector, wanted)
    assert {layer.compute_dtype for layer in served.model.layers if layer.weights} == {wanted}
    assert served.levels(np.zeros((1, 64, 96, 3), np.float32))["class_logits"][0].dtype == wanted
    for ours, given in zip(served.model.get_weights(), detector.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, given)


@pytest.mark.parametrize(
    ("ids", "options", "message"), [([1, 2, 2**24 + 1], {}, str(2**24 + 1)), ([1, 2, 3], {"precision": "int8"}, "int8")]
)
def test_unsuitable_ids_and_precisions_are_refused(detector, tmp_path, ids, options, message):
    other = Detector(detector.model, LabelMap(ids, ["a", "b", "c"]), detector.config)
    with pytest.raises(InputError, match=message):
        export(other, tmp_path / "m", **options)
    assert not list(tmp_path.rglob("*.pb"))
