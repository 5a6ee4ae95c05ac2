"""Keras callbacks of a training job: progress, checkpoints, SIGTERM, NaN detection, log.csv."""

import csv
import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import keras
from absl import logging

from retinanet_tf import files
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
    """Saves a checkpoint at every epoch's end and when all workers know of a signal, which then ends the job.

    After an epoch's last step that is at the epoch's end: the callbacks before this one have logged it.
    """

    def __init__(self, state: TrainingState, progress: Progress, stop: StopRequest, epoch_steps: int):
        super().__init__()
        self.state, self.progress, self.stop, self.epoch_steps = state, progress, stop, epoch_steps

    def on_train_batch_end(self, batch, logs=None):
        step, total = self.progress.step, self.progress.total
        if self.stop.agreed and step % self.epoch_steps and step < total:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._save()

    def _save(self) -> None:
        step = self.progress.step
        self.state.save(step)
        if self.stop.agreed:
            leave_together(self.model.distribute_strategy, lambda: newest_step(self.state.folder) == step)
            print(f"\nstopped after step {step}, which is saved; the same command resumes there.")
            self.stop.leave()


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


class EpochLog(keras.callbacks.Callback):
    """Writes log.csv, a row per epoch; what an epoch's logs lack is NaN.

    Args:
        path: the file; its rows of the job's earlier processes are kept, unless they are damaged.
        step: the job's finished steps: the rows after it come again.
    """

    def __init__(self, path: Path, step: int):
        super().__init__()
        self.path, self.rows = path, _rows_until(path, step)

    def on_train_begin(self, logs=None):
        if self.rows:
            self._write()
        else:
            with suppress(OSError):  # where it can't be removed, the first epoch's row can't be written either
                self.path.unlink()

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch, **(logs or {})})
        self._write()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Adds an evaluation to the row of the epoch that ended with the step."""
        for row in self.rows:
            if float(row["step"]) == step:
                row.update(values)
                self._write()

    def _write(self) -> None:
        names = {name for row in self.rows for name in row}
        columns = sorted(names, key=lambda name: (name != "epoch", name))
        with files.written_aside(self.path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval=math.nan)
            writer.writeheader()
            writer.writerows(self.rows)


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of a log until a step, without those that aren't whole or aren't of numbers."""
    rows: list[dict[str, Any]] = []
    text = files.read_bytes(path, "the log").decode(errors="replace") if path.exists() else ""
    with suppress(csv.Error):
        for row in csv.DictReader(text.splitlines()):
            with suppress(TypeError, ValueError):  # a missing cell is None, cells beyond the columns are a list
                numbers = {name: float(value) for name, value in row.items()}
                if numbers.get("step", math.inf) <= step:
                    rows.append(row)
    return rows
