"""The job: what it leaves behind, that it goes on where it stopped, and what it refuses."""

import csv
import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

import retinanet_tf as rn
from retinanet_tf import board, callbacks, faults, runs, training
from retinanet_tf.data import shapes
from retinanet_tf.data.reader import read_records
from retinanet_tf.evaluation_source import read_source
from retinanet_tf.optimization import linear_rule_excess, make_schedule
from retinanet_tf.strategies import Worker
from retinanet_tf.training import load_training_data

TINY = rn.presets["mini"].replace(
    backbone="resnet10_w16",
    fpn_channels=16,
    subnet_channels=16,
    subnet_depth=1,
    max_level=5,
    image_size=64,
    max_size=64,
    batch_size=4,
    steps=6,
    checkpoint_steps=2,
    warmup_steps=2,
    learning_rate=1e-3,
    eval_steps=4,
    log_steps=3,
)


# On one device: in one process, models of different sizes get the same key for TensorFlow's CPU collectives.
SMALLEST = TINY.replace(eval_steps=0, log_steps=0, strategy="one_device")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Generated shards, train and val."""
    folder = tmp_path_factory.mktemp("shapes")
    splits = shapes.generate(folder / "coco", num_train=24, num_val=6, image_size=64)
    for name, split in splits.items():
        rn.data.prepare(split.annotations, split.images, folder, name, shards=2, progress=False)
    return folder


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("run") / "whole"
    train, val = (str(shards / f"{name}-*.tfrecord") for name in ("train", "val"))
    model = rn.train(TINY, data=train, validation=val, run_dir=str(run_dir), verbose=0)
    return run_dir, model


def test_the_run_directory_holds_everything(finished):
    run_dir, _ = finished
    for name in ("flags.txt", "run.json", "labels.json", "log.csv", "model.weights.h5", "training.png"):
        assert (run_dir / name).stat().st_size > 0, name
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(metrics)
    record = json.loads((run_dir / "run.json").read_text())
    assert rn.Config.from_dict(record["config"]) == TINY
    assert {"tensorflow", "keras", "commit", "command"} <= set(record["made_by"])
    assert len((run_dir / "log.csv").read_text().splitlines()) == 1 + TINY.train.steps // TINY.train.checkpoint_steps


def test_the_log_has_rate_speed_and_ap(finished):
    """An epoch is a row; AP stands where it was measured: at the first epoch's end after every 4 steps."""
    run_dir, _ = finished
    with open(run_dir / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows] == [2, 4, 6]
    rate = make_schedule(TINY.train)
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], [rate(s) for s in (1, 3, 5)], rtol=1e-5)
    assert all(float(row["images_per_s"]) > 0 for row in rows[1:])
    assert [row["val_AP"] == "nan" for row in rows] == [True, False, True]


def test_the_best_weights_are_kept_beside_the_last(finished):
    run_dir, _ = finished
    best = json.loads((run_dir / "best.json").read_text())
    assert best["step"] == 4 and best["AP"] >= 0
    detector = runs.load_detector(run_dir / "best.weights.h5")
    last = runs.load_detector(run_dir)
    assert detector.label_map == last.label_map
    assert any((a != b).any() for a, b in zip(detector.model.get_weights(), last.model.get_weights(), strict=True))


def test_tensorboard_has_scalars_inputs_and_evaluated_pictures(finished):
    """The event file read back with TensorFlow's own record format."""
    run_dir, _ = finished
    found = {}
    for path in (run_dir / "tensorboard").iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    assert found["loss"][:2] == [2, 3] and found["learning_rate"] and found["val_AP"] == [4]
    assert found["input/0"] == [0] and set(found["evaluation/0"]) == {4, 6}


def test_the_evaluations_pictures_show_what_was_detected(shards, monkeypatch, tmp_path):
    """The boxes drawn are the detector's, beside the true ones, on the picture itself."""
    drawn = []
    monkeypatch.setattr(board, "draw_detections", lambda *args, **kw: drawn.append((args, kw)) or args[0])
    answer = {
        "boxes": np.array([[[1.0, 2, 30, 40]]], np.float32),
        "scores": np.array([[0.9]], np.float32),
        "labels": np.array([[2]]),
    }

    class Fixed:
        label_map = rn.data.LabelMap.load(shards / "labels.json")

        def __call__(self, images):
            return {name: tf.constant(value) for name, value in answer.items()}

    source = read_source(str(shards / "val-*.tfrecord"))
    board.Board(tmp_path, callbacks.Progress(1, 0, 1, lambda step: 0.0), 1).detections(Fixed(), source)
    assert len(drawn) == board.PICTURES
    for (image, boxes, labels, scores), settings in drawn:
        assert image.shape == (64, 64, 3)
        np.testing.assert_array_equal(boxes, answer["boxes"][0])
        np.testing.assert_array_equal(labels, [2])
        np.testing.assert_array_equal(scores, answer["scores"][0])
        assert settings["min_score"] == 0.3
    shown = sum(len(settings["ground_truth"][0]) for _, settings in drawn)
    known = {image["id"] for image in source.ground_truth["images"][: board.PICTURES]}
    assert shown == sum(annotation["image_id"] in known for annotation in source.ground_truth["annotations"])


def test_a_run_directory_gives_its_model_back(finished):
    run_dir, model = finished
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    loaded = runs.load_detector(run_dir)
    for name, value in model(images, training=False).items():
        np.testing.assert_array_equal(loaded.model(images, training=False)[name], value)
    assert loaded.label_map.ids == rn.data.LabelMap.load(run_dir / "labels.json").ids
    assert (loaded.image_size, loaded.config) == (64, TINY.detect)


def test_an_interrupted_job_goes_on_to_the_same_weights(finished, shards, tmp_path, monkeypatch, capsys):
    """Stopped inside the third epoch and started again: the weights of a run that was never stopped."""
    _, whole = finished
    train = str(shards / "train-*.tfrecord")
    save = callbacks.SaveState.on_epoch_end

    def save_then_stop(self, epoch, logs=None):
        save(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.SaveState, "on_epoch_end", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        rn.train(TINY, data=train, run_dir=str(tmp_path / "run"), verbose=0)
    monkeypatch.undo()
    model = rn.train(TINY, data=train, run_dir=str(tmp_path / "run"), verbose=0)
    assert "going on after 4 of 6 steps" in capsys.readouterr().out
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_finished_run_is_not_trained_again(finished, shards, capsys):
    run_dir, model = finished
    train, val = (str(shards / f"{name}-*.tfrecord") for name in ("train", "val"))
    again = rn.train(TINY, data=train, validation=val, run_dir=str(run_dir), verbose=2)
    printed = capsys.readouterr().out
    assert "is finished" in printed and "Epoch" not in printed
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_another_job_in_the_same_directory_is_refused(finished, shards):
    run_dir, _ = finished
    changed = TINY.replace(learning_rate=0.5, gamma=1.0)
    with pytest.raises(rn.InputError, match=r"run_dir=.* holds a job that differs in gamma, learning_rate, validation"):
        rn.train(changed, data=str(shards / "train-*.tfrecord"), run_dir=str(run_dir))


def test_a_loss_that_explodes_is_said_with_the_images_and_not_kept(shards, tmp_path):
    """A learning rate of 1e38: the job stops at that step and names the images, which are those of that step."""
    # The class bias alone goes to some 1e37 after one step, and the losses of all anchors add up to infinity.
    # One epoch, so that nothing is saved before.
    job = {"optimizer": "sgd", "warmup_steps": 0, "strategy": "one_device", "eval_steps": 0, "checkpoint_steps": 6}
    config = TINY.replace(learning_rate=1e38, **job)
    run_dir, train = tmp_path / "run", str(shards / "train-*.tfrecord")
    with pytest.raises(rn.InputError, match="became NaN or infinite, with the images .* no state was saved") as error:
        rn.train(config, data=train, run_dir=str(run_dir), verbose=0)
    assert not (run_dir / "model.weights.h5").exists()
    assert not list(run_dir.glob("checkpoints/step-*"))
    (path,) = run_dir.glob("nonfinite_step_*.npz")
    step = int(path.stem.rsplit("_", 1)[1])
    assert step > 0  # the first loss is that of the fresh weights
    saved = np.load(path)
    images, objects = next(iter(load_training_data(config, train, step)))
    np.testing.assert_array_equal(saved["images"], images)
    np.testing.assert_array_equal(saved["boxes"], objects["boxes"])
    # The ids belong to those images: their own boxes are the batch's, found by id in the annotations.
    truth = {str(record.annotations.image_id): record.annotations for record in read_records(train)}
    for image_id, boxes, labels in zip(saved["image_ids"], objects["boxes"], objects["labels"], strict=True):
        assert str(image_id) in str(error.value)
        areas = np.sort([(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes.numpy()[labels.numpy() >= 0]])
        exact = truth[str(image_id)].boxes
        np.testing.assert_allclose(areas, np.sort((exact[:, 2:] - exact[:, :2]).prod(axis=1)), rtol=1e-3)


@pytest.fixture(scope="module")
def plain_losses(shards, tmp_path_factory):
    """Losses of four plain steps in float32."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    config = SMALLEST.replace(steps=4)
    rn.train(config, data=str(shards / "train-*.tfrecord"), run_dir=str(run_dir), verbose=0)
    return losses(run_dir)


@pytest.mark.parametrize("changes", [{"precision": "float16", "accumulation": 2}, {"precision": "bfloat16"}])
def test_averages_and_low_precision_train_and_are_what_is_evaluated(shards, plain_losses, tmp_path, changes):
    """The result's weights are float32 averages, not the last step's; the loss stays close to float32's."""
    config = SMALLEST.replace(ema_decay=0.9, steps=4, **changes)
    train, val = (str(shards / f"{name}-*.tfrecord") for name in ("train", "val"))
    run_dir = tmp_path / "run"
    model = rn.train(config, data=train, validation=val, run_dir=str(run_dir), verbose=0)
    assert {weight.dtype for weight in model.get_weights()} == {np.dtype(np.float32)}
    checkpoint = tf.train.load_checkpoint(str(run_dir / "checkpoints"))
    names = checkpoint.get_variable_to_shape_map()
    stored = {
        kind: [
            checkpoint.get_tensor(f"{kind}/{i}/.ATTRIBUTES/VARIABLE_VALUE") for i in range(len(model.weights) + extra)
        ]
        for kind, extra in (("weights", 0), ("average", 1))
    }
    assert f"weights/{len(model.weights)}/.ATTRIBUTES/VARIABLE_VALUE" not in names
    assert stored["average"][0] == 4
    for ours, average in zip(model.get_weights(), stored["average"][1:], strict=True):
        np.testing.assert_array_equal(ours, average)
    assert any((a != w).any() for a, w in zip(stored["average"][1:], stored["weights"], strict=True))
    np.testing.assert_allclose(losses(run_dir), plain_losses, rtol=0.05)


def losses(run_dir):
    """Of each epoch."""
    with open(run_dir / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_xla_computes_the_same_job(shards, tmp_path):
    for xla in (True, False):
        config = SMALLEST.replace(xla=xla, steps=3, checkpoint_steps=1, subnet_norm="none")
        rn.train(config, data=str(shards / "train-*.tfrecord"), run_dir=str(tmp_path / str(xla)), verbose=0)
    np.testing.assert_allclose(losses(tmp_path / "True"), losses(tmp_path / "False"), rtol=1e-3)


@pytest.mark.parametrize("name", ["lookahead_sgd", "novograd"])
def test_optimizers_of_tensorflow_addons_by_name(shards, tmp_path, name):
    config = SMALLEST.replace(optimizer=name, steps=2)
    job = {"data": str(shards / "train-*.tfrecord"), "run_dir": str(tmp_path / "run"), "verbose": 0}
    if importlib.util.find_spec("tensorflow_addons") is None:
        with pytest.raises(rn.InputError, match=f"--optimizer={name} is TensorFlow Addons'.* Python 3.10 or 3.11"):
            rn.train(config, **job)
        return
    rn.train(config, **job)
    assert np.isfinite(losses(tmp_path / "run")).all()


def test_settings_that_exclude_each_other(shards, tmp_path):
    job = {"data": str(shards / "train-*.tfrecord"), "run_dir": str(tmp_path / "run"), "verbose": 0}
    for changes, sentence in (
        ({"bias_lr_factor": 2.0}, "--bias_lr_factor works with --optimizer=sgd"),
        ({"accumulation": 2, "mining": "ohem"}, "--accumulation=2 with --mining=ohem needs --normalizer=image"),
        ({"batch_size": 3}, r"--batch_size=3 must be a multiple of 2 \(2 devices, --accumulation=1\)"),
        ({"devices": 3}, r"--devices=3 is more than the 2 CPU device\(s\) here"),
    ):
        with pytest.raises(rn.InputError, match=sentence):
            rn.train(TINY.replace(**changes), **job)


def test_a_rate_far_above_the_linear_rule_is_warned_of(caplog, capsys):
    """§4.1 has 0.01 for 16 images: 0.02 for 4 is 8 times that."""
    config = TINY.replace(optimizer="sgd", learning_rate=0.02)
    assert linear_rule_excess(config.train, 4) == pytest.approx(8.0)
    with caplog.at_level("WARNING", "absl"):
        training._announce(config, 1)
    assert "8.0 times what the linear rule gives for a batch of 4" in caplog.text
    assert "6 steps of 4 images on 1 device(s); sgd, learning rate 0.02" in capsys.readouterr().out


def test_anchors_that_never_match_are_said_once(caplog):
    progress = callbacks.Progress(100, 0, 4, lambda step: 0.0)
    watch = callbacks.WatchLosses(progress)
    with caplog.at_level("WARNING", "absl"):
        for batch in range(60):
            watch.on_train_batch_end(batch, {"loss": 1.0, "box_deltas_loss": 0.0})
            assert ("no anchor matched any object in 50 steps" in caplog.text) == (batch >= 49)
    assert caplog.text.count("no anchor matched") == 1


@pytest.mark.parametrize(
    "done, expected",
    [(0, [(0, 2, 4), (2, 3, 2)]), (4, [(1, 2, 4), (2, 3, 2)]), (5, [(1, 2, 3), (2, 3, 2)]), (10, [])],
)
def test_epochs_end_at_checkpoints_wherever_a_job_begins(done, expected):
    """10 steps with a checkpoint every 4."""
    assert list(training._segments(done, 10, 4)) == expected


def test_a_run_from_before_a_field_existed_is_the_same_job(finished, shards):
    """A record without `mining` is of a job whose mining was the default."""
    run_dir, _ = finished
    path = run_dir / "run.json"
    record = json.loads(path.read_text())
    del record["config"]["loss"]["mining"]
    path.write_text(json.dumps(record))
    train, val = (str(shards / f"{name}-*.tfrecord") for name in ("train", "val"))
    assert runs.start(run_dir, TINY, rn.data.LabelMap.load(shards / "labels.json"), data=train, validation=val)


def test_the_wrong_number_of_classes_names_both(shards, tmp_path):
    with pytest.raises(rn.InputError, match=r"--num_classes=80 disagrees with the 5 categories of .*labels.json"):
        rn.train(TINY.replace(num_classes=80), data=str(shards / "train-*.tfrecord"), run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_shards_leave_no_run_directory(tmp_path):
    with pytest.raises(rn.InputError, match="nowhere"):
        rn.train(TINY, data=str(tmp_path / "nowhere-*.tfrecord"), run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_made(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rn.InputError, match="file/run"):
        rn.train(TINY, data=str(shards / "train-*.tfrecord"), run_dir=str(tmp_path / "file" / "run"))


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(rn.InputError, match="run.json doesn.t exist"):
        runs.load_detector(tmp_path)


def test_memory_too_small_for_a_step_is_a_sentence(tmp_path):
    """What a GPU says; a CPU's process is ended by the system instead."""
    job = faults.explained(rn.Config(), tmp_path, Worker(), newest=lambda: 0, batch_of=lambda step: None)
    with (
        pytest.raises(rn.InputError, match="for a step of 16 images of 600 px .OOM at x.; lower --batch"),
        job,
    ):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM at x\nmore")
