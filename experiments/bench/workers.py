"""What a step sends: bytes between 1, 2 and 4 local processes, beside the ring's 2 (N - 1) G; and their losses.

    unshare --map-root-user --net python -m experiments.bench.workers --json=workers.json

`unshare` gives it a loopback device of its own, so that nobody else's bytes are counted. G is the gradients' bytes. The
processes share the machine's cores: their speed says nothing about machines that have cores of their own, and the rows
have it only to show what was running.
"""

import contextlib
import csv
import fcntl
import socket
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.bench.timing import Rows
from experiments.soak import CHECKPOINT_STEPS, finish, start, step_of, write_data
from retinanet_tf.cli.main import run
from retinanet_tf.inference import checkpoint

FIRST, LAST = CHECKPOINT_STEPS, 8 * CHECKPOINT_STEPS
SETTINGS = {"clip_norm": 0.0, "fpn_channels": 64, "subnet_channels": 64}
"""No exchange but the gradients'."""


def main() -> None:
    """Prints a row for each number of workers."""
    rows, losses, sent, speed = Rows(), {}, {}, {}
    _loopback_up()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for count in (1, 2, 4):
            run_dir = folder / f"{count}"
            workers = start(count, run_dir, folder, LAST + CHECKPOINT_STEPS, **SETTINGS)
            marks = [_mark(folder, step) for step in (FIRST, LAST)]
            finish(workers)
            steps, count_bytes, seconds = np.subtract(marks[1], marks[0])
            sent[count], speed[count] = float(count_bytes / steps), float(seconds / steps)
            with open(run_dir / "log.csv", newline="") as file:
                losses[count] = float(next(csv.DictReader(file))["loss"])
        model = checkpoint.load_model(folder / "1")
    size = sum(4 * int(np.prod(weight.shape)) for weight in model.trainable_weights)
    for count in (2, 4):
        ring = 2.0 * (count - 1) * size / 1e6
        rows.add_value(
            f"sent in a step, {count} workers, G = {size:,} bytes", sent[count] / 1e6, "ring", ring, "MB", None
        )
        worst = abs(losses[count] / losses[1] - 1.0)
        rows.add_value(
            f"loss of {CHECKPOINT_STEPS} steps, {count} workers", 1e6 * worst, "one", 0.0, "millionths off", 100
        )
    for count, seconds in speed.items():
        rows.add_value(f"a step, {count} workers on the same cores", 1e3 * seconds, "-", None, "ms", None)
    rows.write()


def _mark(folder: Path, step: int) -> tuple[int, int, float]:
    """Waits for the step; (the step, bytes that the loopback device has sent, the time)."""
    while (reached := step_of(folder)) < step:
        time.sleep(0.01)
    with open("/proc/net/dev", encoding="utf-8") as file:
        columns = next(line for line in file if line.strip().startswith("lo:")).split()
    return reached, int(columns[9]), time.perf_counter()


def _loopback_up() -> None:
    """A new network namespace's loopback device is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link, contextlib.suppress(PermissionError):
        fcntl.ioctl(link, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, up and running


if __name__ == "__main__":
    run(main, __doc__ or "")
