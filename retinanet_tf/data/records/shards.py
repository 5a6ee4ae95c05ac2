"""TFRecord shards, written by one process or several: images read, checked, serialised, counted and indexed."""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from retinanet_tf.data.records.box_rules import Finding, clean
from retinanet_tf.data.records.example import to_example
from retinanet_tf.data.records.images import BadImage, ImagePolicy, load_image
from retinanet_tf.data.sources.annotations import ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError

# Bytes that the TFRecord format puts before a record (length and its CRC) and after it (CRC).
HEADER, FOOTER = 12, 4


@dataclass
class ShardReport:
    """Contents of one shard.

    rows: per record [offset, length, width, height, boxes without crowds]. categories: such boxes per category id.
    present: per record the ids of the categories that it has an object of, crowds left out.
    """

    bytes: int = 0
    boxes: int = 0
    crowds: int = 0
    empty_images: int = 0
    categories: Counter = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    present: list[list[int]] = field(default_factory=list)


def write_shards(
    jobs: dict[str, list[ImageAnnotations]],
    folder: str,
    label_map: LabelMap,
    policy: ImagePolicy,
    skip_bad: bool,
    num_workers: int,
    progress: bool,
) -> list[ShardReport]:
    """Writes each shard (path → images) and returns the reports in the order of `jobs`. Raises as `write_shard`."""
    arguments, total = (folder, label_map, policy, skip_bad), sum(len(images) for images in jobs.values())
    if min(num_workers, len(jobs)) > 1:
        written = _in_processes(jobs, arguments, min(num_workers, len(jobs)))
    else:
        written = ((path, write_shard(path, images, *arguments)) for path, images in jobs.items())
    reports = {}
    with tqdm(total=total, unit="image", desc="writing shards", disable=not progress) as bar:
        for path, report in written:
            reports[path] = report
            bar.update(len(jobs[path]))
    return [reports[path] for path in jobs]


def _in_processes(jobs: dict[str, list], arguments: tuple, num_workers: int) -> Iterator[tuple[str, ShardReport]]:
    # Forking this process would copy TensorFlow's threads in any state. A fork server imports the library once and is
    # forked before TensorFlow starts threads; Windows has none.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["retinanet_tf.data.records.shards"])
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_workers, context, _begin_worker) as pool:
        try:
            futures = {pool.submit(write_shard, path, images, *arguments): path for path, images in jobs.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            # The executor waits forever for a worker that it started while another one died (Python 3.11).
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise InputError(
                "a worker process was killed, perhaps for lack of memory; try again with a smaller "
                f"num_workers (it was {num_workers})."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Ctrl-C ends a worker without a traceback; so does the end of its parent, of which the pool tells it nothing."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    signal.raise_signal(signal.SIGTERM)


def write_shard(
    path: str,
    images: list[ImageAnnotations],
    folder: str,
    label_map: LabelMap,
    policy: ImagePolicy,
    skip_bad: bool,
) -> ShardReport:
    """Writes the images to the TFRecord file `path`.

    Raises:
        InputError: `path` can't be written, or an image can't be used and `skip_bad` is false; names it.
    """
    report, offset = ShardReport(), HEADER
    try:
        with tf.io.TFRecordWriter(path) as writer:
            for image in images:
                try:
                    prepared = load_image(folder, image, policy)
                except BadImage as error:
                    if not skip_bad:
                        raise InputError(
                            f"image {os.path.join(folder, image.file_name)} {error}. Correct or remove it, or give "
                            "on_bad_image=skip to skip such images."
                        ) from None
                    report.findings.append(Finding("skipped_images", image.file_name, str(error)))
                    continue
                cleaned, findings = clean(image, prepared.width, prepared.height)
                if prepared.changed:
                    findings.append(Finding("converted_images", image.file_name, prepared.changed))
                if prepared.exif:
                    how = f"settled as {policy.exif}" if prepared.exif == "ambiguous" else ""
                    findings.append(Finding(f"exif_{prepared.exif}", image.file_name, how))
                report.findings += findings
                serialized = to_example(prepared, cleaned, label_map)
                writer.write(serialized)
                crowds, length = int(cleaned.iscrowd.sum()), len(serialized)
                report.rows.append([offset, length, prepared.width, prepared.height, len(cleaned) - crowds])
                report.present.append(cleaned.present.tolist())
                report.boxes += len(cleaned)
                report.crowds += crowds
                report.empty_images += not len(cleaned)
                report.categories.update(cleaned.category_ids[~cleaned.iscrowd].tolist())
                offset += length + FOOTER + HEADER
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"the shard can't be written: {getattr(error, 'message', error)}.") from None
    report.bytes = offset - HEADER
    return report
