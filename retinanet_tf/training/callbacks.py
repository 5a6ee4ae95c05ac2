"""Keras callbacks of a training job: progress, checkpoints, SIGTERM, NaN detection, evaluation."""

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import keras
from absl import logging

from retinanet_tf.training.checkpoints import TrainingState

PATIENCE = 50
"""Steps without a single positive anchor after which a warning is logged."""

UNTIMED = 2
"""First steps of a process, which trace and compile the step: they don't count for its speed."""


class StopRequest:
    """Delays SIGTERM and Ctrl-C to the end of a step, so that the state can be saved; a context manager.

    `signal` is the number of the received signal, 0 until then. A second Ctrl-C interrupts at once. Outside the main
    thread, where Python allows no handlers, signals act as before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def leave(self) -> None:
        """Raises KeyboardInterrupt after Ctrl-C, SystemExit with 128 + signal (143) after SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal)


class Progress(keras.callbacks.ProgbarLogger):
    """Progress bar with learning rate, images per second and remaining minutes of the whole job; counts the steps.

    Later callbacks find these numbers, and the number of finished steps, in the logs.

    Args:
        total: steps of the job.
        step: finished steps.
        batch_size: images per step over all devices.
        rate: the learning-rate schedule.
    """

    def __init__(self, total: int, step: int, batch_size: int, rate: Callable):
        super().__init__()
        self.total, self.step, self.batch_size, self.rate = total, step, batch_size, rate
        # Keras 2 counts samples by default, and averages over the epoch all metrics but these.
        self.use_steps = True
        self.stateful_metrics = {"learning_rate", "images_per_s", "minutes_left"}
        self._seconds = self._last = 0.0
        self._timed = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._last = time.perf_counter()
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._timed += 1
        if self._timed > UNTIMED:  # a running mean
            decay = 0.95 if self._seconds else 0.0
            self._seconds = decay * self._seconds + (1.0 - decay) * seconds
        if logs is not None and self.verbose == 1:
            logs.update(self._numbers())
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self._numbers(), step=self.step)
        super().on_epoch_end(epoch, logs)

    def _numbers(self) -> dict[str, float]:
        seconds = self._seconds or math.nan
        return {
            "learning_rate": float(self.rate(self.step - 1)),
            "images_per_s": self.batch_size / seconds,
            "minutes_left": (self.total - self.step) * seconds / 60,
        }


class SaveState(keras.callbacks.Callback):
    """Saves a checkpoint at the end of every epoch, and at the end of the step that received SIGTERM or Ctrl-C."""

    def __init__(self, state: TrainingState, progress: Progress, stop: StopRequest):
        super().__init__()
        self.state, self.progress, self.stop = state, progress, stop

    def on_train_batch_end(self, batch, logs=None):
        if self.stop.signal:
            self.state.save(self.progress.step)
            print(f"\nstopped after step {self.progress.step}, which is saved; the same command resumes there.")
            self.stop.leave()

    def on_epoch_end(self, epoch, logs=None):
        self.state.save(self.progress.step)


class NonFiniteLoss(Exception):
    """The loss of step `step` (from 0) was NaN or infinite."""

    def __init__(self, step: int):
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


class WatchLosses(keras.callbacks.Callback):
    """Raises `NonFiniteLoss` at the first NaN or infinite loss; warns once if no anchor is ever positive."""

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress, self.warned = progress, False

    def on_train_batch_end(self, batch, logs=None):
        logs = logs or {}
        # Logs are means since the epoch's beginning: NaN from the bad step on.
        if not math.isfinite(logs.get("loss", 0.0)):
            raise NonFiniteLoss(self.progress.step - 1)
        # The box loss is a sum over positive anchors: exactly 0 without any.
        if batch + 1 >= PATIENCE and logs.get("box_deltas_loss") == 0.0 and not self.warned:
            self.warned = True
            logging.warning(
                "no anchor matched any object in %d steps: the objects are smaller or larger than every anchor, or the "
                "images have none; `retinanet inspect` shows which anchor settings would reach them.",
                batch + 1,
            )


METRICS = ("AP", "AP50", "AP75")
"""The numbers of an evaluation that go into the logs, as val_AP and so on."""


class EpochLog(keras.callbacks.CSVLogger):
    """Keras' log file, which wants the same columns in all epochs: those of `columns` are NaN where logs lack them."""

    def __init__(self, path: str, columns: Sequence[str]):
        super().__init__(path, append=True)
        self.columns = columns

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, {**dict.fromkeys(self.columns, math.nan), **(logs or {})})


class EvaluateAndKeep(keras.callbacks.Callback):
    """Evaluates at the first epoch's end after every `every` steps; AP goes into the logs, the best weights are kept.

    Args:
        evaluate: returns the twelve numbers.
        keep: called with the step and the numbers when AP is the best so far.
        progress: the job's.
        every: steps.
        best: the best AP of the job's earlier processes.
        weights: the context to evaluate in, such as that of averaged weights.
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
        if self.progress.step < self.next:
            return
        self.next = (self.progress.step // self.every + 1) * self.every
        with self.weights():
            metrics = self.evaluate()
            if metrics["AP"] > self.best:
                self.best = metrics["AP"]
                self.keep(self.progress.step, metrics)
        print(f"step {self.progress.step}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
        if logs is not None:
            logs.update({f"val_{name}": metrics[name] for name in METRICS})
