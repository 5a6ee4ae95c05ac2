"""Whole jobs as processes: killed and gone on bit for bit, stopped by a signal, on several devices and machines."""

import contextlib
import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import retinanet_tf as rn
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.inference import checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Generated shards."""
    folder = tmp_path_factory.mktemp("shapes")
    split = shapes.generate(folder / "coco", num_train=40, num_val=1, image_size=64)["train"]
    rn.data.prepare(split.annotations, split.images, folder, "train", shards=2, progress=False)
    return folder


def start(run_dir, shards, environment=None, **changes):
    """A job in a process of its own."""
    settings = [f"{name}={value!r}" for name, value in changes.items()]
    arguments = [sys.executable, "-m", "tests.job", str(run_dir), str(shards), *settings]
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """Its exit status and what it printed."""
    output = process.communicate(timeout=900)[0]
    return process.returncode, output


def weights(run_dir):
    """Of a finished run."""
    return checkpoint.load_model(run_dir).get_weights()


def losses(run_dir):
    """Of each epoch."""
    with open(Path(run_dir) / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def wait_for_step(process, run_dir, step):
    """Until the job has saved `step` or a later one."""
    deadline = time.monotonic() + 900
    while process.poll() is None and time.monotonic() < deadline:
        saved = [int(path.stem.rsplit("-", 1)[1]) for path in Path(run_dir).glob("checkpoints/step-*.index")]
        if max(saved, default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} wasn't saved: {process.communicate()[0]}")


def test_killed_at_any_moment_the_job_goes_on_bit_for_bit(shards, tmp_path):
    """Three times `kill -9` at random moments and once SIGTERM: the weights of a job that was never stopped."""
    job = {"steps": 240, "checkpoint_steps": 20}
    whole = start(tmp_path / "whole", shards, **job)
    rng = random.Random(time.time_ns())
    run_dir = tmp_path / "killed"
    for step in sorted(rng.sample(range(20, 120, 20), 3)):
        process = start(run_dir, shards, **job)
        wait_for_step(process, run_dir, step)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
        print(f"killed with step {step} saved")
    process = start(run_dir, shards, **job)
    newest = max(int(path.stem.rsplit("-", 1)[1]) for path in run_dir.glob("checkpoints/step-*.index"))
    wait_for_step(process, run_dir, newest + 20)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 143, output
    assert f"going on after {newest} of 240 steps" in output and "which is saved" in output
    status, output = finish(start(run_dir, shards, **job))
    assert status == 0 and "going on after" in output, output
    status, output = finish(whole)
    assert status == 0, output
    for ours, theirs in zip(weights(run_dir), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_two_and_four_devices_train_alike(shards, tmp_path):
    """20 steps at one global batch: losses agree to 1e-4."""
    jobs = {
        count: start(tmp_path / str(count), shards, steps=20, checkpoint_steps=1, devices=count) for count in (1, 2, 4)
    }
    for process in jobs.values():
        status, output = finish(process)
        assert status == 0, output
    reference = losses(tmp_path / "1")
    assert len(reference) == 20 and reference[-1] != reference[0]
    for count in (2, 4):
        np.testing.assert_allclose(losses(tmp_path / str(count)), reference, rtol=1e-4)


def free_ports(count):
    """Ports below those that systems hand out by themselves: nobody gets one between this check and the worker's bind.

    The tests that run beside these in other processes take theirs from the system.
    """
    ports = []
    for port in random.SystemRandom().sample(range(20_000, 30_000), 1000):
        with contextlib.suppress(OSError), socket.create_server(("localhost", port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")


def cluster(count):
    """TF_CONFIG of every worker."""
    hosts = [f"localhost:{port}" for port in free_ports(count)]
    return [
        {"TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})}
        for index in range(count)
    ]


def test_two_workers_train_as_one_process_and_survive_the_loss_of_one(shards, tmp_path):
    """Keras 2: the losses of one process to 1e-4; a worker killed, both started again, and on from the checkpoint."""
    job = {"steps": 20, "checkpoint_steps": 1}
    if hasattr(keras, "ops"):
        status, output = finish(start(tmp_path / "run", shards, cluster(2)[0], strategy="multi_worker", **job))
        assert status == 1 and "--strategy=multi_worker needs Keras 2" in output and "Python 3.10 or 3.11" in output
        assert not (tmp_path / "run").exists()
        return
    one = start(tmp_path / "one", shards, **job)
    run_dir = tmp_path / "two"
    workers = [start(run_dir, shards, each, strategy="multi_worker", **job) for each in cluster(2)]
    wait_for_step(workers[0], run_dir, 5)
    workers[1].kill()
    workers[1].communicate()
    status, output = finish(workers[0])
    assert status == 1 and "start all workers again" in output, output
    workers = [start(run_dir, shards, each, strategy="multi_worker", **job) for each in cluster(2)]
    for process in workers:
        status, output = finish(process)
        assert status == 0 and "going on after" in output, output
    status, output = finish(one)
    assert status == 0, output
    np.testing.assert_allclose(losses(run_dir), losses(tmp_path / "one"), rtol=1e-4)
    for ours, theirs in zip(weights(run_dir), weights(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
