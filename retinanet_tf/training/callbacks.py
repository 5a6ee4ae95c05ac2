"""What happens beside the steps of a job: the clock, the bar, saving, evaluation, and what goes wrong."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import keras
from absl import logging

from retinanet_tf.training.checkpoints import TrainingState
from retinanet_tf.training.stopping import StopRequest

PATIENCE = 50
"""Steps without a single positive anchor after which the user is told."""

UNTIMED = 2
"""First steps of a process, in which the step is traced and compiled: they say nothing of its speed."""


class Progress(keras.callbacks.ProgbarLogger):
    """Keras' bar with the learning rate, images a second and the time left of the whole job; counts the steps.

    The three, and the number of finished steps, are also in the logs of the callbacks that come after it.

    Args:
      total: steps of the job.
      step: steps that are done.
      batch_size: images a step over all devices.
      rate: the learning-rate schedule.
    """

    def __init__(self, total: int, step: int, batch_size: int, rate: Callable):
        super().__init__()
        self.total, self.step, self.batch_size, self.rate = total, step, batch_size, rate
        # Keras 2 counts samples unless told so, and averages over the epoch what isn't named here.
        self.use_steps = True
        self.stateful_metrics = {"learning_rate", "images_per_s", "minutes_left"}
        self._seconds = self._last = 0.0
        self._timed = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._last = time.perf_counter()
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        """Counts a step. The speed is a running mean."""
        self.step += 1
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._timed += 1
        if self._timed > UNTIMED:
            kept = 0.95 if self._seconds else 0.0
            self._seconds = kept * self._seconds + (1.0 - kept) * seconds
        if logs is not None and self.verbose == 1:
            logs.update(self._extras())
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Puts the numbers into the epoch's logs."""
        if logs is not None:
            logs.update(self._extras(), step=self.step)
        super().on_epoch_end(epoch, logs)

    def _extras(self) -> dict[str, float]:
        seconds = self._seconds or math.nan
        return {
            "learning_rate": float(self.rate(self.step - 1)),
            "images_per_s": self.batch_size / seconds,
            "minutes_left": (self.total - self.step) * seconds / 60,
        }


class SaveState(keras.callbacks.Callback):
    """Saves at the end of every epoch, and at the end of the step in which the job is asked to stop."""

    def __init__(self, state: TrainingState, progress: Progress, stop: StopRequest):
        super().__init__()
        self.state, self.progress, self.stop = state, progress, stop

    def on_train_batch_end(self, batch, logs=None):
        """Leaves if asked to."""
        if self.stop.signal:
            self.state.save(self.progress.step)
            print(f"\nstopped after step {self.progress.step}, which is saved; the same command goes on from there.")
            self.stop.leave()

    def on_epoch_end(self, epoch, logs=None):
        """Saves under the number of finished steps."""
        self.state.save(self.progress.step)


class NonFiniteLoss(Exception):
    """The loss of step `step` (from 0) was NaN or infinite."""

    def __init__(self, step: int):
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


class WatchLosses(keras.callbacks.Callback):
    """Ends the job at the first loss that isn't finite, and says when no anchor is ever positive."""

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress, self.warned = progress, False

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the means since the epoch's beginning: they are NaN from the bad step on."""
        logs = logs or {}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise NonFiniteLoss(self.progress.step - 1)
        # The box loss is a sum over positive anchors: exactly 0 where there was none.
        if batch + 1 >= PATIENCE and logs.get("box_deltas_loss") == 0.0 and not self.warned:
            self.warned = True
            logging.warning(
                "no anchor matched any object in %d steps: the objects are smaller or larger than every anchor, or the "
                "images have none; experiments.inspect_data shows which anchor settings would reach them.",
                batch + 1,
            )


class EvaluateAndKeep(keras.callbacks.Callback):
    """Evaluates at the first epoch's end after every `every` steps; AP goes into the logs, the best is kept.

    Args:
      evaluate: gives the twelve numbers.
      keep: called with the step and the numbers when AP is the best so far.
      progress: the job's.
      every: steps.
      best: the best AP of the job's earlier processes.
      weights: the context in which to evaluate, such as that of averaged weights.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        keep: Callable[[int, dict[str, float]], None],
        progress: Progress,
        every: int,
        best: float,
        weights: Callable[[], AbstractContextManager],
    ):
        super().__init__()
        self.evaluate, self.keep, self.progress, self.every = evaluate, keep, progress, every
        self.best, self.weights = best, weights
        self.next = (progress.step // every + 1) * every

    def on_epoch_end(self, epoch, logs=None):
        """Evaluates if it is time. Epochs without have NaN, so that the logs have the same keys in all."""
        metrics = {}
        if self.progress.step >= self.next:
            self.next = (self.progress.step // self.every + 1) * self.every
            with self.weights():
                metrics = self.evaluate()
                if metrics["AP"] > self.best:
                    self.best = metrics["AP"]
                    self.keep(self.progress.step, metrics)
            print(f"step {self.progress.step}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
        if logs is not None:
            logs.update({f"val_{name}": metrics.get(name, math.nan) for name in ("AP", "AP50", "AP75")})
