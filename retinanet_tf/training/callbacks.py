"""Keras callbacks of a training job: progress, checkpoints, SIGTERM, NaN detection, evaluation."""

import csv
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from types import FrameType
from typing import Any

import keras
from absl import logging

from retinanet_tf.errors import InputError
from retinanet_tf.training.checkpoints import TrainingState, newest_step
from retinanet_tf.training.strategies import leave_together

STEPS_WITHOUT_POSITIVES = 50
"""Steps without a single positive anchor after which a warning is logged."""

UNTIMED = 2
"""First steps of a process, which trace and compile the step: they don't count for its speed once there are others."""

PRINT_SECONDS = {1: 0.2, 2: 30.0}
"""Seconds from one line of progress to the next, by `verbose`."""

LOSSES = ("loss", "class_logits_loss", "box_deltas_loss")


class StopRequest:
    """Delays SIGTERM and Ctrl-C to the end of a step, so that the state can be saved; a context manager.

    `signal` is the number of the received signal, 0 until then; `agreed` says that this worker or another one received
    one before the last step. A second Ctrl-C interrupts at once. Outside the main thread, where Python allows no
    handlers, signals act as before.
    """

    def __init__(self) -> None:
        self.signal, self.agreed = 0, False
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
        """Raises KeyboardInterrupt after Ctrl-C, else SystemExit with 143, as after SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


class Progress(keras.callbacks.Callback):
    """Prints losses, learning rate, speed and remaining time of the whole job; counts the steps.

    Later callbacks find the number of finished steps, the rate, the speed and the time in an epoch's logs.

    Args:
        total: steps of the job.
        step: finished steps.
        batch_size: images per step over all devices.
        rate: the learning-rate schedule.
        verbose: 0 prints nothing, 1 refreshes a line on a terminal, 2 prints one every half minute; both print one at
            every epoch's end.
    """

    def __init__(self, total: int, step: int, batch_size: int, rate: Callable, verbose: int = 0):
        super().__init__()
        self.total, self.step, self.batch_size, self.rate, self.verbose = total, step, batch_size, rate, verbose
        self._seconds = 0.0
        self._last = self._printed = time.perf_counter()
        self._timed = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._timed += 1
        # A running mean; the first steps are all there is to go by at first.
        decay = 0.95 if self._timed > UNTIMED + 1 else 0.0
        self._seconds = decay * self._seconds + (1.0 - decay) * seconds
        if self.verbose and now - self._printed > PRINT_SECONDS[self.verbose]:
            self._print(logs or {}, "\r" if self.verbose == 1 else "\n")

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["step"] = self.step
            logs["learning_rate"] = float(self.rate(self.step - 1))
            logs["images_per_s"] = round(self.batch_size / self._seconds, 2)
            logs["minutes_left"] = round((self.total - self.step) * self._seconds / 60, 2)
        if self.verbose:
            self._print(logs or {}, "\n")

    def _print(self, logs: dict[str, float], end: str) -> None:
        self._printed = time.perf_counter()
        losses = ", ".join(f"{name.removesuffix('_loss')} {logs[name]:.4g}" for name in LOSSES if name in logs)
        text = f"step {self.step} of {self.total}: {losses}, learning rate {float(self.rate(self.step - 1)):.3g}"
        if self._timed > UNTIMED + 1 or self.step == self.total:
            left = duration((self.total - self.step) * self._seconds)
            text += f", {self.batch_size / self._seconds:.3g} images/s, {left} left"
        print(f"{text:<110}" if self.verbose == 1 else text, end=end, flush=True)


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(7.3), duration(200), duration(7500)
    ('7 s', '3 min', '2 h 5 min')
    """
    if seconds < 99:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def decimal(value: float) -> str:
    """One of the twelve numbers with three decimals; — where it is undetermined.

    >>> decimal(0.25), decimal(-1.0)
    ('0.250', '—')
    """
    return "—" if value < 0 else f"{value:.3f}"


class SaveState(keras.callbacks.Callback):
    """Saves a checkpoint at the end of every epoch, and after the step in which all workers know of a signal."""

    def __init__(self, state: TrainingState, progress: Progress, stop: StopRequest):
        super().__init__()
        self.state, self.progress, self.stop = state, progress, stop

    def on_train_batch_end(self, batch, logs=None):
        if self.stop.agreed:
            self.state.save(self.progress.step)
            leave_together(self.model.distribute_strategy, lambda: newest_step(self.state.folder) == self.progress.step)
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
    """Raises `NonFiniteLoss` at the first NaN or infinite loss; warns once if no anchor is ever positive.

    Args:
        progress: the job's.
        box_weight: of the box loss, which shows whether there are positive anchors.
    """

    def __init__(self, progress: Progress, box_weight: float = 1.0):
        super().__init__()
        self.progress, self.warned, self.without = progress, box_weight == 0.0, 0

    def on_train_batch_end(self, batch, logs=None):
        logs = logs or {}
        # Logs are means since the epoch's beginning: NaN from the bad step on.
        if not math.isfinite(logs.get("loss", 0.0)):
            raise NonFiniteLoss(self.progress.step - 1)
        # The box loss is a sum over positive anchors: exactly 0 without any.
        self.without = self.without + 1 if logs.get("box_deltas_loss") == 0.0 else 0
        if self.without >= STEPS_WITHOUT_POSITIVES and not self.warned:
            self.warned = True
            logging.warning(
                "no anchor matched any object in %d steps: the objects are smaller or larger than every anchor, or the "
                "images have none; `retinanet inspect` shows which anchor settings would reach them.",
                self.without,
            )


LOGGED_METRICS = ("AP", "AP50", "AP75")
"""The numbers of an evaluation that go into the logs, as val_AP and so on."""


def unwritable(path: str | os.PathLike, reason: str) -> InputError:
    """The error for a file of a running job on a disk that is full or gone."""
    return InputError(f"{path} can't be written ({reason}); make room and repeat the command: it resumes.")


class EpochLog(keras.callbacks.CSVLogger):
    """Keras' log file, which wants the same columns in all epochs: those of `columns` are NaN where logs lack them."""

    def __init__(self, path: str, columns: Sequence[str]):
        super().__init__(path, append=True)
        self.columns = columns
        self.keys: list[str] = []
        with suppress(FileNotFoundError), open(path, newline="") as file:  # of the job's earlier processes
            self.keys = [name for name in next(csv.reader(file), []) if name != "epoch"]

    def on_epoch_end(self, epoch, logs=None):
        logs = {**dict.fromkeys(self.columns, math.nan), **(logs or {})}
        self.keys = self.keys or sorted(logs)  # without keys Keras adds a column val_NAME to each
        try:
            super().on_epoch_end(epoch, {**dict.fromkeys(self.keys, math.nan), **logs})
        except OSError as error:
            raise unwritable(self.filename, error.strerror or str(error)) from None


ZERO_FACTOR = 5
"""A detector may begin with AP 0 for a while: it has this many times the patience to leave it."""


def is_exhausted(values: Sequence[float], patience: int) -> bool:
    """Whether `patience` evaluations in a row brought no higher AP than the best before them.

    >>> is_exhausted([0.3, 0.3], 2), is_exhausted([0.3, 0.3, 0.3], 2), is_exhausted([0.0, 0.0, 0.0, 0.1], 2)
    (False, True, False)

    Args:
        values: AP of all evaluations that count, the oldest first.
        patience: evaluations, above 0.
    """
    best = max(values, default=0.0)
    if best <= 0:
        return len(values) >= ZERO_FACTOR * patience
    return len(values) - 1 - list(values).index(best) >= patience


class EvaluateAndKeep(keras.callbacks.Callback):
    """Evaluates at the first epoch's end after every `every` steps; AP goes into the logs, the best weights are kept.

    An evaluation that was due when an earlier process ended comes at the beginning.

    Args:
        evaluate: returns the twelve numbers, and LOSSES on the validation data if they are wanted.
        keep: called with the step and the numbers when AP is the best so far.
        record: called with both after that: an evaluation that it hasn't recorded is due again.
        progress: the job's.
        every: steps.
        best: the best AP of the job's earlier processes.
        weights: the context to evaluate in, such as that of averaged weights.
        history: (step, AP) of the job's earlier evaluations.
        patience: evaluations without a higher AP that end the job; 0 for none.
        warmup: steps whose evaluations patience doesn't count.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        keep: Callable[[int, dict[str, float]], None],
        record: Callable[[int, dict[str, float]], None],
        progress: Progress,
        every: int,
        best: float,
        weights: Callable[[], AbstractContextManager],
        history: Sequence[tuple[int, float]] = (),
        patience: int = 0,
        warmup: int = 0,
    ):
        super().__init__()
        self.evaluate, self.keep, self.record, self.progress = evaluate, keep, record, progress
        self.every, self.best, self.weights, self.history = every, best, weights, list(history)
        self.patience, self.warmup = patience, warmup
        self.next = ((self.history[-1][0] if self.history else 0) // every + 1) * every

    def on_train_begin(self, logs=None):
        if self.progress.step < self.next:
            self._be_patient()
        else:
            self.on_epoch_end(0)

    def on_epoch_end(self, epoch, logs=None):
        if self.progress.step < self.next:
            return
        self.next = (self.progress.step // self.every + 1) * self.every
        with self.weights():
            metrics = self.evaluate()
            if 0 <= metrics["AP"] > self.best:  # −1: no object that counts
                self.best = metrics["AP"]
                self.keep(self.progress.step, metrics)
        if math.isinf(metrics["AP"]):
            return  # another worker's to evaluate
        self.record(self.progress.step, metrics)
        print(f"step {self.progress.step}: AP {decimal(metrics['AP'])}, AP50 {decimal(metrics['AP50'])}")
        if logs is not None:
            logs.update({f"val_{name}": metrics[name] for name in (*LOGGED_METRICS, *LOSSES) if name in metrics})
        self.history.append((self.progress.step, metrics["AP"]))
        self._be_patient()

    def _be_patient(self) -> None:
        values = [ap for step, ap in self.history if step > self.warmup]
        if self.patience and is_exhausted(values, self.patience):
            self.model.stop_training = True
            print(
                f"patience={self.patience}: AP no longer rises, and the job ends after step {self.progress.step}; "
                f"best.weights.h5 has the weights of the best AP, {self.best:.3f}."
            )
