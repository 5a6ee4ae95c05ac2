"""A job that waits for its data service: it says so, ends at a signal, and errors of the service are sentences."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf

import retinanet_tf as rn
from retinanet_tf.training.job import Job
from retinanet_tf.training.strategies import Worker
from retinanet_tf.training.train import readable_failures

WAITING = """
import sys
from pathlib import Path
import tensorflow as tf
from retinanet_tf.training import service_watch
from retinanet_tf.training.callbacks import Progress, StopRequest

service_watch.SILENT_SECONDS, service_watch.GRACE_SECONDS = 0.5, float(sys.argv[2])
stop, progress = StopRequest(), Progress(100, 7, 4, lambda step: 0.0)
with stop, service_watch.ServiceWatch("grpc://localhost:5050", progress, stop, Path(sys.argv[1])) as watch:
    watch.on_train_batch_begin(0)
    print("waits", flush=True)
    tf.queue.FIFOQueue(1, [tf.float32]).dequeue()  # Python's handlers don't run in here
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "grace", "status"), [([signal.SIGTERM], 0.5, 143), ([signal.SIGINT, signal.SIGINT], 60.0, 130)]
)
def test_a_step_without_a_batch_ends_at_a_signal(tmp_path, signals, grace, status):
    (tmp_path / "step-5.index").touch()
    command = [sys.executable, "-c", WAITING, str(tmp_path), str(grace)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "waits\n"
    time.sleep(2.0)
    for number in signals:
        os.kill(job.pid, number)
        time.sleep(0.5)  # two of one kind at once are one
    printed, logged = job.communicate(timeout=30)
    assert job.returncode == status
    assert "stopped while step 7 waited for data_service=grpc://localhost:5050" in printed
    assert "the same command resumes from step 5" in printed
    assert logged.count("data_service=grpc://localhost:5050 may have lost its workers") == 1


@pytest.mark.parametrize(
    ("workers", "error", "sentence"),
    [
        (1, tf.errors.NotFoundError, "^data_service=grpc://h:1: Unknown iteration client; .* resumes from step 0"),
        (2, tf.errors.NotFoundError, "^data_service=grpc://h:1: Unknown iteration client; .* resumes from step 0"),
        (2, tf.errors.UnavailableError, "^worker 1 of 2 lost the others .Unknown iteration client.; "),
    ],
)
def test_errors_of_the_service_are_sentences(tmp_path, workers, error, sentence):
    config = rn.Config().replace(data_service="grpc://h:1")
    worker = Worker(workers - 1, workers)
    job = Job(config, {}, tf.distribute.get_strategy(), worker, rn.data.LabelMap([1], ["a"]), None)
    with pytest.raises(rn.InputError, match=sentence), readable_failures(job, tmp_path):
        raise error(None, None, "Unknown iteration client\nmore")


def test_without_a_service_other_errors_are_tensorflows(tmp_path):
    job = Job(rn.Config(), {}, tf.distribute.get_strategy(), Worker(), rn.data.LabelMap([1], ["a"]), None)
    with pytest.raises(tf.errors.NotFoundError), readable_failures(job, tmp_path):
        raise tf.errors.NotFoundError(None, None, "x")
