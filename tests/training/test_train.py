"""Training steps: NaN, precision, averages, XLA, optimizers; warnings and errors of a job."""

import importlib.util
import shutil

import numpy as np
import pytest
import tensorflow as tf
from batches import damage
from small_jobs import TINY, log_of, losses, write_shards

import retinanet_tf as rn
from retinanet_tf.data.pipeline import load_for_training
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.models.network import variables
from retinanet_tf.training import callbacks
from retinanet_tf.training.job import Job, announce
from retinanet_tf.training.strategies import Worker
from retinanet_tf.training.tensorboard import Board
from retinanet_tf.training.train import readable_failures

FOUR_STEPS = TINY.replace(
    **{"steps": 4, "checkpoint_steps": 1, "eval_steps": 0, "subnet_norm": "none", "learning_rate": 5e-4},
    **{"mining": "ohem", "normalizer": "image", "box": "giou", "ema_decay": 0.9, "accumulation": 2},
)
"""A short job with every part of the step that can be chosen."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Generated shards, train and val."""
    return write_shards(tmp_path_factory.mktemp("shapes"))


def data_of(shards):
    return str(shards / "train-*.tfrecord")


def job_of(config):
    """A job of which no data are read."""
    return Job(config, {"data": ""}, tf.distribute.get_strategy(), Worker(), rn.data.LabelMap([1], ["a"]), None)


@pytest.mark.slow
def test_a_nan_loss_names_the_images_and_is_not_saved(shards, tmp_path):
    """A learning rate of 1e38: the job stops at that step and names the images, which are those of that step."""
    # The class bias alone goes to some 1e37 after one step, and the losses of all anchors add up to infinity.
    # One epoch, so that nothing is saved before.
    job = {"optimizer": "sgd", "warmup_steps": 0, "eval_steps": 0, "checkpoint_steps": 6}
    config = TINY.replace(learning_rate=1e38, **job)
    run_dir, train = tmp_path / "run", data_of(shards)
    with pytest.raises(rn.InputError, match="became NaN or infinite, with the images .* no state was saved") as error:
        rn.train(config, data=train, run_dir=str(run_dir), verbose=0)
    assert not (run_dir / "model.weights.h5").exists()
    assert not list(run_dir.glob("checkpoints/step-*"))
    (path,) = run_dir.glob("nonfinite_step_*.npz")
    step = int(path.stem.rsplit("_", 1)[1])
    assert step > 0  # the first loss is that of the fresh weights
    saved = np.load(path)
    images, objects = next(iter(load_for_training(config, train, step)))
    np.testing.assert_array_equal(saved["images"], images)
    np.testing.assert_array_equal(saved["boxes"], objects["boxes"])
    # The ids belong to those images: their own boxes are the batch's, found by id in the annotations.
    truth = {str(record.annotations.image_id): record.annotations for record in read_records(train)}
    for image_id, boxes, labels in zip(saved["image_ids"], objects["boxes"], objects["labels"], strict=True):
        assert str(image_id) in str(error.value)
        areas = np.sort([(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes.numpy()[labels.numpy() >= 0]])
        exact = truth[str(image_id)].boxes
        np.testing.assert_allclose(areas, np.sort((exact[:, 2:] - exact[:, :2]).prod(axis=1)), rtol=1e-3)


@pytest.fixture(scope="module", params=[pytest.param("float32", marks=pytest.mark.slow)])
def plain_losses(shards, tmp_path_factory):
    """Losses of four steps in float32, not compiled."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    rn.train(FOUR_STEPS, data=data_of(shards), run_dir=str(run_dir), verbose=0)
    return losses(run_dir)


def test_averages_in_low_precision_and_parts_are_the_result(shards, plain_losses, tmp_path):
    """The result's weights are float32 averages, not the last step's; the loss stays close to float32's."""
    config, run_dir = FOUR_STEPS.replace(precision="float16"), tmp_path / "run"
    model = rn.train(config, data=data_of(shards), run_dir=str(run_dir), verbose=0)
    assert {weight.dtype for weight in model.get_weights()} == {np.dtype(np.float32)}
    checkpoint = tf.train.load_checkpoint(str(run_dir / "checkpoints"))
    names = [next(name for name, one in variables(model).items() if one is weight) for weight in model.weights]
    keys = {
        "weights": [f"weights/{name.replace('/', '.S')}" for name in names],
        "average": [f"average/{i}" for i in range(1 + len(names))],
    }
    stored = {
        kind: [checkpoint.get_tensor(f"{key}/.ATTRIBUTES/VARIABLE_VALUE") for key in keys_of_kind]
        for kind, keys_of_kind in keys.items()
    }
    assert stored["average"][0] == 4
    for result, average in zip(model.get_weights(), stored["average"][1:], strict=True):
        np.testing.assert_array_equal(result, average)
    assert any((a != w).any() for a, w in zip(stored["average"][1:], stored["weights"], strict=True))
    np.testing.assert_allclose(losses(run_dir), plain_losses, rtol=0.1)  # mining may choose others in half precision
    np.testing.assert_allclose(losses(run_dir)[0], plain_losses[0], rtol=0.05)  # of the same weights


def test_xla_computes_the_same_job(shards, plain_losses, tmp_path, capsys):
    """A whole job: mining, GIoU, averages, accumulation."""
    rn.train(FOUR_STEPS.replace(xla="true"), data=data_of(shards), run_dir=str(tmp_path / "run"), verbose=0)
    np.testing.assert_allclose(losses(tmp_path / "run"), plain_losses, rtol=1e-3)
    assert "XLA compiles the step, for at most 1 shapes: canvases 64x64, room for 8 objects" in capsys.readouterr().out


@pytest.mark.slow
def test_optimizers_of_tensorflow_addons_by_name(shards, tmp_path):
    job = {"data": data_of(shards), "run_dir": str(tmp_path / "run"), "verbose": 0}
    config = TINY.replace(optimizer="lookahead_sgd", steps=2, eval_steps=0)
    if importlib.util.find_spec("tensorflow_addons") is None:
        with pytest.raises(rn.InputError, match="optimizer=lookahead_sgd needs TensorFlow Addons"):
            rn.train(config, **job)
        assert not (tmp_path / "run").exists()
        return
    rn.train(config, **job)
    assert np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.slow
def test_rare_classes_are_repeated_and_weighed_by_name(shards, tmp_path, capsys):
    names = rn.data.LabelMap.load(shards / "labels.json").names
    rare = {"class_alpha": f"{names[3]}=0.75", "repeat_threshold": 1.0}
    config = TINY.replace(**rare, steps=2, eval_steps=2, validation_loss=True)
    job = {"data": data_of(shards), "validation": str(shards / "val-*.tfrecord"), "verbose": 0}
    model = rn.train(config, run_dir=str(tmp_path / "run"), **job)
    assert model.loss["class_logits"].alpha == (0.25, 0.25, 0.25, 0.75, 0.25)
    assert "repeat_threshold=1: an epoch has " in capsys.readouterr().out
    assert np.isfinite(float(log_of(tmp_path / "run")[-1]["val_loss"]))
    with pytest.raises(rn.InputError, match="there is no class 'cell'"):
        rn.train(config.replace(class_alpha="cell=0.5"), run_dir=str(tmp_path / "other"), **job)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"bias_lr_factor": 2.0}, "bias_lr_factor=2.0 needs optimizer=sgd"),
        ({"accumulation": 2, "mining": "ohem"}, "accumulation=2 with mining=ohem needs normalizer=image"),
        ({"batch_size": 3}, r"batch_size=3 must be a multiple of 2 \(2 devices, accumulation=1\)"),
        ({"devices": 3}, r"devices=3 is more than the 2 CPU device\(s\) here"),
    ],
)
def test_settings_that_exclude_each_other(shards, tmp_path, changes, sentence):
    with pytest.raises(rn.InputError, match=sentence):
        rn.train(TINY.replace(strategy="mirrored", **changes), data=data_of(shards), run_dir=str(tmp_path / "run"))


@pytest.mark.slow
def test_a_damaged_record_ends_the_job_with_its_name(shards, tmp_path):
    """One bit of an image: one sentence with file and number; what was saved before it stays."""
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    path, _ = damage(data_of(copy))
    sentence = rf"^record 2 of {path} is damaged: .* or pass on_bad_record=skip\.$"
    with pytest.raises(rn.InputError, match=sentence):
        rn.train(TINY, data=data_of(copy), run_dir=str(tmp_path / "run"), verbose=0)
    model = rn.RetinaNet.from_config(TINY)
    model.compile("sgd", rn.retinanet_losses(TINY.loss))
    with pytest.raises(rn.InputError, match=sentence):
        model.fit(load_for_training(TINY, data_of(copy), 0), steps_per_epoch=6, verbose=0)
    rn.train(
        TINY.replace(eval_steps=0, on_bad_record="skip"), data=data_of(copy), run_dir=str(tmp_path / "skip"), verbose=0
    )
    assert (tmp_path / "skip" / "damaged_records.txt").read_text() == f"{path} record 2\n"


def test_a_rate_far_above_the_linear_rule_is_warned_of(caplog, capsys):
    """§4.1 has 0.01 for 16 images: 0.02 for 4 is 8 times that."""
    config = TINY.replace(optimizer="sgd", learning_rate=0.02)
    with caplog.at_level("WARNING", "absl"):
        announce(job_of(config), "nothing")
    assert "8.0 times what the linear rule gives for a batch of 4" in caplog.text
    assert "6 steps of 4 images on 1 device(s); sgd, learning rate 0.02" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["norm", "subnet_norm"])
def test_batch_norm_on_parts_of_a_batch_is_warned_of(caplog, name):
    config = TINY.replace(norm="frozen", subnet_norm="none")
    with caplog.at_level("WARNING", "absl"):
        for quiet in (config.replace(accumulation=2), config.replace(**{name: "batch"})):
            announce(job_of(quiet), "nothing")
        assert "batch norm" not in caplog.text
        announce(job_of(config.replace(accumulation=2, **{name: "batch"})), "nothing")
    assert "accumulation=2 with" in caplog.text and f"{name}=batch" in caplog.text


def test_xla_that_compiles_nothing_is_warned_of(caplog):
    """That this is the scope of batch norm on two devices is shown with the training step."""
    with caplog.at_level("WARNING", "absl"):
        announce(job_of(TINY.replace(xla="true", norm="batch")), "nothing")
    assert "xla=true compiles nothing on several devices with norm=batch" in caplog.text


def test_anchors_that_never_match_are_warned_of_once(caplog):
    progress = callbacks.Progress(100, 0, 4, lambda step: 0.0)
    watch = callbacks.WatchLosses(progress)
    with caplog.at_level("WARNING", "absl"):
        for batch in range(60):
            watch.on_train_batch_end(batch, {"loss": 1.0, "box_deltas_loss": 0.0})
            assert ("no anchor matched any object in 50 steps" in caplog.text) == (batch >= 49)
    assert caplog.text.count("no anchor matched") == 1


def test_anchors_that_never_match_are_warned_of_in_short_epochs_too(caplog):
    watch = callbacks.WatchLosses(callbacks.Progress(100, 0, 4, lambda step: 0.0))
    for step in range(60):
        watch.on_train_batch_end(step % 10, {"loss": 1.0, "box_deltas_loss": float(step == 4)})
        assert ("no anchor matched any object in 50 steps" in caplog.text) == (step >= 54)


def test_a_full_disk_is_not_taken_for_the_devices_memory(tmp_path, monkeypatch):
    def full(*args):
        raise tf.errors.ResourceExhaustedError(None, None, f"{{{{node}}}} {tmp_path}/events; No space left on device")

    monkeypatch.setattr(tf.summary, "scalar", full)
    board = Board(tmp_path, callbacks.Progress(100, 0, 4, lambda step: 0.0))
    with pytest.raises(rn.InputError, match=r"can't be written \(No space left on device\); make room and repeat"):
        board.on_epoch_end(0, {"loss": 1.0})


def test_without_a_box_loss_nothing_is_known_of_anchors(caplog):
    watch = callbacks.WatchLosses(callbacks.Progress(100, 0, 4, lambda step: 0.0), box_weight=0.0)
    for batch in range(60):
        watch.on_train_batch_end(batch, {"loss": 1.0, "box_deltas_loss": 0.0})
    assert "no anchor matched" not in caplog.text


def test_memory_too_small_for_a_step_is_a_sentence(tmp_path):
    """What a GPU raises; a CPU's process is ended by the system instead."""
    with (
        pytest.raises(rn.InputError, match="for a step of 16 images of 600 px .OOM at x.; lower batch_size"),
        readable_failures(job_of(rn.Config()), tmp_path),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM at x\nmore")


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("seconds", [0.02, 2.0, 90.0])
def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch, capsys, steps, seconds):
    """One at most every half minute, and one at the epoch's end; numbers that can be read, none of them NaN."""
    clock = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock[0])
    progress = callbacks.Progress(100, 0, 4, lambda step: 0.001, verbose=2)
    progress.on_epoch_begin(0)
    for batch in range(steps):
        clock[0] += seconds
        progress.on_train_batch_end(batch, {"loss": 1.5, "class_logits_loss": 1.0, "box_deltas_loss": 0.5})
    logs = {"loss": 1.5, "class_logits_loss": 1.0, "box_deltas_loss": 0.5}
    progress.on_epoch_end(0, logs)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + (steps if seconds > 30 else int(steps * seconds / 32))
    assert lines[-1].startswith(f"step {steps} of 100: loss 1.5, class_logits 1, box_deltas 0.5, learning rate 0.001")
    assert ("images/s" in lines[-1]) == (steps > callbacks.UNTIMED + 1), "the first steps say nothing of the others"
    assert logs["step"] == steps and isinstance(logs["step"], int)
    assert logs["images_per_s"] == pytest.approx(4 / seconds, abs=0.01)
    assert logs["minutes_left"] == pytest.approx((100 - steps) * seconds / 60, abs=0.01)


def test_progress_on_a_terminal_is_one_line(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock[0])
    progress = callbacks.Progress(10, 0, 4, lambda step: 0.001, verbose=1)
    for batch in range(10):
        clock[0] += 1.0
        progress.on_train_batch_end(batch, {"loss": 1.0})
    progress.on_epoch_end(0, {"loss": 1.0})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and printed.count("\r") == 10


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (98, "98 s"), (100, "2 min"), (3570, "1 h 0 min"), (1e6, "277 h 47 min")]
)
def test_durations_can_be_read(seconds, text):
    assert callbacks.duration(seconds) == text
