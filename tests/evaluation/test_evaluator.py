"""Evaluation over whole splits: every image once, ids and sizes of the dataset, files, the callback."""

import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.data.records.example import shard_name, to_example
from retinanet_tf.data.records.images import PreparedImage
from retinanet_tf.data.sources.annotations import ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.coco import coco_metrics
from retinanet_tf.evaluation.evaluator import (
    METRICS,
    CocoEvaluation,
    detect_all,
    evaluate,
    report,
    score_results,
    to_results,
)
from retinanet_tf.evaluation.source import read_source
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet

LABELS = LabelMap([4, 21, 90], ["cat", "dog", "cup"])
SIZES = [(60, 80), (80, 60), (100, 40), (60, 80), (64, 64), (50, 90), (80, 60)]


def picture(number, height, width):
    """A PNG whose red value says which image it is."""
    pixels = np.full((height, width, 3), (10 * number + 5, 60, 200), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Seven images of five sizes, 15 objects, one a crowd, one image empty: as COCO files and as two shards."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    images, examples = [], []
    for number, (height, width) in enumerate(SIZES):
        count = 0 if number == 4 else int(rng.integers(1, 5))
        corner = rng.uniform(0, [width - 30, height - 30], (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 30, (count, 2))], 1)
        entry = ImageAnnotations(
            image_id=1000 - number,
            file_name=f"{number}.png",
            width=width,
            height=height,
            boxes=boxes,
            category_ids=rng.choice(LABELS.ids, count),
            area=np.prod(boxes[:, 2:] - boxes[:, :2], 1) * 0.7,
            iscrowd=np.arange(count) == (1 if number == 2 else -1),
            annotation_ids=100 * number + np.arange(count),
        )
        images.append(entry)
        encoded = picture(number, height, width)
        (folder / entry.file_name).write_bytes(encoded)
        examples.append(to_example(PreparedImage(encoded, "png", width, height), entry, LABELS))
    for shard, part in enumerate((examples[:4], examples[4:])):
        with tf.io.TFRecordWriter(str(folder / shard_name("val", shard, 2))) as writer:
            for example in part:
                writer.write(example)
    LABELS.save(folder / "labels.json")
    annotations = [
        {
            "id": int(entry.annotation_ids[i]),
            "image_id": entry.image_id,
            "category_id": int(entry.category_ids[i]),
            "bbox": [*entry.boxes[i, :2].tolist(), *(entry.boxes[i, 2:] - entry.boxes[i, :2]).tolist()],
            "area": float(entry.area[i]),
            "iscrowd": int(entry.iscrowd[i]),
        }
        for entry in images
        for i in range(len(entry))
    ]
    truth = {
        "images": [{"id": i.image_id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in images],
        "annotations": annotations,
        "categories": LABELS.to_json(),
    }
    (folder / "val.json").write_text(json.dumps(truth))
    return folder, images, truth


class Knowing(Detector):
    """A detector that recognises an image by its colour and answers its ground truth; counts what it is asked."""

    def __init__(self, images, labels=LABELS):
        self.images, self.label_map, self.asked, self.batches = images, labels, [], []
        self.config, self.image_size, self.max_size = DetectConfig(max_detections=6), 64, 96

    def prepare(self, image):
        return image, tf.ones(2), tf.cast(tf.shape(image)[:2], tf.float32)

    def detect_prepared(self, prepared):
        self.batches.append(len(prepared))
        assert len({tuple(canvas.shape) for canvas, _, _ in prepared}) == 1, "equal canvases are batched"
        boxes, labels, counts = [], [], []
        for canvas, _, _ in prepared:
            number = int(canvas[0, 0, 0]) // 10
            self.asked.append(number)
            entry = self.images[number]
            known = [i for i in range(len(entry)) if not entry.iscrowd[i]]
            counts.append(len(known))
            missing = 6 - len(known)
            boxes.append(np.pad(entry.boxes[known].reshape(-1, 4), [(0, missing), (0, 0)]).astype(np.float32))
            indices = [self.label_map.to_index(int(entry.category_ids[i])) for i in known]
            labels.append(np.pad(np.array(indices, np.int32), (0, missing), constant_values=-1))
        scores = np.tile(np.linspace(0.9, 0.4, 6, dtype=np.float32), (len(counts), 1))
        answer = {"boxes": np.array(boxes), "scores": scores, "labels": np.array(labels), "num_detections": counts}
        return {name: tf.constant(value) for name, value in answer.items()}


@pytest.mark.parametrize("source", ["val.json", "val-*.tfrecord"])
def test_known_answers_score_one_from_either_source(dataset, source, tmp_path):
    folder, images, _ = dataset
    detector = Knowing(images)
    metrics = evaluate(detector, folder / source, folder, batch_size=2, output=tmp_path / "out", progress=False)
    assert sorted(detector.asked) == list(range(7)), "every image once, though batches don't divide evenly"
    assert max(detector.batches) == 2
    assert metrics["AP"] == metrics["AP50"] == pytest.approx(1.0)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {name: written[name] for name in METRICS} == metrics
    assert set(written["per_category"]) == {"cat", "dog", "cup"} and written["images"] == 7
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {result["image_id"] for result in results} <= {image.image_id for image in images}
    assert {result["category_id"] for result in results} <= {4, 21, 90}
    # Ours written, scored again: the same numbers.
    assert score_results(folder / source, results) == metrics


def test_both_sources_are_the_same_ground_truth(dataset):
    folder, _, truth = dataset
    from_json = read_source(folder / "val.json", folder)
    from_shards = read_source(folder / "val-*.tfrecord")
    assert from_shards.ground_truth["annotations"] == from_json.ground_truth["annotations"]
    assert [i["id"] for i in from_shards.ground_truth["images"]] == [i["id"] for i in truth["images"]]
    results = [{"image_id": 1000, "category_id": 4, "bbox": [0, 0, 40, 40], "score": 0.5}]
    assert coco_metrics(truth, results) == coco_metrics(from_shards.ground_truth, results)
    assert list(from_shards.encoded()) == list(from_json.encoded())


def test_a_real_network_batched_equals_one_by_one(dataset):
    """The whole path on a small network: what evaluate scores is what the detector answers for each image alone."""
    folder, images, truth = dataset
    keras.utils.set_random_seed(1)
    config = presets["mini"].replace(
        num_classes=3, backbone="resnet10_w16", image_size=64, max_size=96, fpn_channels=16, subnet_channels=16
    )
    model = RetinaNet.from_config(config)
    detector = Detector(model, LABELS, DetectConfig(score_threshold=0.001, max_detections=20))
    encoded = [(folder / image.file_name).read_bytes() for image in images]
    together = dict(detect_all(detector, encoded, batch_size=3))
    assert sorted(together) == list(range(7))
    results = []
    for number, one in enumerate(encoded):
        alone = {name: value[0].numpy() for name, value in detector([one]).items()}
        count = alone["num_detections"]
        assert count == len(together[number]["scores"]) > 0
        np.testing.assert_allclose(together[number]["scores"], alone["scores"][:count], atol=1e-5)
        height, width = SIZES[number]
        assert np.all(together[number]["boxes"] <= [width, height, width, height])
        results += to_results(together[number], images[number].image_id, LABELS.ids)
    metrics = evaluate(detector, folder / "val.json", folder, progress=False)
    assert metrics == pytest.approx(coco_metrics(truth, results))


def test_no_detection_at_all(dataset):
    folder, images, _ = dataset
    silent = Knowing([ImageAnnotations(image.image_id, image.file_name) for image in images])
    metrics = evaluate(silent, folder / "val.json", folder, progress=False)
    assert metrics["AP"] == metrics["AR100"] == 0.0


def test_results_keep_scores_and_boxes():
    found = {
        "boxes": np.array([[1.23456, 2, 11.23456, 22]], np.float32),
        "scores": np.array([1 / 3], np.float32),
        "labels": np.array([2]),
    }
    (result,) = to_results(found, 17, LABELS.ids)
    assert np.float32(result["score"]) == np.float32(1 / 3)
    assert result["bbox"] == pytest.approx([1.235, 2, 10, 20], abs=1e-6)
    assert (result["image_id"], result["category_id"]) == (17, 90)


def test_submission_is_named_as_the_server_wants_it(dataset, tmp_path):
    folder, images, _ = dataset
    evaluate(Knowing(images), folder / "val.json", folder, output=tmp_path, submission="retinanet", progress=False)
    named = tmp_path / "detections_test-dev2017_retinanet_results.json"
    assert named.read_bytes() == (tmp_path / "detections.json").read_bytes()


def test_a_split_without_annotations_is_detected_on_and_not_scored(dataset, tmp_path):
    """COCO's image_info files: detections for the server, and no number made up."""
    folder, images, _ = dataset
    content = json.loads((folder / "val.json").read_text())
    del content["annotations"]
    (tmp_path / "image_info.json").write_text(json.dumps(content))
    detector = Knowing(images)
    metrics = evaluate(
        detector, tmp_path / "image_info.json", folder, output=tmp_path, submission="mine", progress=False
    )
    assert set(metrics.values()) == {-1.0}
    found = json.loads((tmp_path / "detections_test-dev2017_mine_results.json").read_text())
    assert found and {row["image_id"] for row in found} <= {image["id"] for image in content["images"]}


def test_callback_logs_ap_and_goes_with_keras_callbacks(dataset, tmp_path, capsys):
    folder, images, _ = dataset
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = CocoEvaluation(Knowing(images), folder / "val-*.tfrecord", every=2)
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    history = model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=3, verbose=0, callbacks=[callback, log]).history
    assert np.isnan(history["val_AP"][0]) and history["val_AP"][1:] == pytest.approx([1.0, 1.0])
    assert sorted(callback.history) == [1, 2], "every second epoch, and the last"
    assert "val_AP50" in (tmp_path / "log.csv").read_text().splitlines()[0]
    assert "epoch 2: AP 1.000" in capsys.readouterr().out
    with pytest.raises(InputError, match="'mAP'"):
        CocoEvaluation(Knowing(images), folder / "val-*.tfrecord", metrics=("mAP",))


def test_report_shows_percent_and_undetermined():
    text = report({name: -1.0 if name == "APl" else 0.3456 for name in METRICS})
    assert text.count("34.6") == 11 and text.count("—") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none-*.tfrecord",), "no file matches"),
        (("missing.json", ""), r"missing\.json"),
        (("val.json",), "needs the folder of its images"),
        (("val.json", "elsewhere"), "names 7 images that"),
    ],
)
def test_input_that_is_not_there(dataset, arguments, message):
    folder, images, _ = dataset
    with pytest.raises(InputError, match=message):
        evaluate(Knowing(images), *(folder / argument for argument in arguments), progress=False)


def test_another_datasets_detector_is_refused(dataset):
    folder, images, _ = dataset
    for labels, message in ((LabelMap([4, 5], ["cat", "x"]), "category 5"), (LabelMap([4], ["cup"]), "'cup'")):
        with pytest.raises(InputError, match=message):
            evaluate(Knowing(images, labels), folder / "val.json", folder, progress=False)


def test_image_that_does_not_decode_is_named(dataset, tmp_path):
    folder, images, truth = dataset
    for image in images:
        (tmp_path / image.file_name).write_bytes((folder / image.file_name).read_bytes())
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"3\.png"):
        evaluate(Knowing(images), folder / "val.json", tmp_path, progress=False)


def test_broken_shard_is_named(dataset, tmp_path):
    folder = dataset[0]
    content = (folder / "val-00000-of-00002.tfrecord").read_bytes()
    (tmp_path / "val-00000-of-00001.tfrecord").write_bytes(content[:-20])
    LABELS.save(tmp_path / "labels.json")
    with pytest.raises(InputError, match=r"record \d+ of .*val-00000-of-00001.tfrecord is damaged"):
        read_source(tmp_path / "val-*.tfrecord")
