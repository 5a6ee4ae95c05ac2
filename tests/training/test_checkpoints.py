"""Checkpoints: restored exactly, whole after a failed save, a damaged one passed over; the lock and signals."""

import resource
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import retinanet_tf as rn
from retinanet_tf.training.callbacks import StopRequest
from retinanet_tf.training.checkpoints import TrainingState, newest_step
from retinanet_tf.training.run_directory import exclusive


def small():
    """A compiled network of one layer and its optimizer."""
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="dense")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=False)
    return model


def train(model, steps):
    """Deterministic steps, so that momentum matters."""
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    for _ in range(steps):
        model.train_on_batch(x, x[:, ::-1].copy())
    return model.get_weights()


def test_a_restored_state_trains_on_exactly(tmp_path):
    model = small()
    state = TrainingState(tmp_path, model)
    train(model, 3)
    state.save(3)
    expected = train(model, 2)
    other = small()
    again = TrainingState(tmp_path, other)
    assert again.restore() == 3 and newest_step(tmp_path) == 3
    for restored, uninterrupted in zip(train(other, 2), expected, strict=True):
        np.testing.assert_array_equal(restored, uninterrupted)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
    """The system refuses the file's bytes, as a full disk does: a sentence, the older state whole, no partial file."""
    model = small()
    state = TrainingState(tmp_path, model)
    state.save(1)
    saved = model.get_weights()
    files = sorted(path.name for path in tmp_path.iterdir())
    train(model, 1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(rn.InputError, match=r"the checkpoint of step 2 can't be written to .*step-1 is whole"):
            state.save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    other = small()
    assert TrainingState(tmp_path, other).restore() == 1
    for restored, before in zip(other.get_weights(), saved, strict=True):
        np.testing.assert_array_equal(restored, before)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    model = small()
    state = TrainingState(tmp_path, model)
    state.save(1)
    first = model.get_weights()
    train(model, 1)
    state.save(2)
    (tmp_path / "step-2.index").write_bytes(b"")
    other = small()
    assert TrainingState(tmp_path, other).restore() == 1
    np.testing.assert_array_equal(other.get_weights()[0], first[0])
    (tmp_path / "step-1.index").write_bytes(b"")
    with pytest.raises(rn.InputError, match="none of the checkpoints in .* can be read"):
        TrainingState(tmp_path, small()).restore()


@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_a_checkpoint_that_was_cut_gives_way_too(tmp_path, left):
    """What TensorFlow reads first is the last of the file."""
    model = small()
    state = TrainingState(tmp_path, model)
    state.save(1)
    state.save(2)
    file = tmp_path / "step-2.data-00000-of-00001"
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    assert TrainingState(tmp_path, small()).restore() == 1


@pytest.mark.parametrize(
    "listed", [None, b"", b"\0" * 99, b'model_checkpoint_path: "ckpt"\n'], ids=["none", "empty", "zeros", "another"]
)
def test_checkpoints_are_found_though_tensorflows_list_of_them_is_lost(tmp_path, listed):
    """And the oldest is removed by the next save."""
    model = small()
    state = TrainingState(tmp_path, model)
    state.save(1)
    state.save(2)
    (tmp_path / "checkpoint").unlink()
    if listed is not None:
        (tmp_path / "checkpoint").write_bytes(listed)
    assert newest_step(tmp_path) == 2
    again = TrainingState(tmp_path, small())
    assert again.restore() == 2
    again.save(3)
    assert {path.name for path in tmp_path.glob("*.index")} == {"step-2.index", "step-3.index"}


def test_an_optimizer_of_tensorflow_addons_with_a_setting_of_yes_or_no_is_resumed(tmp_path):
    addons = pytest.importorskip("tensorflow_addons")

    def compiled():
        model = small()
        model.compile(addons.optimizers.NovoGrad(0.1), "mse", jit_compile=False)
        return model

    model = compiled()
    state = TrainingState(tmp_path, model)
    train(model, 2)
    state.save(2)
    expected, other = train(model, 2), compiled()
    assert TrainingState(tmp_path, other).restore() == 2
    for restored, uninterrupted in zip(train(other, 2), expected, strict=True):
        np.testing.assert_array_equal(restored, uninterrupted)


def test_two_jobs_in_one_directory(tmp_path):
    refusal = pytest.raises(rn.InputError, match=r"run_dir=.* is in use by another job \(process \d+ on ")
    with exclusive(tmp_path), refusal, exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_without_flock_there_is_no_lock(tmp_path, monkeypatch):
    """Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with exclusive(tmp_path), exclusive(tmp_path):
        pass


@pytest.mark.parametrize("lock", [Path.mkdir, lambda path: path.symlink_to("/dev/full")], ids=["folder", "device"])
def test_a_lock_that_cannot_be_had_is_a_sentence(tmp_path, lock):
    lock(tmp_path / "lock")
    with pytest.raises(rn.InputError, match="/lock can't be written and locked: "), exclusive(tmp_path):
        pass


def test_errors_of_the_job_are_not_the_locks(tmp_path):
    with pytest.raises(TimeoutError), exclusive(tmp_path):
        raise TimeoutError


def test_signals_wait_for_the_step_and_leave_as_asked():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM and not stop.agreed
        with pytest.raises(SystemExit) as left:
            stop.leave()
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ["run [1]", "run*", "what?", "[]", "a\\b [x-z]", "{a,b}", "[/checkpoints", "żółw ☕"])
def test_checkpoints_in_a_folder_of_any_name(tmp_path, name):
    """Saved, found again, the oldest removed; nothing of a neighbour that the name would match as a pattern."""
    neighbour = tmp_path / "run 1"
    neighbour.mkdir()
    for kept in ("step-1.index", "step-1.data-00000-of-00001"):
        (neighbour / kept).write_text("")
    model, folder = small(), tmp_path / name
    state = TrainingState(folder, model)
    for step in (1, 2, 3):
        state.save(step)
    weights = train(model, 1)
    files = {path.name for path in folder.iterdir()}
    assert files == {"checkpoint"} | {f"step-{n}.{end}" for n in (2, 3) for end in ("index", "data-00000-of-00001")}
    assert len(list(neighbour.iterdir())) == 2
    other = small()
    assert TrainingState(folder, other).restore() == 3
    for restored, uninterrupted in zip(train(other, 1), weights, strict=True):
        np.testing.assert_array_equal(restored, uninterrupted)


@pytest.mark.parametrize("damage", ["optimizer", "shape", "bytes"])
def test_no_message_advises_deleting_checkpoints(tmp_path, damage, capfd):
    """Those of another optimizer, of another network, and damaged ones: a few lines, and the files are as before."""
    model = small()
    TrainingState(tmp_path, model).save(1)
    if damage == "bytes":
        (tmp_path / "step-1.index").write_bytes(b"?" * 99)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32 if damage == "shape" else 64, name="dense")])
    other.compile("adam" if damage == "optimizer" else keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    with pytest.raises(rn.InputError, match="resume with the versions that wrote them") as raised:
        TrainingState(tmp_path, other).restore()
    assert "\n" not in str(raised.value) and "delete" not in str(raised.value)
    assert len(capfd.readouterr().err.splitlines()) < 10
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
