"""LiteRT files: operators, weights, float16 and INT8."""

import json
import resource
import runpy
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.export import litert_file, parity, saved_model
from retinanet_tf.export.formats import export, metadata
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.metadata import write_metadata
from tests.oracles import box_iou
from tests.small_detectors import clutter
from tests.small_exports import HEIGHT, PICTURES, WIDTH, write_shards

pytestmark = pytest.mark.slow
LITERT_OPERATORS = """
ADD ARG_MAX BROADCAST_TO CAST CEIL CONCATENATION CONV_2D DEQUANTIZE DIV EQUAL EXP EXPAND_DIMS FILL FLOOR_DIV FLOOR_MOD
GATHER GATHER_ND GREATER GREATER_EQUAL LESS LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MAX_POOL_2D MINIMUM
MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 QUANTIZE REDUCE_ANY REDUCE_MAX RELU RESHAPE ROUND SELECT_V2 SPLIT STRIDED_SLICE
SUB SUM TILE TOPK_V2 TRANSPOSE UNPACK WHILE
"""


def operators(content):
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model = schema.Model.GetRootAs(content)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    return {names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes}


def tensors(path):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    return {entry["name"]: entry for entry in litert.Interpreter(str(path)).get_tensor_details()}


def test_litert_has_builtin_operators_and_the_weights(litert_export, detector):
    content = litert_export.path.read_bytes()
    assert not operators(content) - set(LITERT_OPERATORS.split())
    assert len(content) > 4 * detector.model.count_params()


def test_float16_rounds_weights_alone(litert_export, detector, tmp_path):
    path = tmp_path / "half.tflite"
    source = litert_export
    path.write_bytes(litert_file.quantize(source.path.read_bytes(), "float16"))
    write_metadata(path, source.file.metadata)
    assert path.stat().st_size < 0.62 * source.path.stat().st_size
    halves = {name for name, entry in tensors(path).items() if entry["dtype"] is np.float16}
    assert halves and not [name for name in halves if name.startswith("postprocessing")]
    # Anchors reach beyond 1,024 pixels, where halves are whole pixels.
    shapes = {tuple(entry["shape"]) for entry in tensors(path).values() if entry["dtype"] is np.float16}
    assert not [shape for shape in shapes if shape[-1:] == (4,) and len(shape) == 2]
    compared = parity.compare_file("half", parity.LIMITS["float16"], ExportedDetector(path), detector, PICTURES)
    assert compared.fault() is None and compared.score > 1e-5


def dark_canvases(litert_export):
    return [litert_export.file.prepare(clutter(seed, 120, 200) // 2).canvas for seed in range(100, 112)]


@pytest.fixture(scope="module")
def integers(litert_export, detector, tmp_path_factory):
    """INT8, calibrated on pictures of half the brightness."""
    path = tmp_path_factory.mktemp("integers") / "integers.tflite"
    # Of another detector of the same model, as an export has several: the tensors' names are the same.
    other = parity.without_threshold(detector)
    ranges = litert_file.calibrate(other, (2, HEIGHT, WIDTH), dark_canvases(litert_export))
    path.write_bytes(litert_file.quantize(litert_export.path.read_bytes(), "int8", ranges))
    write_metadata(path, {**litert_export.file.metadata, "precision": "int8"})
    return path


def test_int8_is_the_network_alone_with_a_scale_for_each_head_and_level(integers, litert_export, detector):
    found = tensors(integers)
    small = {name: entry for name, entry in found.items() if entry["dtype"] is np.int8}
    assert not [name for name in small if name.startswith("postprocessing")]
    heads = [
        entry["quantization"]
        for name, entry in small.items()
        if name.split(";")[0].endswith("BiasAdd") or "predictor" in name.split(";")[0]
        if len(entry["shape"]) == 4 and entry["shape"][0] == 2
    ]
    levels = 4
    assert len({scale for scale, _ in heads}) == 2 * levels
    # The network's input is as wide as on the calibration's pictures, which are dark.
    config = detector.model.config
    pixels = np.stack(dark_canvases(litert_export))
    normal = (pixels - np.array(config.pixel_mean)) / np.array(config.pixel_std)
    (scale,) = {
        entry["quantization"][0] for name, entry in small.items() if list(entry["shape"]) == [2, HEIGHT, WIDTH, 3]
    }
    assert abs(scale - (normal.max() - normal.min()) / 255) < 0.01 * scale
    # Each level's logits reach up to the largest one of all pictures.
    for values in detector.levels(pixels.astype(np.float32))["class_logits"]:
        largest = max(0.0, float(np.max(values)))
        assert min(abs((127 - zero) * step - largest) / step for step, zero in heads) < 1.01
    assert operators(integers.read_bytes()) <= set(LITERT_OPERATORS.split())
    assert integers.stat().st_size < 0.4 * litert_export.path.stat().st_size


def test_int8_finds_what_the_detector_finds(integers, detector):
    file = ExportedDetector(integers)
    pictures = [picture // 2 for picture in PICTURES]
    compared = parity.compare_file("int8", parity.LIMITS["int8"], file, detector, pictures)
    assert compared.fault() is None
    assert compared.score > 1e-4, "the network isn't in integers"
    answer = file(pictures)
    for values in (answer["scores"], answer["boxes"][..., 0] % 1):
        assert max(len(np.unique(row)) for row in values) >= 20, "scores and boxes share few steps of integers"


def test_the_example_of_serving_runs_every_precision(litert_export, integers, tmp_path):
    """The best object is found in each; nothing has to be scaled by the client."""
    half = tmp_path / "half.tflite"
    half.write_bytes(litert_file.quantize(litert_export.path.read_bytes(), "float16"))
    write_metadata(half, litert_export.file.metadata)
    Image.fromarray(PICTURES[0] // 2).save(tmp_path / "photo.png")
    example = runpy.run_path(str(Path(__file__).parents[2] / "serving/run_exported.py"))
    example["detect"].__globals__["MIN_SCORE"] = 0.0  # the scores of a network without training are low
    found = []
    for path in (litert_export.path, half, integers):
        model = example["load_litert"](str(path))
        rows = example["detect"](str(tmp_path / "photo.png"), *model)
        boxes = [(row["category_id"], np.array(row["bbox"])) for row in rows]
        found.append([(category, np.append(box[:2], box[:2] + box[2:])) for category, box in boxes])
    (category, box), others = found[0][0], found[1:]
    for rows in others:
        assert max(box_iou(box, other) for its_category, other in rows if its_category == category) >= 0.9


def untrained(channels: int = 16) -> Detector:
    """With the paper's initial kernels, which let next to nothing of a small network through to the predictors."""
    keras.utils.set_random_seed(0)
    model = RetinaNet(2, "resnet10_w16", fpn_channels=channels, subnet_channels=channels)
    return Detector(model, LabelMap([1, 2], ["a", "b"]), DetectConfig(score_threshold=0.0, nms_iou=1.0), 64, 96)


@pytest.mark.parametrize(
    ("kernel", "shape"), [("initial", (2, 32, 32)), ("one class without", (1, 64, 96)), ("none", (1, 32, 32))]
)
def test_int8_keeps_biases_beside_kernels_and_inputs_of_next_to_nothing(tmp_path, kernel, shape):
    """In steps of both they can be beyond 32 bits; cut off, a score of 0.01 was one of 0.5."""
    detector, path = untrained(), tmp_path / "int8.tflite"
    predictor = detector.model.get_layer("class_subnet").predictor
    values = predictor.kernel.numpy()
    values[..., {"initial": slice(0), "one class without": slice(1, None, 2), "none": slice(None)}[kernel]] = 0.0
    predictor.kernel.assign(values)
    canvases = [clutter(seed, *shape[1:]) for seed in range(5)]
    content, facts = litert_file.convert(detector, shape, "int8", litert_file.calibrate(detector, shape, canvases))
    path.write_bytes(content)
    write_metadata(path, metadata(detector, "litert", "int8", shape, facts))
    sizes = np.array([shape[1:]] * shape[0], np.float32)
    scores = ExportedDetector(path).run(np.stack(canvases[: shape[0]]), sizes)["scores"]
    np.testing.assert_allclose(scores, 0.01, rtol=0.02)


@pytest.mark.parametrize("write", [lambda one: litert_file.convert(one, (1, 32, 32)), saved_model.freeze])
def test_a_full_temporary_folder_is_one_sentence(write, tmp_path, monkeypatch):
    """A limit on the size of files makes writing fail as on a full disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    detector, (soft, hard) = untrained(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=f"the temporary folder {tmp_path} is full .* TMPDIR"):
            write(detector)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # TensorFlow leaves code that it generates


def test_a_network_that_cannot_be_quantized_is_one_sentence(litert_export):
    of_another = {"x": {"min": np.zeros((1, 1, 1, 1)), "max": np.ones((1, 1, 1, 1))}}
    with pytest.raises(InputError, match="^this network can't be converted to int8: "):
        litert_file.quantize(litert_export.path.read_bytes(), "int8", of_another)


@pytest.mark.once
def test_a_detector_whose_scores_are_all_tied_is_exported(tmp_path):
    detector = untrained().with_config(DetectConfig())
    path = export(detector, tmp_path / "new.tflite", format="litert", fixed_shapes=[(1, 64, 96)])
    _, probe, _ = json.loads(path.with_name("new.tflite.parity.json").read_text())["comparisons"]
    assert probe["tied"] > 20 and max(probe["missing"], probe["extra"]) <= 0.01 * probe["compared"]


def test_int8_through_export_is_calibrated_and_scored_on_the_users_shards(
    tmp_path, detector, litert_export, monkeypatch
):
    """All but the conversions, which the tests above have; the file in float32 stands for theirs."""
    pictures = [clutter(seed, 120, 200) for seed in range(5)]
    shards = write_shards(tmp_path / "data", pictures)
    content, seen = litert_export.path.read_bytes(), []
    monkeypatch.setattr(litert_file, "calibrate", lambda _, shape, canvases: seen.append((shape, list(canvases))))
    monkeypatch.setattr(litert_file, "convert", lambda *_: (content[: content.rindex(b"PK\3\4")], {}))
    monkeypatch.setattr(parity, "without_threshold", lambda detector: detector)
    settings = {"format": "litert", "precision": "int8", "fixed_shapes": [(2, HEIGHT, WIDTH)]}
    path = export(detector, tmp_path / "out" / "new.tflite", calibration=shards, validation=shards, **settings)
    ((shape, canvases),) = seen
    assert shape == (2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(canvases, [litert_export.file.prepare(picture).canvas for picture in pictures])
    assert ExportedDetector(path).metadata["calibration"] == 5
    report = json.loads((tmp_path / "out" / "new.tflite.parity.json").read_text())
    assert 0 <= report["ap"]["file"] <= 1 and 0 <= report["ap"]["detector"] <= 1
    assert report["comparisons"][0]["limits"]["box"] is None
