"""ONNX and LiteRT files: their answers are the detector's, and the report on that can fail."""

import dataclasses
import json
import runpy
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.errors import InputError
from retinanet_tf.export import formats, litert_file, onnx_file, parity
from retinanet_tf.export.formats import export, export_file
from retinanet_tf.export.frozen_graph import detection_graph, file_shape
from retinanet_tf.export.saved_model import with_precision
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.predict import predict
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.metadata import write_metadata
from tests.oracles import box_iou
from tests.small_detectors import clutter, encode, small_detector

LABELS = LabelMap([1, 18, 90], ["a,b", "żółw", '"x"'])
HEIGHT, WIDTH = 96, 160
FLOAT32 = parity.LIMITS["float32"]
PICTURES = [clutter(seed, *size) for seed, size in enumerate([(120, 200), (90, 60), (48, 80), (200, 130), (96, 160)])]


@pytest.fixture(scope="module")
def detector():
    """One whose scores lie between 0 and 1 and whose boxes differ from the anchors."""
    detector = small_detector(LABELS, spread=0.06)
    rng = np.random.default_rng(5)
    for variable in detector.model.weights:
        name = getattr(variable, "path", variable.name)
        if "box_subnet" in name and len(variable.shape) == 4:
            variable.assign(rng.normal(0, 0.03, variable.shape).astype(np.float32))
        if "class_subnet" in name and "predictor" in name and "bias" in name:
            variable.assign(np.full(variable.shape, -1, np.float32))
    return detector


def exported(detector, path, *settings):
    """An export with what it compared: the file and its probe, which stay usable, and the report."""
    kept = {}

    def check(file, probe, *others):
        kept.update(file=file, probe=probe, report=real(file, probe, *others))
        return kept["report"]

    real = parity.check
    kept["detector"] = detector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "check", check)
        patch.setattr(formats, "PARITY_IMAGES", 6)
        export_file(detector, path, *settings)
    return types.SimpleNamespace(path=path, **kept)


@pytest.fixture(scope="module")
def files(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {
        "onnx": exported(detector, folder / "small.onnx", "onnx", "float32", [(None, HEIGHT, WIDTH)]),
        "litert": exported(detector, folder / "small.tflite", "litert", "float32", [(2, HEIGHT, WIDTH)]),
    }


@pytest.fixture(scope="module", params=["onnx", "litert"])
def file(request, files):
    return files[request.param]


def test_float32_files_answer_as_the_detector(file):
    same, probed, _ = file.report.comparisons
    assert file.report.fault is None
    assert (same.missing, same.extra, same.off) == (0, 0, 0)
    assert same.compared > 50 and same.box < 0.01 and same.score < 1e-5
    # Its best 100 pairs of each level, before overlapping ones are dropped.
    assert probed.compared > same.compared and probed.off == 0
    assert "same canvas" in file.report.table()


def test_the_report_lies_beside_the_file(file):
    written = json.loads(file.path.with_name(f"{file.path.name}.parity.json").read_text())
    assert written == file.report.to_json()
    assert written["fault"] is None and written["comparisons"][0]["limits"]["box"] == 0.5
    assert sorted(entry.name for entry in file.path.parent.iterdir()) == [
        *("small.onnx", "small.onnx.parity.json", "small.tflite", "small.tflite.parity.json"),
    ]


def test_metadata_say_how_to_use_the_file(file, detector):
    metadata = ExportedDetector(file.path).metadata
    assert metadata["labels"] == [{"id": 1, "name": "a,b"}, {"id": 18, "name": "żółw"}, {"id": 90, "name": '"x"'}]
    assert metadata["detect"] == dataclasses.asdict(detector.config)
    assert metadata["preprocessing"]["padding"] == [round(mean) for mean in detector.model.config.pixel_mean]
    onnx = metadata["format"] == "onnx"
    assert metadata["input"] == {"batch": None if onnx else 2, "height": HEIGHT, "width": WIDTH}
    assert metadata["precision"] == "float32" and metadata["oldest_runtime"]
    assert not onnx or (metadata["opset"] <= 18 and metadata["ir_version"] <= 9)


def test_rows_of_a_batch_are_their_own_pictures(file):
    """Permuted pictures have permuted answers; a blank one between others, and others' sizes, change nothing."""
    blank = np.full((40, 50, 3), 114, np.uint8)
    pictures = [PICTURES[0], blank, PICTURES[1], PICTURES[3]]
    prepared = [file.file.prepare(picture) for picture in pictures]
    canvases, sizes = np.stack([one.canvas for one in prepared]), np.stack([one.size for one in prepared])

    def run(rows):
        return file.file.run(canvases[rows], sizes[rows])

    batches = [[0, 1, 2, 3], [0], [2, 0, 3]] if file.file.input_shape[0] is None else [[0, 1], [2, 3], [3, 1]]
    alone = {row: {name: value[0] for name, value in run([row, row][: len(batches[1])]).items()} for row in range(4)}
    for rows in batches:
        for name, value in run(rows).items():
            np.testing.assert_allclose(value, np.stack([alone[row][name] for row in rows]), atol=1e-4)
    for one, answer in zip(prepared, alone.values(), strict=True):
        height, width = one.size
        assert (answer["boxes"] <= [width, height, width, height]).all() and (answer["boxes"] >= 0).all()


def test_no_detection_is_an_empty_list(file, detector):
    """A canvas whose picture has no area has all boxes at its corner: none of a class but the best is kept."""
    batch = file.file.input_shape[0] or 2
    answer = file.file.run(np.zeros((batch, HEIGHT, WIDTH, 3), np.uint8), np.zeros((batch, 2), np.float32))
    for row, count in enumerate(answer["num_detections"]):
        assert (answer["labels"][row, count:] == -1).all() and (answer["scores"][row, count:] == 0).all()
        assert (answer["labels"][row, :count] >= 0).all()


def test_predict_finds_in_image_files_what_the_run_finds(files, detector, tmp_path):
    """Upright and in 8-bit RGB, however they are stored; of the canvas' size, so that neither side resizes them."""
    picture, turned = Image.fromarray(clutter(5, HEIGHT, WIDTH)), Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "photos").mkdir()
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photos/turned.jpg", exif=turned)
    picture.convert("CMYK").save(tmp_path / "photos/cmyk.jpg")
    for mode in ("LA", "P", "RGBA"):
        picture.convert(mode).save(tmp_path / f"photos/{mode}.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(tmp_path / "photos/16 bit.png")
    run = Detector(detector.model, LABELS, detector.config, HEIGHT, WIDTH)
    expected = predict(run, [tmp_path / "photos"], tmp_path / "run", progress=False).detections
    assert len(expected) > 60 and {row["category_id"] for row in expected} == set(LABELS.ids)
    same = ("image_id", "category_id", "category")
    for name, one in files.items():
        found = predict(ExportedDetector(one.path), [tmp_path / "photos"], tmp_path / name, progress=False).detections
        for row, other in zip(found, expected, strict=True):
            assert row["bbox"] == pytest.approx(other["bbox"], abs=0.01)
            assert row["score"] == pytest.approx(other["score"], abs=1e-5)
            assert [row[key] for key in same] == [other[key] for key in same]


class WrongAnchor(Detector):
    """One of the nine anchors is 30 % larger."""

    def select(self, outputs, canvases, scales, sizes, static_shapes=False):
        with tf.init_scope():
            levels = self.model.anchors.by_level(tf.zeros([1, HEIGHT, WIDTH, 3]))
            anchors = self.change([level.numpy() for level in levels])
        given = scales, sizes, self.config, self.model.anchors.config, static_shapes
        return select_detections(outputs["class_logits"], outputs["box_deltas"], anchors, *given)

    def change(self, levels):
        for level in levels:
            centre = (level[4::9, :2] + level[4::9, 2:]) / 2
            level[4::9] = np.tile(centre, 2) + 1.3 * (level[4::9] - np.tile(centre, 2))
        return levels


class WrongStride(WrongAnchor):
    """The coarsest level but one lies at half its stride."""

    def change(self, levels):
        levels[-2] *= 0.5
        return levels


class WrongClasses(Detector):
    """Two classes are exchanged."""

    def select(self, *args, **kwargs):
        answer = super().select(*args, **kwargs)
        return {**answer, "labels": tf.gather(tf.constant([-1, 1, 0, 2]), answer["labels"] + 1)}


@pytest.mark.parametrize("kind", [WrongAnchor, WrongStride, WrongClasses])
def test_the_report_finds_broken_exports(files, detector, kind):
    """One side is wrong; which one makes no difference to a comparison."""
    broken = kind(detector.model, LABELS, detector.config, 64, 96)
    found = parity.check(files["onnx"].file, files["onnx"].probe, broken, PICTURES)
    assert found.fault is not None, found.table()


def test_a_broken_export_leaves_nothing(files, detector, tmp_path, monkeypatch):
    """The file of another network, as a conversion without the weights would be."""
    content = files["onnx"].path.read_bytes()
    monkeypatch.setattr(onnx_file, "convert", lambda *_: (content, {}))
    monkeypatch.setattr(formats, "PARITY_IMAGES", 4)
    monkeypatch.setattr(parity, "without_threshold", lambda detector: detector)
    other = small_detector(LABELS)
    with pytest.raises(InputError, match=r"(?s)same canvas.*new.onnx isn't written: \d+ of the detector's detections"):
        export(other, tmp_path / "new.onnx", format="onnx", fixed_shapes=[(1, HEIGHT, WIDTH)])
    assert not list(tmp_path.iterdir())


class _Silent:
    """A file without any detection."""

    def __init__(self, file):
        self.prepare, self.input_shape, self._run = file.prepare, file.input_shape, file.run

    def run(self, canvases, sizes):
        answer = self._run(canvases, sizes)
        return {**answer, "num_detections": np.zeros_like(answer["num_detections"])}


def test_unmatched_detections_count_on_both_sides_and_few_are_no_proof(files, detector):
    silent = Detector(detector.model, LABELS, DetectConfig(score_threshold=0.999, max_detections=30), 64, 96)
    file = files["onnx"].file
    missing = parity.compare_file("missing", FLOAT32, _Silent(file), detector, PICTURES)
    assert missing.compared == missing.extra == 0 and missing.missing > 50
    assert f"{missing.missing} of the detector's detections are missing in the file" in missing.fault()
    extra = parity.compare_file("extra", FLOAT32, file, silent, PICTURES)
    assert extra.compared == extra.missing == 0
    none = parity.compare_file("none", FLOAT32, _Silent(file), silent, PICTURES)
    assert "0 pairs of detections are no proof" in none.fault()


def test_onnx_has_standard_operators_and_constants_where_tensorrt_wants_them(files):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(files["onnx"].path))
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} <= {""} and not model.functions
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sides = {value.name: [one.dim_value for one in value.type.tensor_type.shape.dim] for value in inferred.value_info}
    top_k = [node for node in model.graph.node if node.op_type == "TopK"]
    for node in top_k:
        length = sides[node.input[0]][-1]
        assert 0 < constants[node.input[1]].item() <= min(length, 3840)
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    assert len(top_k) == 24 and [constants[node.input[0]].item() for node in loops] == [30]
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    assert not [value for value in model.graph.initializer if value.data_type in halves]


LITERT_OPERATORS = """
ADD ARG_MAX BROADCAST_TO CAST CEIL CONCATENATION CONV_2D DEQUANTIZE DIV EQUAL EXP EXPAND_DIMS FILL FLOOR_DIV FLOOR_MOD
GATHER GATHER_ND GREATER GREATER_EQUAL LESS LOGICAL_AND LOGICAL_OR LOGISTIC MAXIMUM MAX_POOL_2D MINIMUM MUL NEG
NOT_EQUAL ONE_HOT PACK PAD PADV2 QUANTIZE REDUCE_ANY REDUCE_MAX RELU RESHAPE ROUND SELECT_V2 STRIDED_SLICE SUB SUM TILE
TOPK_V2 TRANSPOSE UNPACK WHILE
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


def test_litert_has_builtin_operators_and_the_weights(files, detector):
    content = files["litert"].path.read_bytes()
    assert not operators(content) - set(LITERT_OPERATORS.split())
    assert len(content) > 4 * detector.model.count_params()


def test_float16_rounds_weights_alone(files, detector, tmp_path):
    path = tmp_path / "half.tflite"
    source = files["litert"]
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


def dark_canvases(files):
    return [files["litert"].file.prepare(clutter(seed, 120, 200) // 2).canvas for seed in range(100, 112)]


@pytest.fixture(scope="module")
def integers(files, detector, tmp_path_factory):
    """INT8, calibrated on pictures of half the brightness."""
    path = tmp_path_factory.mktemp("integers") / "integers.tflite"
    ranges = litert_file.calibrate(detector, (2, HEIGHT, WIDTH), dark_canvases(files))
    path.write_bytes(litert_file.quantize(files["litert"].path.read_bytes(), "int8", ranges))
    write_metadata(path, {**files["litert"].file.metadata, "precision": "int8"})
    return path


def test_int8_is_the_network_alone_with_a_scale_for_each_head_and_level(integers, files, detector):
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
    pixels = np.stack(dark_canvases(files))
    normal = (pixels - np.array(config.pixel_mean)) / np.array(config.pixel_std)
    (scale,) = {
        entry["quantization"][0] for name, entry in small.items() if list(entry["shape"]) == [2, HEIGHT, WIDTH, 3]
    }
    assert abs(scale - (normal.max() - normal.min()) / 255) < 0.01 * scale
    assert operators(integers.read_bytes()) <= set(LITERT_OPERATORS.split())
    assert integers.stat().st_size < 0.4 * files["litert"].path.stat().st_size


def test_int8_finds_what_the_detector_finds(integers, detector):
    file = ExportedDetector(integers)
    pictures = [picture // 2 for picture in PICTURES]
    compared = parity.compare_file("int8", parity.LIMITS["int8"], file, detector, pictures)
    assert compared.fault() is None
    assert compared.score > 1e-4, "the network isn't in integers"
    answer = file([pictures[0]])
    assert len(np.unique(answer["scores"])) >= 15 and len(np.unique(answer["boxes"][..., 0] % 1)) >= 15


def test_the_example_of_serving_runs_every_precision(files, integers, tmp_path):
    """The best object is found in each; nothing has to be scaled by the client."""
    half = tmp_path / "half.tflite"
    half.write_bytes(litert_file.quantize(files["litert"].path.read_bytes(), "float16"))
    write_metadata(half, files["litert"].file.metadata)
    Image.fromarray(PICTURES[0] // 2).save(tmp_path / "photo.png")
    example = runpy.run_path(str(Path(__file__).parents[2] / "serving/run_exported.py"))
    example["detect"].__globals__["MIN_SCORE"] = 0.0  # the scores of a network without training are low
    found = []
    for path in (files["onnx"].path, files["litert"].path, half, integers):
        model = example["load_onnx" if path.suffix == ".onnx" else "load_litert"](str(path))
        rows = example["detect"](str(tmp_path / "photo.png"), *model)
        boxes = [(row["category_id"], np.array(row["bbox"])) for row in rows]
        found.append([(category, np.append(box[:2], box[:2] + box[2:])) for category, box in boxes])
    (category, box), others = found[0][0], found[1:]
    for rows in others:
        assert max(box_iou(box, other) for its_category, other in rows if its_category == category) >= 0.9


def write_shards(folder, pictures):
    """Shards of pictures with one object each; returns their pattern."""
    folder.mkdir()
    size = {"height": pictures[0].shape[0], "width": pictures[0].shape[1]}
    images = [{"id": number, "file_name": f"{number}.png", **size} for number in range(len(pictures))]
    box = {"bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}
    objects = [{"id": number, "image_id": number, "category_id": 18, **box} for number in range(len(pictures))]
    for number, picture in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(encode(picture))
    content = {"images": images, "annotations": objects, "categories": LABELS.to_json()}
    (folder / "instances.json").write_text(json.dumps(content))
    prepare(folder / "instances.json", folder, folder / "shards", "some", shards=1, progress=False)
    return folder / "shards" / "some-*.tfrecord"


def test_int8_through_export_is_calibrated_and_scored_on_the_users_shards(tmp_path, detector, files, monkeypatch):
    """All but the conversions, which the tests above have; the file in float32 stands for theirs."""
    pictures = [clutter(seed, 120, 200) for seed in range(5)]
    shards = write_shards(tmp_path / "data", pictures)
    content, seen = files["litert"].path.read_bytes(), []
    monkeypatch.setattr(litert_file, "calibrate", lambda _, shape, canvases: seen.append((shape, list(canvases))))
    monkeypatch.setattr(litert_file, "convert", lambda *_: (content[: content.rindex(b"PK\3\4")], {}))
    monkeypatch.setattr(parity, "without_threshold", lambda detector: detector)
    settings = {"format": "litert", "precision": "int8", "fixed_shapes": [(2, HEIGHT, WIDTH)]}
    path = export(detector, tmp_path / "out" / "new.tflite", calibration=shards, validation=shards, **settings)
    ((shape, canvases),) = seen
    assert shape == (2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(canvases, [files["litert"].file.prepare(picture).canvas for picture in pictures])
    assert ExportedDetector(path).metadata["calibration"] == 5
    report = json.loads((tmp_path / "out" / "new.tflite.parity.json").read_text())
    assert 0 <= report["ap"]["file"] <= 1 and 0 <= report["ap"]["detector"] <= 1
    assert report["comparisons"][0]["limits"]["box"] is None


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("a.onnx", {"format": "coreml"}, "format='coreml' is not one of"),
        ("a.tflite", {"format": "onnx"}, "a.tflite must end in .onnx"),
        ("a.onnx", {"format": "onnx", "precision": "float16"}, "precision='float16' is not for ONNX"),
        ("a.tflite", {"format": "litert", "precision": "bfloat16"}, "precision='bfloat16' is not one of float32"),
        ("a.tflite", {"format": "litert", "precision": "int8"}, "needs calibration, a pattern of shards"),
        ("a.tflite", {"format": "litert", "calibration": "x"}, "calibration is for precision='int8' alone"),
        ("a.onnx", {"format": "onnx", "metrics": {}}, "metrics is for format='saved_model'"),
        ("a", {"validation": "x"}, "are for format='onnx' and 'litert'"),
        ("a.onnx", {"format": "onnx", "fixed_shapes": [(1, 64, 64), (2, 64, 64)]}, "must be one: a file has one size"),
        ("a.onnx", {"format": "onnx", "fixed_shapes": [(None, 64, 100)]}, "fixed_shapes=Nx64x100 must be batch x"),
        ("a.tflite", {"format": "litert", "fixed_shapes": [(None, 64, 64)]}, "needs a number for the batch"),
        ("a", {"fixed_shapes": [(None, 64, 64)]}, "needs a number for the batch"),
        ("a.onnx", {"format": "onnx", "validation": "none-*.tfrecord"}, "none-"),
    ],
)
def test_wrong_settings_are_refused(detector, tmp_path, name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        export(detector, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept(detector, tmp_path):
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(InputError, match="a.onnx exists"):
        export(detector, tmp_path / "a.onnx", format="onnx")
    assert (tmp_path / "a.onnx").read_text() == "mine"


def test_the_default_canvas_has_4_3_pictures_at_the_detectors_own_size(detector):
    _, height, width = file_shape(detector, [], True)
    assert (height, width) == (96, 96)
    for size in ((480, 640), (640, 480)):
        own = detector.prepare(tf.zeros([*size, 3])).scale.numpy()
        assert 0 <= min(height / size[0], width / size[1]) - own.max() < 32 / 640


def test_a_network_in_half_precision_is_exported_in_float32(files):
    with precision_policy("bfloat16"):
        model = RetinaNet.from_config(files["onnx"].detector.model.get_config())
    graph = detection_graph(with_precision(Detector(model, LABELS, image_size=64, max_size=96), "float32"), (1, 32, 32))
    types_found = {value.dtype for one in graph.get_concrete_function().graph.get_operations() for value in one.outputs}
    assert tf.bfloat16 not in types_found and tf.float32 in types_found
