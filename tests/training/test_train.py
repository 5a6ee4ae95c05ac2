"""The steps of a job: precision, optimizers and XLA, what it warns of, and what ends it."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from small_jobs import TINY, log_of, write_shards

import retinanet_tf as rn
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.training_data import load_training_data
from retinanet_tf.training import callbacks
from retinanet_tf.training import failures as faults
from retinanet_tf.training import train as training
from retinanet_tf.training.job import announce
from retinanet_tf.training.optimizers import linear_rule_excess
from retinanet_tf.training.strategies import Worker

# On one device: in one process, models of different sizes get the same key for TensorFlow's CPU collectives.
SMALLEST = TINY.replace(eval_steps=0, strategy="one_device")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Generated shards, train and val."""
    return write_shards(tmp_path_factory.mktemp("shapes"))


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


def losses(run_dir):
    """Of each epoch."""
    return [float(row["loss"]) for row in log_of(run_dir)]


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
        announce(config, 1)
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


def test_memory_too_small_for_a_step_is_a_sentence(tmp_path):
    """What a GPU says; a CPU's process is ended by the system instead."""
    job = faults.explained(rn.Config(), tmp_path, Worker(), newest=lambda: 0, batch_of=lambda step: None)
    with (
        pytest.raises(rn.InputError, match="for a step of 16 images of 600 px .OOM at x.; lower --batch"),
        job,
    ):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM at x\nmore")
