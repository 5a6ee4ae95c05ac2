"""Evaluation of whole splits: every image once, ids and sizes of the dataset, files, the callback."""

import json
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from datasets import write_coco
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.coco import METRICS, coco_scores
from retinanet_tf.evaluation.evaluator import CocoEvaluation, evaluate, report, score_results
from retinanet_tf.evaluation.source import read_source
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
    assert score_results(folder / source, results) == metrics


def test_both_sources_are_the_same_ground_truth(dataset):
    folder, content = dataset
    from_json = read_source(folder / "instances.json", folder / "images")
    from_shards = read_source(folder / "val-*.tfrecord")
    assert from_shards.instances["annotations"] == from_json.instances["annotations"]
    assert [image["id"] for image in from_shards.instances["images"]] == [image["id"] for image in content["images"]]
    results = [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 40, 40], "score": 0.5}]
    from_content, from_source = (coco_scores(truth, results) for truth in (content, from_shards.instances))
    assert from_content.metrics == from_source.metrics
    assert list(from_shards.encoded()) == list(from_json.encoded())
    first = [annotation["bbox"] for annotation in content["annotations"] if annotation["image_id"] == 1]
    np.testing.assert_allclose(from_json.boxes_of(1), [[x, y, x + w, y + h] for x, y, w, h in first])


def test_no_detection_at_all(dataset):
    metrics = evaluate(Oracle(dataset, blind=True), dataset[0] / "val-*.tfrecord", progress=False)
    assert metrics["AP"] == metrics["AR100"] == 0.0


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


def test_callback_logs_ap_beside_keras_callbacks(dataset, tmp_path, capsys):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = CocoEvaluation(Oracle(dataset), dataset[0] / "val-*.tfrecord", every=2)
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    history = model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=3, verbose=0, callbacks=[callback, log]).history
    np.testing.assert_allclose(history["val_AP"], [np.nan, 1.0, 1.0])
    assert sorted(callback.history) == [1, 2], "every second epoch, and the last"
    assert "val_AP50" in (tmp_path / "log.csv").read_text().splitlines()[0]
    assert "epoch 2: AP 1.000" in capsys.readouterr().out


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
        (("instances.json", "elsewhere"), "names 7 images that"),
    ],
)
def test_missing_input_is_named(dataset, arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate(Oracle(dataset), *(dataset[0] / argument for argument in arguments), progress=False)


@pytest.mark.parametrize(
    ("ids", "names", "message"), [([7, 5], ["cat", "x"], "category 5"), ([7], ["cup"], "category 7 is 'cup'")]
)
def test_another_datasets_detector_is_refused(dataset, ids, names, message):
    with pytest.raises(InputError, match=message):
        evaluate(Oracle(dataset, LabelMap(ids, names)), dataset[0] / "val-*.tfrecord", progress=False)


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
        read_source(tmp_path / "val-*.tfrecord")
