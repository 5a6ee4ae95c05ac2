"""The run directory: what a job leaves there, that it goes on where it stopped, and which job it refuses."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from small_jobs import TINY, log_of, write_shards
from tensorboard.compat.proto import event_pb2

import retinanet_tf as rn
from retinanet_tf.evaluation.source import read_source
from retinanet_tf.inference import checkpoint
from retinanet_tf.training import callbacks, run_directory
from retinanet_tf.training import tensorboard as board
from retinanet_tf.training.optimizers import make_schedule


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Generated shards, train and val."""
    return write_shards(tmp_path_factory.mktemp("shapes"))


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
    rows = log_of(run_dir)
    assert [float(row["step"]) for row in rows] == [2, 4, 6]
    rate = make_schedule(TINY.train)
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], [rate(s) for s in (1, 3, 5)], rtol=1e-5)
    assert all(float(row["images_per_s"]) > 0 for row in rows[1:])
    assert [row["val_AP"] == "nan" for row in rows] == [True, False, True]


def test_the_best_weights_are_kept_beside_the_last(finished):
    run_dir, _ = finished
    best = json.loads((run_dir / "best.json").read_text())
    assert best["step"] == 4 and best["AP"] >= 0
    detector = checkpoint.load_detector(run_dir / "best.weights.h5")
    last = checkpoint.load_detector(run_dir)
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
    assert found["loss"] == [2, 4, 6] and found["learning_rate"] and found["val_AP"] == [4]
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
    board.Board(tmp_path, callbacks.Progress(1, 0, 1, lambda step: 0.0)).detections(Fixed(), source)
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
    loaded = checkpoint.load_detector(run_dir)
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


def test_a_run_from_before_a_field_existed_is_the_same_job(finished, shards):
    """A record without `mining` is of a job whose mining was the default."""
    run_dir, _ = finished
    path = run_dir / "run.json"
    record = json.loads(path.read_text())
    del record["config"]["loss"]["mining"]
    path.write_text(json.dumps(record))
    train, val = (str(shards / f"{name}-*.tfrecord") for name in ("train", "val"))
    assert run_directory.start(run_dir, TINY, rn.data.LabelMap.load(shards / "labels.json"), data=train, validation=val)


def test_no_shards_leave_no_run_directory(tmp_path):
    with pytest.raises(rn.InputError, match="nowhere"):
        rn.train(TINY, data=str(tmp_path / "nowhere-*.tfrecord"), run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_validation_shards_leave_no_run_directory(shards, tmp_path):
    """Or the command with the right pattern would be another job."""
    with pytest.raises(rn.InputError, match="no file matches .*nova"):
        train = str(shards / "train-*.tfrecord")
        rn.train(TINY, data=train, validation=str(shards / "nova-*.tfrecord"), run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_validation_of_other_categories_leaves_no_run_directory(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "other")
    labels = json.loads((shards / "labels.json").read_text())
    (tmp_path / "other/labels.json").write_text(json.dumps([{**row, "name": f"no {row['name']}"} for row in labels]))
    with pytest.raises(rn.InputError, match="is .* to the detector but 'no .*' in .*other"):
        train, val = str(shards / "train-*.tfrecord"), str(tmp_path / "other" / "val-*.tfrecord")
        rn.train(TINY, data=train, validation=val, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_made(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rn.InputError, match="file/run"):
        rn.train(TINY, data=str(shards / "train-*.tfrecord"), run_dir=str(tmp_path / "file" / "run"))


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(rn.InputError, match="run.json doesn.t exist"):
        checkpoint.load_detector(tmp_path)


def test_the_wrong_number_of_classes_names_both(shards, tmp_path):
    with pytest.raises(rn.InputError, match=r"--num_classes=80 disagrees with the 5 categories of .*labels.json"):
        rn.train(TINY.replace(num_classes=80), data=str(shards / "train-*.tfrecord"), run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
