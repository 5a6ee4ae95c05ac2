"""Evaluation of whole splits: every image once, ids and sizes of the dataset, files, the callback."""

import json
import logging
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from datasets import write_coco
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.records.example import to_example
from retinanet_tf.data.records.images import PreparedImage
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation import evaluator
from retinanet_tf.evaluation.coco import METRICS, coco_scores
from retinanet_tf.evaluation.evaluator import CocoEvaluation, analyse_results, evaluate, report
from retinanet_tf.evaluation.source import open_source
from retinanet_tf.inference.detector import Prepared

LABEL_MAP = LabelMap([3, 7, 90], ["dog", "cat", "cup"])
SIZES = [(80, 60), (60, 80), (40, 100), (80, 60), (64, 64), (90, 50), (60, 80)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Seven images of five sizes, one crowd, one image without objects, areas of masks: COCO files and two shards."""
    folder = tmp_path_factory.mktemp("dataset")
    path, _ = write_coco(folder, SIZES, suffix=".png")
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["area"] *= 0.7
    path.write_text(json.dumps(content))
    prepare(path, folder / "images", folder, "val", shards=2, progress=False)
    return folder, content


class Oracle:
    """A detector that recognises an image by its pixels and answers its ground truth; counts what it is asked."""

    config = DetectConfig(max_detections=6)

    def __init__(self, dataset, label_map=LABEL_MAP, blind=False):
        folder, content = dataset
        self.label_map, self.blind, self.asked, self.batches = label_map, blind, Counter(), []
        self.images = {}
        for image in content["images"]:
            rows = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
            self.images[np.asarray(Image.open(folder / "images" / image["file_name"])).tobytes()] = (image["id"], rows)

    def describe(self):
        return {"oracle": True}

    def prepare(self, image):
        return Prepared(image, tf.ones(2), tf.cast(tf.shape(image)[:2], tf.float32))

    def detect_prepared(self, batch):
        self.batches.append(len(batch))
        assert len({tuple(image.canvas.shape) for image in batch}) == 1, "equal canvases are batched"
        boxes, labels = np.zeros((len(batch), 6, 4), np.float32), np.full((len(batch), 6), -1)
        counts = []
        for row, image in enumerate(batch):
            image_id, objects = self.images[image.canvas.numpy().tobytes()]
            self.asked[image_id] += 1
            counts.append(0 if self.blind else len(objects))
            for rank, annotation in enumerate(objects[: counts[-1]]):
                x, y, width, height = annotation["bbox"]
                boxes[row, rank] = x, y, x + width, y + height
                labels[row, rank] = self.label_map.to_index(annotation["category_id"])
        scores = np.tile(np.linspace(0.9, 0.4, 6, dtype=np.float32), (len(batch), 1))
        answer = {"boxes": boxes, "scores": scores, "labels": labels, "num_detections": counts}
        return {name: tf.constant(value) for name, value in answer.items()}


@pytest.mark.once
@pytest.mark.parametrize("source", ["instances.json", "val-*.tfrecord"])
def test_known_answers_score_one_from_either_source(dataset, source, tmp_path):
    folder, content = dataset
    detector = Oracle(dataset)
    metrics = evaluate(detector, folder / source, folder / "images", batch_size=2, output=tmp_path, progress=False)
    assert detector.asked == Counter(image["id"] for image in content["images"]), "every image once"
    assert max(detector.batches) == 2
    assert metrics["AP"] == metrics["AP50"] == pytest.approx(1.0)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: written[name] for name in METRICS} == metrics
    assert set(written["per_category"]) == {"cat", "dog", "cup"} and written["images"] == 7
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {row["category_id"] for row in results} <= {3, 7, 90}
    assert analyse_results(folder / source, results).metrics == metrics


def test_both_sources_are_the_same_ground_truth(dataset):
    folder, content = dataset
    from_json = open_source(folder / "instances.json", folder / "images")
    from_shards = open_source(folder / "val-*.tfrecord")
    assert from_shards.instances["annotations"] == from_json.instances["annotations"]
    assert [image["id"] for image in from_shards.instances["images"]] == [image["id"] for image in content["images"]]
    results = [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 40, 40], "score": 0.5}]
    from_content, from_source = (coco_scores(truth, results) for truth in (content, from_shards.instances))
    assert from_content.metrics == from_source.metrics
    assert list(from_shards.encoded()) == list(from_json.encoded())
    first = [annotation["bbox"] for annotation in content["annotations"] if annotation["image_id"] == 1]
    np.testing.assert_allclose(from_json.boxes_of(1), [[x, y, x + w, y + h] for x, y, w, h in first])


@pytest.mark.once
def test_a_json_in_capitals_is_one(dataset, tmp_path):
    folder, content = dataset
    path = tmp_path / "VAL.JSON"
    path.write_text(json.dumps(content))
    assert open_source(path, folder / "images").instances == open_source(folder / "val-*.tfrecord").instances
    found = analyse_results(path, [], output=tmp_path / "out")
    assert found.metrics == analyse_results(folder / "instances.json", []).metrics


def test_no_detection_at_all(dataset):
    metrics = evaluate(Oracle(dataset, blind=True), dataset[0] / "val-*.tfrecord", progress=False)
    assert metrics["AP"] == metrics["AR100"] == 0.0


@pytest.mark.once
def test_a_split_without_annotations_is_detected_on_and_not_scored(dataset, tmp_path):
    """COCO's image_info files: detections under the server's file name, and no made-up number."""
    folder, content = dataset
    (tmp_path / "image_info.json").write_text(json.dumps({**content, "annotations": []}))
    options = {"output": tmp_path, "submission": "mine", "progress": False}
    metrics = evaluate(Oracle(dataset), tmp_path / "image_info.json", folder / "images", **options)
    assert set(metrics.values()) == {-1.0}
    named = tmp_path / "detections_test-dev2017_mine_results.json"
    assert named.read_bytes() == (tmp_path / "detections.json").read_bytes()
    assert len(json.loads(named.read_text())) == sum(not row["iscrowd"] for row in content["annotations"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"submission": "team/x"}, "submission=team/x is part of a file's name"),
        ({"max_detections": 9}, "max_detections=9 must be at least 10"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
    ],
)
def test_settings_are_looked_at_before_anything_is_detected(dataset, tmp_path, options, sentence):
    detector = Oracle(dataset)
    detector.prepare = None
    with pytest.raises(InputError, match=sentence):
        evaluate(detector, dataset[0] / "val-*.tfrecord", output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_callback_logs_ap_beside_keras_callbacks(dataset, tmp_path, capsys):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = CocoEvaluation(Oracle(dataset), dataset[0] / "val-*.tfrecord", every=2)
    history = model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=3, verbose=0, callbacks=[callback]).history
    np.testing.assert_allclose(history["val_AP"], [1.0, 1.0])
    assert sorted(callback.history) == [1, 2], "every second epoch, and the last"
    assert "epoch 2: AP 1.000" in capsys.readouterr().out
    callbacks = [CocoEvaluation(Oracle(dataset), callback.source), keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))]
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=1, verbose=0, callbacks=callbacks)
    assert "val_AP50" in (tmp_path / "log.csv").read_text().splitlines()[0]


@pytest.mark.once
@pytest.mark.parametrize(("every", "patience"), [(5, 3), (2, 1), (7, 2)])
def test_epochs_without_evaluation_neither_stop_nor_win(dataset, tmp_path, monkeypatch, every, patience):
    """AP rises with every epoch: the job runs to its end, and the weights kept and restored are the last ones."""
    epochs, weight = 20, keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((1,)), weight])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    callback = CocoEvaluation(Oracle(dataset), dataset[0] / "val-*.tfrecord", every=every)
    rising = iter(range(epochs))
    monkeypatch.setattr(evaluator, "evaluate", lambda *_, **__: dict.fromkeys(METRICS, next(rising) / epochs))
    monitor = {"monitor": "val_AP", "mode": "max"}
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best.weights.h5"), **monitor, save_best_only=True, save_weights_only=True
    )
    stop = keras.callbacks.EarlyStopping(**monitor, patience=patience, restore_best_weights=True)
    last = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: last.append(weight.get_weights()[0].item()))
    history = model.fit(
        np.ones((4, 1)), np.zeros((4, 1)), epochs=epochs, verbose=0, callbacks=[callback, best, stop, keep]
    )
    assert len(history.epoch) == epochs
    assert weight.get_weights()[0].item() == last[-1]
    model.load_weights(tmp_path / "best.weights.h5")
    assert weight.get_weights()[0].item() == last[-1]


@pytest.mark.parametrize(("options", "message"), [({"metrics": ("mAP",)}, "'mAP'"), ({"every": 0}, "every=0")])
def test_wrong_options_of_the_callback(dataset, options, message):
    with pytest.raises(InputError, match=message):
        CocoEvaluation(Oracle(dataset), dataset[0] / "val-*.tfrecord", **options)


def test_report_shows_percent_and_undetermined():
    text = report({name: -1.0 if name == "APl" else 0.3456 for name in METRICS})
    assert text.count("34.6") == 11 and text.count("—") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none-*.tfrecord",), "no file matches"),
        (("missing.json", ""), "missing.json"),
        (("instances.json",), "needs the folder of its images"),
        (("instances.json", "elsewhere"), "000000.png of .* isn't in"),
    ],
)
def test_missing_input_is_named(dataset, arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate(Oracle(dataset), *(dataset[0] / argument for argument in arguments), progress=False)


@pytest.mark.parametrize(
    ("ids", "names", "message"),
    [
        ([7, 5], ["cat", "x"], "category 5"),
        ([7], ["cup"], "category 7 is 'cup'"),
        ([0, 1, 2], ["dog", "cat", "cup"], "category 0"),
        ([3, 7, 90, 91], ["dog", "cat", "bowl", "cup"], "category 90 is 'bowl'"),
    ],
)
def test_another_datasets_detector_is_refused(dataset, ids, names, message):
    with pytest.raises(InputError, match=message):
        evaluate(Oracle(dataset, LabelMap(ids, names)), dataset[0] / "val-*.tfrecord", progress=False)


def with_records(folder, dataset, ids=None, keep=lambda row: True, crowd=None):
    """The dataset's shards again, with other ids of images, fewer objects, or all of them crowds; their pattern."""
    records = list(read_records(dataset[0] / "val-*.tfrecord"))
    with tf.io.TFRecordWriter(str(folder / "val-00000-of-00001.tfrecord")) as writer:
        for number, record in enumerate(records):
            example = tf.train.Example.FromString(to_example_of(record, keep, crowd))
            if ids is not None:
                example.features.feature["image/source_id"].bytes_list.value[:] = ids[number]
            writer.write(example.SerializeToString())
    LABEL_MAP.save(folder / "labels.json")
    return folder / "val-*.tfrecord"


def to_example_of(record, keep, crowd):
    truth = record.annotations
    kept = [index for index, category in enumerate(truth.category_ids) if keep(category)]
    for name in ("boxes", "category_ids", "area", "iscrowd", "annotation_ids"):
        setattr(truth, name, getattr(truth, name)[kept])
    if crowd is not None:
        truth.iscrowd[:] = crowd
    prepared = PreparedImage(record.encoded, record.format, truth.width, truth.height)
    return to_example(prepared, truth, LABEL_MAP)


class Warnings(logging.Handler):
    """Collects the sentences of absl's logger."""

    def __init__(self):
        super().__init__()
        self.sentences = []

    def emit(self, record):
        self.sentences.append(record.getMessage())


@pytest.fixture
def warned():
    handler = Warnings()
    logging.getLogger("absl").addHandler(handler)
    yield handler.sentences
    logging.getLogger("absl").removeHandler(handler)


TEXTS = [b"a", b"a_flip", b"007", b"7", b"\xc3\xa9", b"12 (1)", b"12"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("ids", "written"),
    [
        (TEXTS, ["a", "a_flip", "007", 7, "é", "12 (1)", 12]),
        ([b"same"] * 7, range(1, 8)),
        ([b""] * 7, range(1, 8)),
        ([*TEXTS[:5], b"a", b"x"], range(1, 8)),
        ([*TEXTS[:6], b""], range(1, 8)),
    ],
)
def test_ids_of_records_never_mix_images(dataset, tmp_path, warned, ids, written):
    """Textual, mixed, repeated and missing ids: a perfect detector stays perfect, and its file can be scored again."""
    pattern = with_records(tmp_path, dataset, [[one] for one in ids])
    metrics = evaluate(Oracle(dataset), pattern, output=tmp_path / "out", progress=False)
    assert metrics == evaluate(Oracle(dataset), dataset[0] / "val-*.tfrecord", progress=False)
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {row["image_id"] for row in results} == set(list(written)[:6]), "the seventh image has no object"
    assert len(warned) == (0 if ids is TEXTS else 1)
    assert analyse_results(pattern, results).metrics == metrics


@pytest.mark.once
@pytest.mark.parametrize("missing", [{3}, {7, 90}])
def test_a_split_that_lacks_categories(dataset, tmp_path, missing):
    """AP of what is there, −1 for the categories that the annotations don't list; the file can be scored again."""
    folder, content = dataset
    fewer = {
        **content,
        "categories": [row for row in content["categories"] if row["id"] not in missing],
        "annotations": [row for row in content["annotations"] if row["category_id"] not in missing],
    }
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    metrics = evaluate(
        Oracle(dataset), tmp_path / "fewer.json", folder / "images", output=tmp_path / "out", progress=False
    )
    assert metrics["AP"] == pytest.approx(1.0)
    per_category = json.loads((tmp_path / "out" / "metrics.json").read_text())["per_category"]
    names = dict(zip(LABEL_MAP.ids, LABEL_MAP.names, strict=True))
    assert {name for name, value in per_category.items() if value == -1} == {names[one] for one in missing}
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert analyse_results(tmp_path / "fewer.json", results).metrics == metrics


def test_a_split_of_background_alone_counts_false_alarms(dataset, tmp_path, warned):
    pattern = with_records(tmp_path, dataset, keep=lambda category: False)
    metrics = evaluate(Oracle(dataset), pattern, progress=False)
    assert set(metrics.values()) == {-1.0}
    objects = [row for row in dataset[1]["annotations"] if not row["iscrowd"]]
    images = {row["image_id"] for row in objects}
    assert len(warned) == 1 and f"{len(objects)} detections" in warned[0] and f"{len(images)} of 7" in warned[0]


def test_a_split_of_crowds_alone_is_called_that(dataset, tmp_path, warned):
    pattern = with_records(tmp_path, dataset, crowd=True)
    assert evaluate(Oracle(dataset), pattern, progress=False)["AP"] == -1.0
    assert len(warned) == 1 and f"{len(dataset[1]['annotations'])} objects" in warned[0] and "crowds" in warned[0]


@pytest.mark.parametrize(("limit", "full"), [(10, 1), (11, 1), (12, 0)])
def test_more_objects_than_the_limit_are_said(tmp_path, warned, limit, full):
    """12 objects of a category on one image and 8 on another, all found."""
    rows = [(image, [20 * i, 0, 10, 10]) for image, count in ((1, 12), (2, 8)) for i in range(count)]
    content = {
        "images": [{"id": one, "file_name": f"{one}.png", "width": 300, "height": 20} for one in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 7, "bbox": box, "area": 100, "iscrowd": 0}
            for i, (image, box) in enumerate(rows)
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    results = [{"image_id": image, "category_id": 7, "bbox": box, "score": 0.9} for image, box in rows]
    metrics = analyse_results(tmp_path / "gt.json", results, max_detections=limit).metrics
    assert len(warned) == full and all(word in sentence for sentence in warned for word in (f"{limit}", "up to 12"))
    assert metrics["AR100"] == pytest.approx((limit + 8) / 20)


def test_a_detector_that_finds_too_few_is_said(dataset, warned):
    detector = Oracle(dataset)
    detector.config = DetectConfig(max_detections=1)
    evaluate(detector, dataset[0] / "val-*.tfrecord", progress=False)
    assert len(warned) == 1 and "2 objects per image" in warned[0]


@pytest.mark.once
@pytest.mark.parametrize("names", [["fish", "fish", "cup"], ["a", "a", "a"], ["a", "a (3)", "a"]])
def test_categories_of_one_name_all_have_their_number(dataset, tmp_path, names):
    folder, content = dataset
    named = dict(zip((3, 7, 90), names, strict=True))
    categories = [{"id": one, "name": name} for one, name in named.items()]
    (tmp_path / "gt.json").write_text(json.dumps({**content, "categories": categories}))
    results = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
        for row in content["annotations"]
        if not row["iscrowd"] and row["category_id"] != 3
    ]
    analyse_results(tmp_path / "gt.json", results, output=tmp_path / "out")
    per_category = json.loads((tmp_path / "out" / "metrics.json").read_text())["per_category"]
    assert list(per_category.values()) == pytest.approx([0.0, 1.0, 1.0])
    assert [key.removesuffix(f" ({one})") for key, one in zip(per_category, named, strict=True)] == names


def test_what_is_no_detector_is_refused(dataset):
    with pytest.raises(InputError, match="detector='runs/x' must be a Detector"):
        evaluate("runs/x", dataset[0] / "val-*.tfrecord")


@pytest.mark.parametrize("source", [3, None, {"images": []}])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(InputError, match="the source is of type"):
        open_source(source)


def test_a_broken_image_is_named(dataset, tmp_path):
    folder, content = dataset
    for image in content["images"]:
        (tmp_path / image["file_name"]).write_bytes((folder / "images" / image["file_name"]).read_bytes())
    (tmp_path / content["images"][3]["file_name"]).write_bytes(b"no picture")
    with pytest.raises(InputError, match=content["images"][3]["file_name"]):
        evaluate(Oracle(dataset), folder / "instances.json", tmp_path, progress=False)


def test_a_broken_shard_is_named(dataset, tmp_path):
    content = (dataset[0] / "val-00000-of-00002.tfrecord").read_bytes()
    (tmp_path / "val-00000-of-00001.tfrecord").write_bytes(content[:-20])
    LABEL_MAP.save(tmp_path / "labels.json")
    with pytest.raises(InputError, match=r"val-00000-of-00001.tfrecord"):
        open_source(tmp_path / "val-*.tfrecord")


def test_a_failed_detection_leaves_no_folder(dataset, tmp_path):
    class Broken(Oracle):
        def detect_prepared(self, batch):
            raise InputError("broken")

    folder = dataset[0]
    with pytest.raises(InputError, match="broken"):
        evaluate(Broken(dataset), folder / "instances.json", folder / "images", output=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
