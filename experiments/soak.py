"""Soak test of preemption: a small job stopped at random moments; its end is compared with an uninterrupted one's.

    python -m experiments.soak --stops=30 --workers=2 --json=soak.json

A stop is SIGTERM or SIGKILL, by chance, to one worker, by chance, at a random moment after the first step; then all are
started again. A line a stop: the signal, the step the job had come to, the step it resumes from. The exit status is 1
if a stop lost more than `checkpoint_steps` steps, or if the weights differ from those of a job that was never stopped.
"""

import json
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from absl import flags

import retinanet_tf as rn
from experiments.bench.timing import JSON, stack
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.errors import InputError
from retinanet_tf.inference import checkpoint
from retinanet_tf.training import callbacks
from retinanet_tf.training.checkpoints import newest_step

STOPS = flags.DEFINE_integer("stops", 30, "Number of stops.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3000, "Length of the job, enough for the stops.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 1, "Number of processes on this machine.", lower_bound=1)
SECONDS = flags.DEFINE_float(
    "seconds", 3.0, "Longest time from the first step after a start to the stop.", lower_bound=0.0
)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments, workers and signals.")

CHECKPOINT_STEPS = 20
JOB = {
    **{"num_classes": 5, "backbone": "resnet10_w16", "fpn_channels": 16, "subnet_channels": 16, "subnet_depth": 1},
    **{"max_level": 5, "image_size": 64, "max_size": 64, "batch_size": 4, "checkpoint_steps": CHECKPOINT_STEPS},
    **{"eval_steps": 0, "ema_decay": 0.99, "clip_norm": 10.0, "norm": "frozen", "subnet_norm": "none"},
}
"""A network that is built in seconds."""

FORK = multiprocessing.get_context("fork")
"""TensorFlow is imported once, and started in each process for itself."""


def main() -> None:
    """Prints a line per stop and the verdict."""
    rng, rows = random.Random(SEED.value), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        run_dir = folder / "stopped"
        for number in range(1, STOPS.value + 1):
            began, resumed = time.perf_counter(), newest_step(run_dir / "checkpoints")
            workers = start(WORKERS.value, run_dir, folder, STEPS.value)
            while step_of(folder) <= resumed:
                if any(worker.exitcode is not None for worker in workers):
                    sys.exit(f"a worker ended by itself:\n{(folder / '0.txt').read_text()[-2000:]}")
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, SECONDS.value))
            sent, stopped = rng.choice([signal.SIGTERM, signal.SIGKILL]), rng.choice(workers)
            os.kill(stopped.pid, sent)
            finish(workers)
            step, saved = step_of(folder), newest_step(run_dir / "checkpoints")
            row = {"stop": number, "signal": sent.name, "worker": workers.index(stopped), "step": step, "saved": saved}
            rows.append({**row, "lost": step - saved, "statuses": [worker.exitcode for worker in workers]})
            seconds = time.perf_counter() - began
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), f"({seconds:.0f} s)", flush=True)
        finish(start(WORKERS.value, run_dir, folder, STEPS.value))
        finish(start(WORKERS.value, folder / "whole", folder, STEPS.value))
        ends = [checkpoint.load_model(path).get_weights() for path in (run_dir, folder / "whole")]
    same = all(np.array_equal(one, other) for one, other in zip(*ends, strict=True))
    worst = max(row["lost"] for row in rows)
    print(f"{STOPS.value} stops of {WORKERS.value} worker(s): at most {worst} steps lost; same bit for bit: {same}.")
    if JSON.value:
        settings = {"workers": WORKERS.value, "steps": STEPS.value, "checkpoint_steps": CHECKPOINT_STEPS}
        result = {"lost_at_most": worst, "bit_for_bit": same, "stack": stack(), "stops": rows}
        files.write_json(JSON.value, settings | result)
    sys.exit(0 if same and worst <= CHECKPOINT_STEPS else 1)


def write_data(folder: Path) -> None:
    """FOLDER/train-*.tfrecord, 40 generated pictures."""
    finish([_process(folder / "data.txt", _generate, folder)])


def _generate(folder: Path) -> None:
    split = shapes.generate(folder / "coco", num_train=40, num_val=1, image_size=64)["train"]
    rn.data.prepare(split.annotations, split.images, folder, "train", shards=2, progress=False)


def start(count: int, run_dir: Path, folder: Path, steps: int, **changes) -> list[multiprocessing.Process]:
    """The processes of a job of `count` workers, JOB with `changes`; worker N prints every step into FOLDER/N.txt."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        hosts = [f"localhost:{server.getsockname()[1]}" for server in sockets]
    tasks = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}} for index in range(len(hosts))]
    settings = {**JOB, **changes, "steps": steps}
    return [
        _process(folder / f"{index}.txt", _job, run_dir, folder, task, settings) for index, task in enumerate(tasks)
    ]


def _job(run_dir: Path, folder: Path, task: dict, settings: dict) -> None:
    os.environ["TF_CONFIG"] = json.dumps(task)
    callbacks.PRINT_SECONDS[1] = 0.0  # every step
    strategy = "multi_worker" if len(task["cluster"]["worker"]) > 1 else "one_device"
    config = rn.presets["mini"].replace(**settings, strategy=strategy)
    rn.train(config, data=str(folder / "train-*.tfrecord"), run_dir=run_dir, verbose=1)


def _process(output: Path, target: Callable, *arguments) -> multiprocessing.Process:
    def redirected() -> None:
        with open(output, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            target(*arguments)
        except InputError as error:
            sys.exit(str(error))

    process = FORK.Process(target=redirected)
    process.start()
    return process


def finish(processes: list[multiprocessing.Process]) -> None:
    """Waits for their ends."""
    for process in processes:
        process.join()


def step_of(folder: Path) -> int:
    """The newest step that worker 0 printed."""
    output = folder / "0.txt"
    steps = re.findall(r"step (\d+) of \d+: ", output.read_text(errors="replace")) if output.exists() else []
    return int(steps[-1]) if steps else 0


if __name__ == "__main__":
    run(main, __doc__ or "")
