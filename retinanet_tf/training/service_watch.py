"""A data service that has gone away: the job says that it waits, and still ends at SIGTERM and Ctrl-C.

TensorFlow's client waits for ever and without a word, and while it waits, Python runs no handlers of signals.
"""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import keras
from absl import logging

from retinanet_tf.training.callbacks import Progress, StopRequest
from retinanet_tf.training.checkpoints import newest_step

SILENT_SECONDS = 60.0
"""A step that takes longer is told."""
GRACE_SECONDS = 20.0
"""The step in hand has so long to end after a signal."""


class ServiceWatch(keras.callbacks.Callback):
    """A thread beside the steps, inside a `with` block; the first of the callbacks.

    After a signal, a step that doesn't end within GRACE_SECONDS ends the process, as does a second Ctrl-C at once:
    with 143 after SIGTERM, 130 after Ctrl-C. The job resumes from its last checkpoint then.

    Args:
        address: of the data service.
        progress: the job's.
        stop: what receives the signals.
        states: the folder of the checkpoints.
    """

    def __init__(self, address: str, progress: Progress, stop: StopRequest, states: Path):
        super().__init__()
        self.address, self.progress, self.stop, self.states = address, progress, stop, states
        self._began: float | None = None  # of the step in hand
        self._ended = threading.Event()

    def __enter__(self) -> "ServiceWatch":
        self._signals, written = socket.socketpair()
        for end in (self._signals, written):
            end.setblocking(False)
        self._written, self._earlier = written, None
        with suppress(ValueError):  # outside of the main thread
            self._earlier = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._earlier is not None:
            signal.set_wakeup_fd(self._earlier)
        self._written.close()

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self._began = None

    def _watch(self) -> None:
        told, received, last = None, b"", 0.0
        while not self._ended.wait(0.2):
            with suppress(BlockingIOError):
                received, last = received + self._signals.recv(64), time.monotonic()
            numbers = [number for number in received if number in (signal.SIGTERM, signal.SIGINT)]
            began, now = self._began, time.monotonic()
            if began is None or self.stop.agreed:
                continue
            if now - began > SILENT_SECONDS and told != began:
                told = began
                logging.warning(
                    "step %d has taken %.0f s, for its batch or to compile: data_service=%s may have lost its workers.",
                    *(self.progress.step, now - began, self.address),
                )
            if numbers and (numbers.count(signal.SIGINT) > 1 or now - max(began, last) > GRACE_SECONDS):
                print(
                    f"\nstopped while step {self.progress.step} waited for data_service={self.address}; the same "
                    f"command resumes from step {newest_step(self.states)}.",
                    flush=True,
                )
                sys.stderr.flush()
                os._exit(128 + numbers[0])
        self._signals.close()
