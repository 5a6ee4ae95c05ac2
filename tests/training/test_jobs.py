"""Whole jobs as processes: killed and resumed bit for bit, stopped by a signal, on several devices and machines."""

import contextlib
import json
import random
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from batches import damage
from job import Jobs
from small_jobs import log_of, losses, saved_step

import retinanet_tf as rn
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.evaluation.coco import METRICS
from retinanet_tf.inference import checkpoint

pytestmark = pytest.mark.slow
SIXTY = {
    **{"steps": 60, "checkpoint_steps": 4, "batch_size": 8},
    **{"clip_norm": 0.5, "accumulation": 2, "ema_decay": 0.9},
}
MULTI = {**SIXTY, "strategy": "multi_worker", "eval_steps": 40}


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
    """The finished run directory of sixty steps on one device."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    succeed(jobs.start(run_dir, shards, devices=1, **SIXTY))
    return run_dir


def succeed(job):
    """What a job that ends well printed."""
    status, output = job.finish()
    assert status == 0, output
    return output


def weights(run_dir):
    return checkpoint.load_model(run_dir).get_weights()


def wait_for_step(job, run_dir, step):
    """Until the job has saved `step` or a later one."""
    while saved_step(run_dir) < step:
        assert job.poll() is None, job.output.read_text()
        time.sleep(0.01)


def test_killed_at_any_moment_the_job_resumes_bit_for_bit(jobs, shards, tmp_path):
    """`kill -9` at a random moment, and SIGTERM: weights and evaluations of a job that was never stopped, every row."""
    seed = time.time_ns()
    print(f"seed {seed}")
    rng, run_dir = random.Random(seed), tmp_path / "killed"
    length = {"steps": 100, "checkpoint_steps": 10, "eval_steps": 15, "strategy": "one_device"}
    whole = jobs.start(tmp_path / "whole", shards, **length)
    job, step, delay = jobs.start(run_dir, shards, **length), rng.randrange(10, 60, 10), rng.uniform(0.0, 0.3)
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
    assert (run_dir / "evaluations.json").read_text() == (tmp_path / "whole" / "evaluations.json").read_text()
    rows, others = log_of(run_dir), log_of(tmp_path / "whole")
    assert [row["step"] for row in rows] == [str(step) for step in range(10, 101, 10)]
    assert [row["val_AP"] for row in rows] == [row["val_AP"] for row in others]


def test_one_two_and_four_devices_train_alike(jobs, shards, tmp_path, one_device):
    """20 steps at one global batch, clipped and in parts: losses agree to 1e-4."""
    running = {
        count: jobs.start(tmp_path / str(count), shards, devices=count, **{**SIXTY, "steps": 20}) for count in (2, 4)
    }
    reference = losses(one_device)[:5]
    assert reference[-1] < reference[0]
    for count, job in running.items():
        succeed(job)
        np.testing.assert_allclose(losses(tmp_path / str(count))[:5], reference, rtol=1e-4)


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


def tf_config(count):
    """The environments of the workers of one job; the first of several is called chief."""
    hosts = [f"localhost:{port}" for port in free_ports(count)]
    cluster = {"chief": hosts[:1], "worker": hosts[1:]} if count > 1 else {"worker": hosts}
    tasks = [{"type": kind, "index": index} for kind in cluster for index in range(len(cluster[kind]))]
    return [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks]


def slurm():
    """The environments of the two tasks of a Slurm step on this machine."""
    for number in random.SystemRandom().sample(range(1000), 1000):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in (20_000 + 10 * number, 20_001 + 10 * number):
                stack.enter_context(socket.create_server(("localhost", port)))
            break
    step = {"JOB_ID": number, "STEP_NODELIST": "localhost", "STEP_NUM_TASKS": 2, "STEP_TASKS_PER_NODE": "2"}
    tasks = [{**step, "PROCID": rank, "LOCALID": rank} for rank in range(2)]
    return [
        {"SLURMD_NODENAME": "localhost", **{f"SLURM_{name}": str(value) for name, value in task.items()}}
        for task in tasks
    ]


def start_workers(jobs, run_dirs, shards, environments):
    """The workers of one job, each with its own idea of the run directory."""
    return [
        jobs.start(run_dir, shards, environment, **MULTI)
        for run_dir, environment in zip(run_dirs, environments, strict=True)
    ]


def test_two_workers_train_as_one_process_through_losses_and_signals(jobs, shards, tmp_path, one_device):
    """Two workers, one killed; then one gets SIGTERM; the end is that of one process that was left alone, to 1e-4.

    In between, a run directory that they don't share stops both; and from the step of the SIGTERM one worker comes to
    the same end, which both evaluate on the way. (`experiments.soak` stops them more often, and compares bit for bit.)
    """
    run_dir = tmp_path / "two"
    workers = start_workers(jobs, [run_dir] * 2, shards, tf_config(2))
    wait_for_step(workers[0], run_dir, 4)
    lost = random.SystemRandom().randrange(2)
    workers[lost].send(signal.SIGKILL)
    statuses, outputs = zip(*(worker.finish() for worker in workers), strict=True)
    assert statuses[lost] == -signal.SIGKILL and statuses[1 - lost] == 1, outputs
    assert "lost the others" in outputs[1 - lost] and "start all workers again" in outputs[1 - lost]

    for worker in start_workers(jobs, [run_dir, tmp_path / "elsewhere"], shards, tf_config(2)):
        status, output = worker.finish()
        assert status == 1 and "disagree on the newest checkpoint's step" in output, output
    assert not (tmp_path / "elsewhere").exists()

    newest = saved_step(run_dir)
    workers = start_workers(jobs, [run_dir] * 2, shards, slurm())
    wait_for_step(workers[0], run_dir, newest + 4)
    workers[1].send(signal.SIGTERM)
    for worker in workers:
        status, output = worker.finish()
        assert status == 143 and f"resuming after {newest} of 60 steps" in output and "which is saved" in output, output
    shutil.copytree(run_dir, tmp_path / "alone")
    stopped = saved_step(run_dir) // 4  # the epoch whose mean is of the steps after the stop alone

    workers = start_workers(jobs, [run_dir] * 2, shards, tf_config(2))
    (alone,) = start_workers(jobs, [tmp_path / "alone"], shards, tf_config(1))
    for worker in workers:
        output = succeed(worker)
        assert "AP -inf" not in output and "retracing" not in output, output
    assert "begun by 2 worker(s), continued by 1 with the same batches" in succeed(alone)
    np.testing.assert_allclose(*(np.delete(losses(path), stopped) for path in (run_dir, one_device)), rtol=1e-4)
    two, alone = (json.loads((path / "metrics.json").read_text()) for path in (run_dir, tmp_path / "alone"))
    assert two["AP"] >= 0 and [two[name] for name in METRICS] == pytest.approx([alone[n] for n in METRICS], abs=1e-3)
    for end in (run_dir, tmp_path / "alone"):
        for ours, one in zip(weights(end), weights(one_device), strict=True):
            np.testing.assert_allclose(ours, one, atol=1e-4)


def test_two_workers_start_from_the_same_weights(jobs, shards, tmp_path, one_device):
    """A finished run's, as one process does; weights that differ, such as of a file that isn't shared, stop both."""
    other = tmp_path / "other"
    shutil.copytree(one_device, other)
    model = checkpoint.load_model(one_device)
    model.set_weights([value * 1.01 for value in model.get_weights()])
    checkpoint.save_weights(model, other / checkpoint.WEIGHTS)
    start = {**MULTI, "steps": 2, "eval_steps": 0}
    workers = [
        [
            jobs.start(tmp_path / name, shards, task, **start, init_weights=str(path))
            for task, path in zip(tf_config(2), paths, strict=True)
        ]
        for name, paths in (("same", (one_device, one_device)), ("differing", (one_device, other)))
    ]
    alone = jobs.start(tmp_path / "alone", shards, **{**start, "strategy": "one_device"}, init_weights=str(one_device))
    for job in (*workers[0], alone):
        assert f"{one_device}: " in succeed(job)
    for ours, one in zip(weights(tmp_path / "same"), weights(tmp_path / "alone"), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-4)
    for worker in workers[1]:
        status, output = worker.finish()
        assert status == 1 and "disagree on the checksum of the weights to start from" in output, output


@pytest.mark.once
def test_two_workers_share_files_and_a_damaged_one_ends_both(jobs, shards, tmp_path):
    """Shards shared by file: the same end twice. The worker that reads the damaged record names it."""
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    plain = {"accumulation": 1, "clip_norm": 0.0, "ema_decay": 0.0}
    by_files = {**plain, "shard_by": "files", "steps": 8, "eval_steps": 0}
    first, second = (
        [jobs.start(tmp_path / name, copy, task, **{**MULTI, **by_files}) for task in tf_config(2)]
        for name in ("first", "second")
    )
    for worker in (*first, *second):
        succeed(worker)
    for one, other in zip(weights(tmp_path / "first"), weights(tmp_path / "second"), strict=True):
        np.testing.assert_array_equal(one, other)
    path, _ = damage(str(copy / "train-*.tfrecord"))
    workers = [jobs.start(tmp_path / "damaged", copy, task, **{**MULTI, **by_files}) for task in tf_config(2)]
    statuses, outputs = zip(*(worker.finish() for worker in workers), strict=True)
    assert statuses == (1, 1)
    assert sorted(f"record 2 of {path} is damaged" in output for output in outputs) == [False, True], outputs
    assert sorted("lost the others" in output for output in outputs) == [False, True], outputs
    assert not any("Traceback" in output for output in outputs)
