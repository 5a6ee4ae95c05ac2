"""The run directory: its files, TensorBoard, resuming, and the jobs it refuses."""

import errno
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_jobs import TINY, log_of, write_shards
from tensorboard.compat.proto import event_pb2

import retinanet_tf as rn
from retinanet_tf import visualize
from retinanet_tf.evaluation.source import open_source
from retinanet_tf.inference import checkpoint
from retinanet_tf.training import callbacks, run_directory, tensorboard
from retinanet_tf.training.optimizers import make_schedule

LABELS = rn.data.LabelMap([1], ["a"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Generated shards, train and val."""
    return write_shards(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def jobs_data(shards):
    """The arguments of `train` that name the shards."""
    return {"data": str(shards / "train-*.tfrecord"), "validation": str(shards / "val-*.tfrecord")}


@pytest.fixture(scope="module", params=[pytest.param("whole", marks=pytest.mark.slow)])
def finished(jobs_data, tmp_path_factory):
    """The directory and the model of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("run") / "whole"
    return run_dir, rn.train(TINY, **jobs_data, run_dir=str(run_dir), verbose=0)


def test_the_run_directory_holds_everything(finished):
    run_dir, _ = finished
    for name in ("flags.txt", "run.json", "labels.json", "log.csv", "model.weights.h5", "training.png"):
        assert (run_dir / name).stat().st_size > 0, name
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(metrics)
    record = json.loads((run_dir / "run.json").read_text())
    assert rn.Config.from_dict(record["config"]) == TINY
    assert {"tensorflow", "keras", "commit", "command"} <= set(record["made_by"])
    header = (run_dir / "log.csv").read_text().splitlines()[0].split(",")
    assert [name for name in header if name.startswith("val_")] == ["val_AP", "val_AP50", "val_AP75"]
    assert len((run_dir / "log.csv").read_text().splitlines()) == 1 + TINY.train.steps // TINY.train.checkpoint_steps


def test_the_log_has_rate_speed_and_ap(finished):
    """A row per epoch; AP where it was measured: at the first epoch's end after every 4 steps."""
    run_dir, _ = finished
    rows = log_of(run_dir)
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    rate = make_schedule(TINY.train)
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], [rate(s) for s in (1, 3, 5)], rtol=1e-5)
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert float(rows[0]["minutes_left"]) >= float(rows[-1]["minutes_left"]) == 0
    assert [row["val_AP"] == "nan" for row in rows] == [True, False, True]


def epochs(path, step, *steps, **logs):
    """What a process that resumes after `step` and comes to `steps` leaves of the log."""
    log = callbacks.EpochLog(path, step)
    log.on_train_begin()
    for step in steps:
        log.on_epoch_end(step - 1, {"loss": 1.0 / step, "step": step, **logs})
    return [float(row["step"]) for row in log_of(path.parent)] if path.exists() else []


def test_rows_after_the_restored_step_come_again_once(tmp_path):
    """They are gone before the first epoch ends: a job that ends earlier draws its curves from the file."""
    path = tmp_path / "log.csv"
    assert epochs(path, 0) == []
    assert epochs(path, 0, 1, 2, 3, 4) == [1, 2, 3, 4]
    whole = path.read_bytes()
    assert epochs(path, 2) == [1, 2]
    assert epochs(path, 2, 3, 4) == [1, 2, 3, 4] and path.read_bytes() == whole
    assert epochs(path, 0) == [] and not path.exists()


def test_what_a_row_lacks_is_nan(tmp_path):
    """An evaluation's numbers are there from the first one on, also in another process."""
    path = tmp_path / "log.csv"
    epochs(path, 0, 1)
    epochs(path, 1, 2, val_AP=0.5)
    epochs(path, 2, 3)
    assert path.read_text().splitlines()[0] == "epoch,loss,step,val_AP"
    assert [row["val_AP"] for row in log_of(tmp_path)] == ["nan", "0.5", "nan"]


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda log: b"", []),
        (lambda log: b"\xff\xfe\x00" * 99, []),
        (lambda log: b"\0" * 200_000, []),
        (lambda log: b"time,value\n1,2\n", []),
        (lambda log: b"{}", []),
        (lambda log: log[:-6], [1]),
        (lambda log: log + b"2,0.5\r\n", [1, 2]),
        (lambda log: log + b"2,0.3,3,4,5\r\n", [1, 2]),
        (lambda log: log.replace(b"0.5", b"0.\xff"), [1]),
        (lambda log: log.replace(b"1.0", b'"1.0'), []),
    ],
)
def test_a_damaged_log_loses_the_damaged_rows_alone(tmp_path, damage, kept):
    path = tmp_path / "log.csv"
    epochs(path, 0, 1, 2)
    path.write_bytes(damage(path.read_bytes()))
    assert epochs(path, 2) == kept
    assert epochs(path, 2, 3) == [*kept, 3]
    visualize.training_curves(path, tmp_path / "training.png")


def test_a_log_is_whole_or_the_one_before(tmp_path, monkeypatch):
    """Killed while it is written."""
    path, after = tmp_path / "log.csv", []
    epochs(path, 0, 1)
    before = path.read_bytes()
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (after.append(path.read_bytes()), replace(*names)))
    assert epochs(path, 1, 2) == [1, 2]
    assert after == [before, before]


def test_a_log_that_cannot_be_written_or_read_is_a_sentence(tmp_path, monkeypatch):
    log = callbacks.EpochLog(tmp_path / "log.csv", 0)
    for number in (errno.ENOSPC, errno.EROFS):
        with monkeypatch.context() as patch:

            def refuse(*_, number=number):
                raise OSError(number, os.strerror(number))

            patch.setattr(os, "replace", refuse)
            with pytest.raises(rn.InputError, match=f"^{log.path} can't be written: {os.strerror(number)}.$"):
                log.on_epoch_end(0, {"loss": 1.0, "step": 1})
    assert not list(tmp_path.iterdir())
    log.path.mkdir()
    with pytest.raises(rn.InputError, match=f"the log {log.path} can't be read: it's a folder"):
        callbacks.EpochLog(log.path, 0)


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
    steps = {}
    for path in (run_dir / "tensorboard").iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    assert steps["loss"] == [2, 4, 6] and steps["learning_rate"] and steps["val_AP"] == [4]
    assert steps["input/0"] == [0] and set(steps["evaluation/0"]) == {4, 6}


def test_tensorboards_pictures_show_detections_and_ground_truth(shards, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(tensorboard, "draw_detections", lambda *args, **kw: drawn.append((args, kw)) or args[0])
    answer = {
        "boxes": np.array([[[1.0, 2, 30, 40]]], np.float32),
        "scores": np.array([[0.9]], np.float32),
        "labels": np.array([[2]]),
    }

    class Fixed:
        label_map = rn.data.LabelMap.load(shards / "labels.json")

        def __call__(self, images):
            return {name: tf.constant(value) for name, value in answer.items()}

    source = open_source(str(shards / "val-*.tfrecord"))
    tensorboard.Board(tmp_path, callbacks.Progress(1, 0, 1, lambda step: 0.0)).detections(Fixed(), source)
    assert len(drawn) == tensorboard.PICTURES
    for (image, boxes, labels, scores), settings in drawn:
        assert image.shape == (64, 64, 3)
        np.testing.assert_array_equal(boxes, answer["boxes"][0])
        np.testing.assert_array_equal(labels, [2])
        np.testing.assert_array_equal(scores, answer["scores"][0])
        assert settings["min_score"] == 0.3
    shown = sum(len(settings["ground_truth"]) for _, settings in drawn)
    drawn_ids = {image["id"] for image in source.instances["images"][: tensorboard.PICTURES]}
    assert shown == sum(annotation["image_id"] in drawn_ids for annotation in source.instances["annotations"])


def test_a_run_directory_gives_its_model_back(finished):
    run_dir, model = finished
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    loaded = checkpoint.load_detector(run_dir)
    for name, value in model(images, training=False).items():
        np.testing.assert_array_equal(loaded.model(images, training=False)[name], value)
    assert loaded.label_map.ids == rn.data.LabelMap.load(run_dir / "labels.json").ids
    assert (loaded.image_size, loaded.config) == (64, TINY.detect)


def test_a_job_resumes_from_its_last_checkpoint_to_the_same_weights(finished, jobs_data, tmp_path, capsys):
    """The run as `kill -9` in its third epoch leaves it: the weights and the log of the uninterrupted run."""
    run_dir, whole = finished
    shutil.copytree(run_dir, tmp_path / "run")
    for path in (tmp_path / "run/model.weights.h5", *(tmp_path / "run/checkpoints").glob("step-6.*")):
        path.unlink()
    model = rn.train(TINY, **jobs_data, run_dir=str(tmp_path / "run"), verbose=0)
    assert "resuming after 4 of 6 steps" in capsys.readouterr().out
    for resumed, uninterrupted in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(resumed, uninterrupted, rtol=1e-5, atol=1e-6)
    assert [float(row["step"]) for row in log_of(tmp_path / "run")] == [2, 4, 6]


def test_a_finished_run_is_not_trained_again(finished, jobs_data, capsys):
    run_dir, model = finished
    again = rn.train(TINY, **jobs_data, run_dir=str(run_dir), verbose=2)
    printed = capsys.readouterr().out
    assert "is finished" in printed and "learning rate" not in printed
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_another_job_in_the_same_directory_is_refused(finished, shards):
    run_dir, _ = finished
    changed = TINY.replace(learning_rate=0.5, gamma=1.0)
    with pytest.raises(rn.InputError, match=r"run_dir=.* holds a job that differs in gamma, learning_rate, validation"):
        rn.train(changed, data=str(shards / "train-*.tfrecord"), run_dir=str(run_dir))


def test_a_run_from_before_a_field_existed_is_the_same_job(finished, shards, jobs_data, tmp_path):
    """A record without `mining` is of a job whose mining was the default."""
    record = json.loads((finished[0] / "run.json").read_text())
    del record["config"]["loss"]["mining"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "model.weights.h5").touch()
    assert run_directory.start(tmp_path, TINY, rn.data.LabelMap.load(shards / "labels.json"), **jobs_data)


@pytest.mark.parametrize("held", ["checkpoints/step-1.index", "best.weights.h5", "model.weights.h5"])
def test_weights_make_a_folder_a_jobs_and_their_settings_must_be_there(tmp_path, held):
    def start(**changes):
        return run_directory.start(tmp_path, TINY.replace(**changes), LABELS, data="d", validation="")

    assert not start(gamma=1.0) and not start(gamma=0.5)  # as if the first had failed
    assert json.loads((tmp_path / "run.json").read_text())["config"]["loss"]["gamma"] == 0.5
    (tmp_path / held).parent.mkdir(exist_ok=True)
    (tmp_path / held).touch()
    assert start(gamma=0.5)
    with pytest.raises(rn.InputError, match="holds a job that differs in gamma"):
        start(gamma=1.0)
    (tmp_path / "run.json").unlink()
    with pytest.raises(rn.InputError, match="has checkpoints or weights but no run.json"):
        start(gamma=0.5)


@pytest.mark.parametrize("changes", [{"steps": 8}, {"learning_rate": 1e-4}, {"batch_size": 2, "gamma": 0.0}])
def test_another_training_is_told_to_start_from_the_weights(finished, jobs_data, changes):
    with pytest.raises(rn.InputError, match=f"give init_weights={finished[0]} and another run_dir"):
        rn.train(TINY.replace(**changes), **jobs_data, run_dir=str(finished[0]))


def unfinished(finished, folder, **made_by):
    """A copy of the run as it was after step 4, as if by the versions `made_by`."""
    shutil.copytree(finished[0], folder)
    for path in (folder / "model.weights.h5", *(folder / "checkpoints").glob("step-6.*")):
        path.unlink()
    state = folder / "checkpoints/checkpoint"
    state.write_text('model_checkpoint_path: "step-4"\nall_model_checkpoint_paths: "step-4"\n')
    record = json.loads((folder / "run.json").read_text())
    record["made_by"] |= made_by
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_checkpoints_of_the_other_keras_are_resumed_by_their_weights(finished, jobs_data, tmp_path, capsys):
    """The sentence names the versions and the way, which works before the run is finished too."""
    other = {"keras": "2.15.0" if hasattr(keras, "ops") else "3.15.1", "tensorflow": "2.99.0"}
    run_dir = unfinished(finished, tmp_path / "run [1]", **other)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(rn.InputError) as raised:
        rn.train(TINY, **jobs_data, run_dir=str(run_dir), verbose=0)
    for part in (f"Keras {other['keras']} (TensorFlow 2.99.0)", f"init_weights={run_dir} and another run_dir"):
        assert part in str(raised.value)
    after = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before
    rn.train(TINY.replace(steps=1), **jobs_data, init_weights=str(run_dir), run_dir=str(tmp_path / "on"), verbose=0)
    assert "the weights of its checkpoint step-4" in capsys.readouterr().out


def test_a_finished_run_of_the_other_keras_is_used_as_it_is(finished, jobs_data, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["made_by"]["keras"] = "2.15.0" if hasattr(keras, "ops") else "3.15.1"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    model = rn.train(TINY, **jobs_data, run_dir=str(tmp_path / "run"), verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], finished[1].get_weights()[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a\nb", "a\rb", "--steps=9\n", "a\u2028b", "a ", "caf\udce9"])
def test_a_name_that_no_flag_file_holds_is_refused_before_anything_is_written(jobs_data, tmp_path, name):
    with pytest.raises(rn.InputError, match="run_dir=.* which no flag file can hold"):
        rn.train(TINY, **jobs_data, run_dir=str(tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, settings, sentence",
    [
        ({"data": "nowhere-*.tfrecord"}, {}, "nowhere"),
        # Or the command with the right pattern would be another job.
        ({"validation": "nova-*.tfrecord"}, {}, "no file matches .*nova"),
        ({"validation": "val.json"}, {}, "validation=.*val.json must be a pattern of shards"),
        ({}, {"num_classes": 80}, r"num_classes=80 disagrees with the 5 categories of .*labels.json"),
        ({}, {"backbone": "resnet99"}, "backbone='resnet99' is not known"),
    ],
)
def test_wrong_data_leaves_no_run_directory(shards, jobs_data, tmp_path, changes, settings, sentence):
    changes = {name: str(shards / pattern) for name, pattern in changes.items()}
    with pytest.raises(rn.InputError, match=sentence):
        rn.train(TINY.replace(**settings), **{**jobs_data, **changes}, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"run_dir": "gs://bucket/run"}, "run_dir 'gs://bucket/run' must be a local folder or a mounted one"),
        ({"run_dir": ""}, "run_dir '' must be a local folder"),
        ({"config": "mini"}, "config='mini' must be a Config"),
        ({"verbose": 3}, "verbose=3 must be 0, 1 or 2"),
    ],
)
def test_wrong_arguments_leave_no_run_directory(jobs_data, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rn.InputError, match=sentence):
        rn.train(**{"config": TINY, **jobs_data, "run_dir": "run", **changes})
    assert not list(tmp_path.iterdir())


def test_paths_of_every_kind_are_the_same(finished, jobs_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {**jobs_data, "init_weights": str(finished[0])}
    as_paths = {name: Path(path) for name, path in paths.items()}
    rn.train(TINY.replace(steps=1), **as_paths, run_dir="~/run", verbose=0)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert {name: record[name] for name in paths} == paths


def test_validation_of_other_categories_leaves_no_run_directory(shards, jobs_data, tmp_path):
    shutil.copytree(shards, tmp_path / "other")
    labels = json.loads((shards / "labels.json").read_text())
    (tmp_path / "other/labels.json").write_text(json.dumps([{**row, "name": f"no {row['name']}"} for row in labels]))
    with pytest.raises(rn.InputError, match="is .* to the detector but 'no .*' in .*other"):
        validation = str(tmp_path / "other" / "val-*.tfrecord")
        rn.train(TINY, data=jobs_data["data"], validation=validation, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_made(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rn.InputError, match="file/run"):
        rn.train(TINY, data=str(shards / "train-*.tfrecord"), run_dir=str(tmp_path / "file" / "run"))


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(rn.InputError, match="run.json doesn.t exist"):
        checkpoint.load_detector(tmp_path)
