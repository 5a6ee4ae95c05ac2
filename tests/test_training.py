"""The job: what it leaves behind, that it goes on where it stopped, and what it refuses."""

import json

import numpy as np
import pytest

import retinanet_tf as rn
from retinanet_tf import callbacks, runs
from retinanet_tf.data import shapes

TINY = rn.presets["mini"].replace(
    image_size=64, max_size=64, batch_size=4, steps=6, checkpoint_steps=2, warmup_steps=2, learning_rate=1e-3
)


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


def test_a_loss_that_explodes_is_said_and_not_kept(shards, tmp_path):
    """A learning rate of 1e20: the job stops by name, without weights and without a checkpoint of NaNs."""
    config = TINY.replace(learning_rate=1e20, optimizer="sgd", warmup_steps=0, strategy="one_device")
    with pytest.raises(rn.InputError, match="became NaN or infinite"):
        rn.train(config, data=str(shards / "train-*.tfrecord"), run_dir=str(tmp_path / "run"), verbose=0)
    assert not (tmp_path / "run" / "model.weights.h5").exists()
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


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
