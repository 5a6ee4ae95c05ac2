"""Training states on disk: weights, optimizer, averages under the number of the step; whole or absent."""

import re
import shutil
import tempfile
from pathlib import Path

import keras
import tensorflow as tf
from absl import logging

from retinanet_tf.compat import optimizer_state, tensorflow_variables
from retinanet_tf.errors import InputError
from retinanet_tf.models.ema import WeightAverage

KEPT = 2
"""Checkpoints that are kept: should the newest one be damaged, there is another."""


class TrainingState:
    """The checkpoints `FOLDER/step-N` of a job. Make it in the strategy's scope.

    Args:
      folder: of the checkpoints.
      model: compiled; its optimizer's variables are made here.
      average: of the weights, if the job keeps one.
      is_chief: other workers take part in a save, which reads values of all workers, but leave nothing.
    """

    def __init__(self, folder: Path, model: keras.Model, average: WeightAverage | None = None, is_chief: bool = True):
        # Plain lists: tf.train's own walk over a Keras 3 model misses the weights of layers that are kept in lists.
        self._checkpoint = tf.train.Checkpoint(
            weights=tensorflow_variables(model.weights),
            optimizer=optimizer_state(model.optimizer, model.trainable_variables),
            **({"average": average.state} if average else {}),
        )
        # Made by the first save otherwise, and on several machines a variable is made by all of them together.
        _ = self._checkpoint.save_counter
        self._folder, self._is_chief = Path(folder), is_chief
        self._manager = self._managed(self._folder)

    def _managed(self, folder: Path) -> tf.train.CheckpointManager:
        return tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=KEPT, checkpoint_name="step")

    @property
    def newest(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        path = self._manager.latest_checkpoint
        return int(path.rsplit("-", 1)[1]) if path else 0

    def restore(self) -> int:
        """Loads the newest checkpoint that can be read; returns its step, 0 if there is none.

        Raises:
          InputError: there are checkpoints and none of them can be read.
        """
        paths = self._manager.checkpoints[::-1]
        for path in paths:
            try:
                self._checkpoint.restore(path).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, ValueError) as error:
                logging.warning("the checkpoint %s can't be read (%s).", path, str(error).splitlines()[0])
                continue
            return int(path.rsplit("-", 1)[1])
        if paths:
            raise InputError(
                f"none of the checkpoints in {self._folder} can be read; delete the folder to begin anew, or choose "
                "another run_dir."
            )
        return 0

    def save(self, step: int) -> None:
        """Writes the state after `step` steps; TensorFlow writes aside and renames.

        Raises:
          InputError: the disk is full or the folder can't be written; earlier checkpoints are whole.
        """
        if not self._is_chief:
            with tempfile.TemporaryDirectory() as folder:
                self._checkpoint.write(str(Path(folder) / "state"))
            return
        try:
            self._manager.save(checkpoint_number=step)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
            raise  # another worker is gone; the disk isn't to blame
        except (tf.errors.OpError, OSError) as error:
            self._clear(step)
            kept = self._manager.latest_checkpoint
            kept = f"{kept} is whole, and the same command goes on from it" if kept else "there is none before it"
            reason = str(getattr(error, "message", None) or error).splitlines()[0]
            raise InputError(
                f"the checkpoint of step {step} can't be written to {self._folder} ({reason}); {kept}: make room and "
                "repeat the command."
            ) from None

    def _clear(self, step: int) -> None:
        """Removes what a failed save left."""
        for path in self._folder.glob("*"):
            if re.fullmatch(rf"step-{step}([._].*)?", path.name) or path.name == "checkpoint.tmp":
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
