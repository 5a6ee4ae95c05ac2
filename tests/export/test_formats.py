"""ONNX and LiteRT files: their answers are the detector's, and the report on that can fail."""

import dataclasses
import json
import os
import signal
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.errors import InputError
from retinanet_tf.export import formats, onnx_file, parity, saved_model
from retinanet_tf.export.formats import export
from retinanet_tf.export.frozen_graph import detection_graph
from retinanet_tf.export.saved_model import with_precision
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.predict import predict
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.runtime.exported import OUTPUTS, ExportedDetector
from tests.oracles import box_iou
from tests.small_detectors import clutter, small_detector
from tests.small_exports import HEIGHT, LABELS, PICTURES, WIDTH, exported, spread_out_detector, write_shards

pytestmark = pytest.mark.slow
FLOAT32 = parity.LIMITS["float32"]


@pytest.fixture(scope="module")
def files(onnx_export, litert_export):
    return {"onnx": onnx_export, "litert": litert_export}


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
    names = [file.path.name, f"{file.path.name}.parity.json"]
    assert sorted(entry.name for entry in file.path.parent.iterdir()) == names


def test_metadata_say_how_to_use_the_file(file, detector):
    metadata = ExportedDetector(file.path).metadata
    assert metadata["labels"] == [{"id": 1, "name": "a,b"}, {"id": 18, "name": "żółw"}, {"id": 90, "name": '"x"'}]
    assert metadata["detect"] == dataclasses.asdict(detector.config)
    assert metadata["preprocessing"]["padding"] == [round(mean) for mean in detector.model.config.pixel_mean]
    onnx = metadata["format"] == "onnx"
    assert metadata["input"] == {"batch": None if onnx else 2, "height": HEIGHT, "width": WIDTH}
    assert metadata["precision"] == "float32" and metadata["oldest_runtime"]
    assert not onnx or (metadata["opset"] <= 18 and metadata["ir_version"] <= 9)
    assert not onnx or {"Conv", "Loop", "ArgMax"} <= set(metadata["operators"])  # the last in the loop of NMS


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


@pytest.mark.once
def test_without_detections_an_answer_is_padding_alone(detector, tmp_path):
    """Of a file whose score threshold nothing reaches; that it is right is shown without a threshold."""
    silent = Detector(detector.model, LABELS, DetectConfig(score_threshold=0.999, max_detections=30), 64, 96)
    answer = exported(silent, tmp_path / "a.onnx", "onnx", "float32", [(2, HEIGHT, WIDTH)]).file(PICTURES)
    assert not answer["num_detections"].any() and not answer["scores"].any() and (answer["labels"] == -1).all()


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
    with pytest.raises(parity.DifferentAnswers, match=r"new.onnx isn't written: \d+ of the detector's det") as raised:
        export(other, tmp_path / "new.onnx", format="onnx", fixed_shapes=[(1, HEIGHT, WIDTH)])
    assert len(raised.value.report.table().splitlines()) >= 5 and isinstance(raised.value, InputError)
    assert not list(tmp_path.iterdir())


def test_sigterm_during_an_export_leaves_nothing(detector, tmp_path, monkeypatch):
    def convert(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(onnx_file, "convert", convert)
    with pytest.raises(SystemExit) as left:
        export(detector, tmp_path / "new" / "a.onnx", format="onnx", fixed_shapes=[(1, HEIGHT, WIDTH)])
    assert left.value.code == 143 and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class _Silent:
    """A file without any detection."""

    def __init__(self, file):
        self.prepare, self.input_shape, self._run = file.prepare, file.input_shape, file.run

    def run(self, canvases, sizes):
        answer = self._run(canvases, sizes)
        return {**answer, "num_detections": np.zeros_like(answer["num_detections"])}


@pytest.mark.once
def test_a_saved_model_is_compared_on_validation_data_or_generated_pictures(detector, tmp_path, monkeypatch):
    """And one whose answers are another detector's is refused. One SavedModel stands for all three that this takes."""
    shards = write_shards(tmp_path / "data", [clutter(seed, 120, 200) for seed in range(4)])
    real, written = saved_model.export, []

    def write(*arguments, check=None, **options):
        if check is None:
            return written[0]

        def kept(folder):
            written.append(folder)
            check(folder)

        return check(written[0]) if written else real(*arguments, check=kept, **options)

    monkeypatch.setattr(saved_model, "export", write)
    monkeypatch.setattr(parity, "without_threshold", lambda detector: detector)
    monkeypatch.setattr(formats, "PARITY_IMAGES", 4)
    folder = export(detector, tmp_path / "served", validation=shards)
    report = json.loads((folder / "assets.extra" / "parity.json").read_text())
    for compared in report["comparisons"]:
        assert compared["compared"] > 50 and compared["box"] < 0.01 and compared["score"] < 1e-5
        assert compared["missing"] == compared["extra"] == compared["off"] == 0
    assert report["fault"] is None and report["ap"]["file"] == pytest.approx(report["ap"]["detector"], abs=1e-6)
    written[0] = folder
    report = formats.export_saved_model(detector, tmp_path / "generated")[1]
    assert report.pictures == "4 pictures, generated" and report.comparisons[0].off == 0 and not report.ap
    broken = WrongClasses(detector.model, LABELS, detector.config, 64, 96)
    monkeypatch.setattr(saved_model, "with_precision", lambda *_: broken)
    with pytest.raises(parity.DifferentAnswers, match="detections are missing"):
        export(detector, tmp_path / "broken", validation=shards)


def test_unmatched_detections_count_on_both_sides_and_few_are_no_proof(files, detector):
    silent = Detector(detector.model, LABELS, DetectConfig(score_threshold=0.999, max_detections=30), 64, 96)
    file = files["onnx"].file
    missing = parity.compare_file("missing", FLOAT32, _Silent(file), detector, PICTURES)
    assert missing.compared == missing.extra == 0 and missing.missing > 50
    assert f"{missing.missing} of the detector's detections are missing in the file" in missing.fault()
    extra = parity.compare_file("extra", FLOAT32, file, silent, PICTURES)
    assert extra.compared == extra.missing == 0
    int8 = parity.compare_file("int8", parity.LIMITS["int8"], _Silent(file), detector, PICTURES)
    everything = parity.compare_file("all", FLOAT32, file, detector, PICTURES).compared
    assert int8.missing == everything > 100 and f"{everything} of the detector's detections are" in int8.fault()
    none = parity.compare_file("none", FLOAT32, _Silent(file), silent, PICTURES)
    assert "0 pairs of detections are no proof" in none.fault()


class _Moved:
    """The detector's own answers, `count` boxes of the first picture moved by `change(box, its class's candidates)`."""

    def __init__(self, file, detector, count, change):
        self.prepare, self.input_shape = file.prepare, file.input_shape
        self.detector, self.count, self.change = detector, count, change

    def run(self, canvases, sizes):
        given = tf.cast(canvases, tf.float32), tf.ones_like(sizes), tf.constant(sizes)
        answer = {name: value.numpy() for name, value in self.detector.detect_canvases(*given).items()}
        everything = parity.without_nms(self.detector).detect_canvases(*given)
        for index in range(self.count):
            same = everything["labels"][0] == answer["labels"][0, index]
            boxes = answer["boxes"][0]
            boxes[index] = self.change(boxes[index], everything["boxes"][0].numpy()[same])
        self.count = 0
        return answer


def _overlapping(box, candidates):
    overlap = np.array([box_iou(box, other) for other in candidates])
    return candidates[np.argmax(np.where(overlap < 0.99, overlap, 0))]


def test_candidates_of_any_number_are_compared():
    """`pre_nms_top_k` may be far above what there is; a detector has at most 100,000 detections."""
    detector, sizes = spread_out_detector(), tf.constant([[32.0, 32.0]])
    enough, more = (
        parity.without_nms(
            detector.with_config(dataclasses.replace(detector.config, pre_nms_top_k=top_k, score_threshold=0.0))
        ).detect_canvases(tf.zeros((1, 32, 32, 3)), tf.ones_like(sizes), sizes)
        for top_k in (1_000, 50_000)
    )
    count = int(enough["num_detections"][0])
    assert 500 < count == int(more["num_detections"][0])
    np.testing.assert_array_equal(more["boxes"][:, :count], enough["boxes"][:, :count])


def test_of_two_boxes_of_one_score_either_side_may_keep_its_own(files):
    """If the file's is one of the detector's candidates, and only in one of a hundred detections."""
    detector = spread_out_detector()
    predictor = detector.model.get_layer("class_subnet").predictor
    predictor.kernel.assign(tf.zeros_like(predictor.kernel))
    predictor.bias.assign(-tf.ones_like(predictor.bias))

    def compared(count, change):
        return parity.compare_file("", FLOAT32, _Moved(files["onnx"].file, detector, count, change), detector, PICTURES)

    one = compared(1, _overlapping)
    assert (one.compared, one.tied, one.off, one.missing, one.extra, one.box) == (150, 1, 0, 0, 0, 0)
    assert one.fault() is None
    assert "0 are extra, and 9 are others of the same score" in compared(9, _overlapping).fault()
    invented = compared(1, lambda box, _: box + [0, 0, 3, 0])
    assert (invented.tied, invented.off, invented.box) == (0, 1, 3)
    assert "1 of 150 detections are off by more than 0.5 pixels" in invented.fault()


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


def test_openvino_answers_as_the_detector(files, detector):
    openvino = pytest.importorskip("openvino")
    file = files["onnx"].file
    # In float32; on some CPUs it would choose bfloat16.
    model = openvino.Core().compile_model(files["onnx"].path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images, sizes):
        answer = model({"images": images, "sizes": sizes})
        return {name: answer[name] for name in OUTPUTS}

    other = types.SimpleNamespace(prepare=file.prepare, input_shape=file.input_shape, run=run)
    compared = parity.compare_file("OpenVINO", FLOAT32, other, detector, PICTURES)
    assert compared.fault() is None and compared.missing == compared.extra == compared.off == 0


def test_a_network_in_half_precision_is_exported_in_float32(files):
    model = RetinaNet.from_config({**files["onnx"].detector.model.get_config(), "precision": "bfloat16"})
    graph = detection_graph(with_precision(Detector(model, LABELS, image_size=64, max_size=96), "float32"), (1, 32, 32))
    types_found = {value.dtype for one in graph.get_concrete_function().graph.get_operations() for value in one.outputs}
    assert tf.bfloat16 not in types_found and tf.float32 in types_found
