"""Small training jobs as processes, forked from one that has imported TensorFlow, which takes longer than the job.

`python -m tests.job` reads requests from stdin; `Jobs` is its other end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

JOB = {
    "num_classes": 5,
    "freeze_stages": 0,
    "max_level": 5,
    "anchor_multiplier": 2.0,
    "image_size": 64,
    "max_size": 64,
    "batch_size": 4,
    "normalizer": "global",
    "learning_rate": 2e-3,
    "decay_steps": [],
}
"""Frozen statistics: one device, several, and several processes compute the same."""


class Jobs:
    """Starts jobs; a context manager."""

    def __enter__(self):
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.job"], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait(timeout=60)

    def start(self, run_dir, shards, environment=None, **changes):
        """A job that trains JOB with `changes`, which may also hold init_weights."""
        output = Path(f"{run_dir}-{time.monotonic_ns()}.txt")
        request = {"run_dir": str(run_dir), "shards": str(shards), "output": str(output), "changes": changes}
        return Job(self, self.ask(environment=environment or {}, **request), output)

    def ask(self, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


class Job:
    """A started job; `status` is None while it runs."""

    def __init__(self, jobs, pid, output):
        self.jobs, self.pid, self.output, self.status = jobs, pid, output, None

    def poll(self):
        if self.status is None:
            self.status = self.jobs.ask(poll=self.pid)
        return self.status

    def send(self, number):
        os.kill(self.pid, number)

    def finish(self):
        """Its exit status and its output."""
        deadline = time.monotonic() + 1800
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(0.02)
        return self.status, self.output.read_text()


def _run(request):
    """Becomes the job; never returns."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    sys.argv = ["job"]
    status = 1
    try:
        import retinanet_tf as rn
        from retinanet_tf.cli.main import run
        from tests.small_detectors import TINY_NETWORK

        changes = {**TINY_NETWORK, **JOB, **request["changes"]}
        init_weights = changes.pop("init_weights", "")
        config = rn.Config().replace(**changes)
        data = f"{request['shards']}/train-*.tfrecord"
        paths = {"data": data, "validation": data if config.train.eval_steps else None, "init_weights": init_weights}
        run(lambda: rn.train(config, **paths, run_dir=request["run_dir"], verbose=2) and None)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        print(repr(error))
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    """Answers until stdin ends: a request for a job with its pid, {"poll": pid} with its exit status or null."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("MPLBACKEND", "Agg")
    import retinanet_tf

    assert retinanet_tf.train and retinanet_tf.evaluate  # their modules are imported here, before the fork
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork() or _run(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
