"""Shards written by one process or many; which one wrote a shard doesn't show in it."""

import multiprocessing
import signal
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from retinanet_tf.data.records.images import ImagePolicy
from retinanet_tf.data.records.shards import ShardReport, write_shard
from retinanet_tf.data.sources.annotations import ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError

_POLL_SECONDS = 0.25


class WorkerKilledError(InputError):
    """A worker process ended without a word; what is finished stays."""


class _Stopped(Exception):
    """Another process met an error, or the run was interrupted."""


def write_shards(
    jobs: dict[str, list[ImageAnnotations]],
    folder: str,
    labels: LabelMap,
    policy: ImagePolicy,
    skip_bad: bool,
    num_workers: int,
    progress: bool,
) -> dict[str, ShardReport]:
    """Writes each shard (path → images) and returns its report. Raises the first InputError in the order of paths."""
    total = sum(len(images) for images in jobs.values())
    with tqdm(total=total, unit="image", desc="writing shards", disable=not progress or not total) as bar:
        if min(num_workers, len(jobs)) <= 1:
            return {
                path: write_shard(path, images, folder, labels, policy, skip_bad, bar.update)
                for path, images in jobs.items()
            }
        return _write_in_processes(jobs, (folder, labels, policy, skip_bad), min(num_workers, len(jobs)), bar)


def _write_in_processes(jobs: dict[str, list], arguments: tuple, num_workers: int, bar: tqdm) -> dict[str, ShardReport]:
    # Forking this process would copy TensorFlow's threads in whatever state they are; a fork server is a fresh
    # process that imports the library once and is forked before TensorFlow starts any thread.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["retinanet_tf.data.records.shards"])
    done, stop = context.Value("q", 0), context.Value("b", 0)
    with ProcessPoolExecutor(num_workers, context, _start_worker, (done, stop)) as pool:
        futures = {pool.submit(_run, path, images, *arguments): path for path, images in jobs.items()}
        try:
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
                bar.update(done.value - bar.n)
                if any(future.exception() for future in finished):
                    break
        finally:
            stop.value = any(not future.done() or future.exception() for future in futures)
            pool.shutdown(wait=True, cancel_futures=True)
        bar.update(done.value - bar.n)
        errors = [future.exception() for future in futures if not future.cancelled()]
        for error in errors:
            if error is None or isinstance(error, _Stopped):
                continue
            if isinstance(error, BrokenProcessPool):
                raise WorkerKilledError(
                    "a worker process of prepare_data was killed, perhaps for lack of memory; the same command with "
                    "fewer --num_workers goes on from what is finished."
                ) from error
            raise error
        return {futures[future]: future.result() for future in futures}


_done: Any
_stop: Any
"""The counter and the flag that a worker shares with its parent; `_start_worker` sets them."""


def _start_worker(done, stop) -> None:
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers; a shard under way is abandoned


def _run(path: str, images: list, folder: str, labels: LabelMap, policy: ImagePolicy, skip_bad: bool) -> ShardReport:
    last = time.monotonic()
    pending = 0

    def step() -> None:
        nonlocal last, pending
        pending += 1
        if _stop.value:
            raise _Stopped
        if time.monotonic() - last > _POLL_SECONDS:
            flush()

    def flush() -> None:
        nonlocal last, pending
        with _done.get_lock():
            _done.value += pending
        last, pending = time.monotonic(), 0

    report = write_shard(path, images, folder, labels, policy, skip_bad, step)
    flush()
    return report
