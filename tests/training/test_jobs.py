"""Whole jobs as processes: killed and resumed bit for bit, stopped by a signal, on several devices and machines."""

import contextlib
import csv
import json
import random
import signal
import socket
import time

import keras
import numpy as np
import pytest
from job import Jobs

import retinanet_tf as rn
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.inference import checkpoint

pytestmark = pytest.mark.slow
TWENTY = {"steps": 20, "checkpoint_steps": 4}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Generated shards."""
    folder = tmp_path_factory.mktemp("shapes")
    split = shapes.generate(folder / "coco", num_train=40, num_val=1, image_size=64)["train"]
    rn.data.prepare(split.annotations, split.images, folder, "train", shards=2, progress=False)
    return folder


@pytest.fixture(scope="module")
def jobs():
    with Jobs() as jobs:
        yield jobs


@pytest.fixture(scope="module")
def one_device(jobs, shards, tmp_path_factory):
    """The finished run directory of twenty steps on one device."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    succeed(jobs.start(run_dir, shards, devices=1, **TWENTY))
    return run_dir


def succeed(job):
    """What a job that ends well printed."""
    status, output = job.finish()
    assert status == 0, output
    return output


def weights(run_dir):
    return checkpoint.load_model(run_dir).get_weights()


def losses(run_dir):
    """Of each epoch, the mean over its steps."""
    with open(run_dir / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def saved_step(run_dir):
    """Of the newest checkpoint, 0 for none."""
    return max((int(path.stem.rsplit("-", 1)[1]) for path in run_dir.glob("checkpoints/step-*.index")), default=0)


def wait_for_step(job, run_dir, step):
    """Until the job has saved `step` or a later one."""
    while saved_step(run_dir) < step:
        assert job.poll() is None, job.output.read_text()
        time.sleep(0.01)


def test_killed_at_any_moment_the_job_resumes_bit_for_bit(jobs, shards, tmp_path):
    """Twice `kill -9` at random moments and once SIGTERM: the weights of a job that was never stopped."""
    seed = time.time_ns()
    print(f"seed {seed}")
    rng, run_dir = random.Random(seed), tmp_path / "killed"
    length = {"steps": 100, "checkpoint_steps": 10, "strategy": "one_device"}
    whole = jobs.start(tmp_path / "whole", shards, **length)
    for step in sorted(rng.sample(range(10, 60, 10), 2)):
        job, delay = jobs.start(run_dir, shards, **length), rng.uniform(0.0, 0.3)
        wait_for_step(job, run_dir, step)
        time.sleep(delay)
        job.send(signal.SIGKILL)
        job.finish()
        print(f"killed {delay:.3f} s after step {step} was saved")
    newest = saved_step(run_dir)
    job = jobs.start(run_dir, shards, **length)
    wait_for_step(job, run_dir, newest + 10)
    job.send(signal.SIGTERM)
    status, output = job.finish()
    assert status == 143, output
    assert f"resuming after {newest} of 100 steps" in output and "which is saved" in output
    assert "resuming after" in succeed(jobs.start(run_dir, shards, **length))
    succeed(whole)
    for resumed, uninterrupted in zip(weights(run_dir), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(resumed, uninterrupted)


def test_one_two_and_four_devices_train_alike(jobs, shards, tmp_path, one_device):
    """20 steps at one global batch: losses agree to 1e-4."""
    running = {count: jobs.start(tmp_path / str(count), shards, devices=count, **TWENTY) for count in (2, 4)}
    reference = losses(one_device)
    assert len(reference) == 5 and reference[-1] != reference[0]
    for count, job in running.items():
        succeed(job)
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


def start_workers(jobs, run_dir, shards):
    """Two workers of one job."""
    hosts = [f"localhost:{port}" for port in free_ports(2)]
    tasks = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}} for index in range(2)]
    environments = [{"TF_CONFIG": json.dumps(task)} for task in tasks]
    return [jobs.start(run_dir, shards, each, strategy="multi_worker", **TWENTY) for each in environments]


@pytest.mark.skipif(not hasattr(keras, "ops"), reason="Keras 2 has multi_worker")
def test_several_workers_need_keras_2(jobs, shards, tmp_path):
    status, output = jobs.start(tmp_path / "run", shards, {"TF_CONFIG": "{}"}, strategy="multi_worker").finish()
    assert status == 1 and "strategy=multi_worker needs Keras 2" in output and "Python 3.10 or 3.11" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(hasattr(keras, "ops"), reason="Keras 3 has no multi_worker")
def test_two_workers_train_as_one_process_and_survive_the_loss_of_one(jobs, shards, tmp_path, one_device):
    """The losses of one process to 1e-4; a worker killed, both started again, and on from the checkpoint."""
    run_dir = tmp_path / "two"
    workers = start_workers(jobs, run_dir, shards)
    wait_for_step(workers[0], run_dir, 4)
    workers[1].send(signal.SIGKILL)
    workers[1].finish()
    status, output = workers[0].finish()
    assert status == 1 and "start all workers again" in output, output
    for worker in start_workers(jobs, run_dir, shards):
        assert "resuming after" in succeed(worker)
    np.testing.assert_allclose(losses(run_dir), losses(one_device), rtol=1e-4)
    for two, one in zip(weights(run_dir), weights(one_device), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4)
