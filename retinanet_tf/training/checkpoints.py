"""Checkpoints of the training state: weights, optimizer and averages by step; whole or absent."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import keras
import tensorflow as tf
from absl import logging

from retinanet_tf.compat import optimizer_state
from retinanet_tf.errors import InputError, first_line
from retinanet_tf.inference.checkpoint import link_without_wildcards, named_weights, saved_steps
from retinanet_tf.models.ema import WeightAverage

KEPT = 2
"""Number of checkpoints kept: should the newest one be damaged, there is another."""


class TrainingState:
    """The checkpoints `FOLDER/step-N` of a job. Create it in the strategy's scope.

    Args:
        folder: of the checkpoints.
        model: compiled; its optimizer's variables are created here.
        average: of the weights, if the job keeps one.
        is_chief: other workers take part in a save, which reads values of all workers, but write nothing lasting.
    """

    def __init__(self, folder: Path, model: keras.Model, average: WeightAverage | None = None, is_chief: bool = True):
        # By names of ours, which are the same under Keras 2 and 3, and of either's objects its variables alone:
        # tf.train's own walk over a Keras 3 model misses the weights of layers that are kept in lists.
        self._checkpoint = tf.train.Checkpoint(
            weights=named_weights(model),
            optimizer=optimizer_state(model.optimizer, model.trainable_variables),
            **({"average": average.state} if average else {}),
        )
        self.folder, self._is_chief = Path(folder), is_chief
        # Otherwise created by the first save, and with several workers all of them must create it together.
        _ = self._checkpoint.save_counter
        self._link = link_without_wildcards(self.folder)
        self._path = Path(self._link.name) / "checkpoints" if self._link else self.folder
        if is_chief:
            _list_again(self._path)
            self._manager = tf.train.CheckpointManager(self._checkpoint, str(self._path), KEPT, checkpoint_name="step")

    def restore(self) -> int:
        """Loads the newest readable checkpoint and returns its step, 0 if there is no checkpoint.

        Raises:
            InputError: there are checkpoints and none of them can be read.
        """
        reasons = []
        for step in saved_steps(self.folder)[::-1]:
            try:
                restored = self._checkpoint.restore(str(self._path / f"step-{step}"))
                restored.expect_partial().assert_existing_objects_matched()
                return step
            except (tf.errors.OpError, AssertionError, ValueError, IndexError) as error:
                reasons.append(f"step-{step}: {first_line(error)}")
                logging.warning("a checkpoint in %s can't be read: %s", self.folder, reasons[-1])
        if reasons:
            raise InputError(
                f"none of the checkpoints in {self.folder} can be read ({'; '.join(reasons)}); they are left as "
                "they are: resume with the versions that wrote them (see run.json), or choose another run_dir."
            )
        return 0

    def save(self, step: int) -> None:
        """Writes the state after `step` steps; TensorFlow writes a temporary file and renames it.

        Raises:
            InputError: the disk is full or the folder can't be written; earlier checkpoints are untouched.
        """
        if not self._is_chief:
            with tempfile.TemporaryDirectory() as folder:
                self._checkpoint.write(str(Path(folder) / "state"))
            return
        try:
            self._manager.save(checkpoint_number=step)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
            raise  # another worker is gone; not the disk's fault
        except (tf.errors.OpError, OSError) as error:
            self._clear(step)
            newest = newest_step(self.folder)
            latest = f"{self.folder / f'step-{newest}'} is whole, and the same command resumes from it"
            if not newest:
                latest = "there is none before it"
            reason = str(getattr(error, "message", None) or error).splitlines()[0]
            raise InputError(
                f"the checkpoint of step {step} can't be written to {self.folder} ({reason}); {latest}: make room and "
                "repeat the command."
            ) from None

    def _clear(self, step: int) -> None:
        """Removes what a failed save left."""
        for path in self.folder.glob("*"):
            if re.fullmatch(rf"step-{step}([._].*)?", path.name) or path.name == "checkpoint.tmp":
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint `FOLDER/step-N`, 0 if there is none; read from the folder, on any worker."""
    return max(saved_steps(folder), default=0)


def _list_again(folder: Path) -> None:
    """Writes TensorFlow's list of checkpoints anew if it isn't that of the files."""
    names = [f"step-{step}" for step in saved_steps(folder)]
    try:
        state = tf.train.get_checkpoint_state(str(folder))
        listed = [Path(path).name for path in state.all_model_checkpoint_paths] if state else []
    except ValueError:
        listed = []
    if names and listed != names:
        paths = [str(folder / name) for name in names]
        times = [os.path.getmtime(f"{path}.index") for path in paths]
        tf.compat.v1.train.update_checkpoint_state(
            str(folder), paths[-1], paths, all_model_checkpoint_timestamps=times, last_preserved_timestamp=0.0
        )
