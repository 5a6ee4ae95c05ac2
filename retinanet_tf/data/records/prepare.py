"""Annotations and images to TFRecord shards, a label map and a summary: any number of processes, the same bytes."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict

import numpy as np

from retinanet_tf.data.records import checksum
from retinanet_tf.data.records.box_rules import KINDS, shares_of_image
from retinanet_tf.data.records.example import shard_name, split_shard_name
from retinanet_tf.data.records.images import ImagePolicy
from retinanet_tf.data.records.shards import ShardReport
from retinanet_tf.data.records.workers import WorkerKilledError, write_shards
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import make_folder, read_text, write_json, written_aside

_VERSION = 2  # of what is written; raised whenever the same input would give other bytes
_IMAGES_A_SHARD = 1000


def prepare(
    annotations: str | os.PathLike | Annotations,
    images: str | os.PathLike,
    output: str | os.PathLike,
    name: str = "train",
    *,
    shards: int | None = None,
    limit: int | None = None,
    num_workers: int = 1,
    on_bad_image: str = "stop",
    verify: str = "decode",
    exif: str = "stop",
    max_pixels: int = ImagePolicy.max_pixels,
    progress: bool = True,
) -> dict:
    """Writes shards named `output/name-*-of-*`, `labels.json`, `name.index.npz` and `name.summary.json`.

    Args:
        annotations: a COCO instances JSON, or what one of the readers (`read_coco`, `read_voc`, `read_csv`) returned.
        images: the folder that the annotations' file names are relative to.
        output: a folder, made if missing; several names (train, val) share it and its label map.
        name: of the split, the shards' prefix.
        shards: how many files; by default one for each 1,000 images.
        limit: only the first so many images.
        num_workers: processes. The shards' bytes don't depend on it.
        on_bad_image: "stop" raises InputError at the first image that can't be used; "skip" lists it in the summary.
        verify: "decode" decodes every image, "header" only reads its header.
        exif: "stop", "upright" or "stored": see `ImagePolicy`.
        max_pixels: larger images count as bad, and are not decoded.
        progress: shows a bar with images a second.

    Returns:
        the summary, as in `name.summary.json`; its "reused" tells how many finished shards of an interrupted run
        were taken over (all of them: nothing had to be done).

    Raises InputError for bad input; then the folder has no new shard. After an interruption finished shards wait in
    `output/name.partial`, and the same call completes the rest.
    """
    if not isinstance(annotations, Annotations):
        annotations = read_coco(annotations)
    _check_choices(on_bad_image=(on_bad_image, ("stop", "skip")), verify=(verify, ("decode", "header")))
    _check_choices(exif=(exif, ("stop", "upright", "stored")))
    if not name or os.path.basename(name) != name:
        raise InputError(f"--name={name} must be a plain word, the prefix of the shards' file names.")
    if not annotations.num_boxes:
        raise InputError(f"{annotations.source} has no box at all; there is nothing to learn a detector from.")
    if wrong := shares_of_image(annotations):
        raise InputError(wrong)
    for flag, value in (("limit", limit), ("shards", shards), ("num_workers", num_workers)):
        if value is not None and value < 1:
            raise InputError(f"--{flag}={value} must be at least 1.")
    chosen = annotations.images[:limit]
    folder, output = os.fspath(images), os.fspath(output)
    stats = _stat_images(chosen, folder, annotations.source, missing_ok=on_bad_image == "skip")
    existed = os.path.isdir(output)
    make_folder(output, "--output folder")
    policy = ImagePolicy(verify, exif, max_pixels)
    shards = min(shards or -(-len(chosen) // _IMAGES_A_SHARD), len(chosen), 99999)
    settings = {"name": name, "shards": shards, "on_bad_image": on_bad_image, **asdict(policy)}
    fingerprint = _fingerprint(annotations, chosen, stats, settings)
    partial = os.path.join(output, f"{name}.partial")
    try:
        _agree_on_labels(output, annotations)
        done = _finished(output, name, shards, fingerprint)
        if done is not None:
            return {**done, "reused": shards}
        resumed = _resume(partial, fingerprint)
        parts = np.array_split(np.arange(len(chosen)), shards)
        jobs = {
            os.path.join(partial, shard_name(name, shard, shards)): [chosen[i] for i in part]
            for shard, part in enumerate(parts)
        }
        finished = {path: _finished_shard(path, output) if resumed else None for path in jobs}
        reports = {path: report for path, report in finished.items() if report is not None}
        reused = len(reports)
        todo = {path: part for path, part in jobs.items() if path not in reports}
        reports.update(
            write_shards(todo, folder, annotations.labels, policy, on_bad_image == "skip", num_workers, progress)
        )
        reports = {path: reports[path] for path in jobs}
        summary = _summarise(annotations, name, list(reports.values()), fingerprint, settings)
        _publish(output, partial, name, reports, annotations.labels, summary)
    except WorkerKilledError:
        raise
    except InputError:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed:
            with suppress(OSError):
                os.rmdir(output)
        raise
    return {**summary, "reused": reused}


def _check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    for flag, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"--{flag}={value} must be one of {', '.join(allowed)}.")


def _stat_images(images: list[ImageAnnotations], folder: str, source: str, missing_ok: bool) -> list[tuple[int, int]]:
    """(bytes, modification time) of each image; raises InputError for the first that is missing."""
    if not os.path.isdir(folder):
        raise InputError(f"the image folder {folder} doesn't exist.")
    stats = []
    for image in images:
        try:
            found = os.stat(os.path.join(folder, image.file_name))
            stats.append((found.st_size, found.st_mtime_ns))
        except OSError:
            if not missing_ok:
                raise InputError(
                    f"image {image.file_name} (id {image.image_id} in {source}) isn't in {folder}; add it, or give "
                    "--on_bad_image=skip to go on without such images."
                ) from None
            stats.append((-1, -1))
    return stats


def _fingerprint(annotations: Annotations, images: list[ImageAnnotations], stats, settings: dict) -> str:
    """A digest of everything that the shards' bytes depend on, so that a re-run knows what it may take over."""
    digest = hashlib.sha256(json.dumps([_VERSION, settings, annotations.labels.to_json()]).encode())
    for image, stat in zip(images, stats, strict=True):
        digest.update(repr((image.image_id, image.file_name, image.width, image.height, stat)).encode())
        for array in (image.boxes, image.category_ids, image.area, image.iscrowd, image.annotation_ids):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _agree_on_labels(output: str, annotations: Annotations) -> None:
    """All splits of a folder share labels.json: what is there already must be this dataset's."""
    path = os.path.join(output, "labels.json")
    if os.path.exists(path) and LabelMap.load(path) != annotations.labels:
        raise InputError(
            f"{path} has other categories than {annotations.source}; splits in one folder share their categories, so "
            "choose another --output or remove the old dataset."
        )


def _finished(output: str, name: str, shards: int, fingerprint: str) -> dict | None:
    """The summary of an earlier, complete run on the same input; None if there is none."""
    path = os.path.join(output, f"{name}.summary.json")
    if not os.path.exists(path):
        return None
    try:
        summary = json.loads(read_text(path, "the summary"))
        sizes = [os.path.getsize(os.path.join(output, shard_name(name, i, shards))) for i in range(shards)]
    except (OSError, json.JSONDecodeError):
        return None
    complete = all(os.path.exists(os.path.join(output, other)) for other in ("labels.json", f"{name}.index.npz"))
    return summary if complete and summary.get("fingerprint") == fingerprint and summary["bytes"] == sizes else None


def _resume(partial: str, fingerprint: str) -> bool:
    """Whether `partial` holds work on the very same input; otherwise it is emptied."""
    job = os.path.join(partial, "job.json")
    try:
        with open(job, encoding="utf-8") as file:
            if json.load(file)["fingerprint"] == fingerprint:
                return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing to take over: begun afresh below
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    write_json(job, {"fingerprint": fingerprint})
    return False


def _finished_shard(path: str, output: str) -> ShardReport | None:
    """The report of a shard that an interrupted run completed (its file may have been published already)."""
    report = ShardReport.load(path + ".json")
    for place in (path, os.path.join(output, os.path.basename(path))):
        if report is not None and os.path.exists(place) and os.path.getsize(place) == report.bytes:
            return report
    return None


def _summarise(
    annotations: Annotations, name: str, reports: list[ShardReport], fingerprint: str, settings: dict
) -> dict:
    counts = dict.fromkeys(annotations.labels.ids, 0)
    for report in reports:
        for category, count in report.per_category.items():
            counts[category] += count
    names = dict(zip(annotations.labels.ids, annotations.labels.names, strict=True))
    findings: dict[str, list] = {kind: [] for kind in KINDS}
    for report in reports:
        for finding in report.findings:
            findings[finding.kind].append({"image": finding.image, "detail": finding.detail})
    summary = {
        "name": name,
        "source": annotations.source,
        "images": sum(report.images for report in reports),
        "images_without_objects": sum(report.empty_images for report in reports),
        "boxes": sum(report.boxes for report in reports),
        "crowds": sum(report.crowds for report in reports),
        "categories": {names[category]: count for category, count in counts.items()},
        "counts": {kind: len(entries) for kind, entries in findings.items()},
        "meaning": KINDS,
        "findings": findings,
        "settings": settings,
        "bytes": [report.bytes for report in reports],
        "fingerprint": fingerprint,
    }
    if not summary["images"]:
        raise InputError(
            f"no image of {annotations.source} could be used; see the reasons without --on_bad_image=skip."
        )
    return summary


def _publish(
    output: str, partial: str, name: str, reports: dict[str, ShardReport], labels: LabelMap, summary: dict
) -> None:
    """Renames the finished shards into place, removes those of an older run with another count, writes the rest."""
    fresh = {os.path.basename(path) for path in reports}
    with suppress(FileNotFoundError):
        os.remove(os.path.join(output, f"{name}.summary.json"))
    for path in reports:
        if os.path.exists(path):
            os.replace(path, os.path.join(output, os.path.basename(path)))
    for other in os.listdir(output):
        parsed = split_shard_name(other)
        if parsed and parsed[0] == name and other not in fresh:
            os.remove(os.path.join(output, other))
    rows = [np.array(report.rows, np.int64).reshape(-1, 6) for report in reports.values()]
    with written_aside(os.path.join(output, f"{name}.index.npz")) as aside, open(aside, "wb") as file:
        np.savez_compressed(
            file,
            version=checksum.VERSION,
            bytes=np.array(summary["bytes"], np.int64),
            shard=np.repeat(np.arange(len(rows)), [len(part) for part in rows]),
            rows=np.concatenate(rows),
        )
    if not os.path.exists(os.path.join(output, "labels.json")):
        labels.save(os.path.join(output, "labels.json"))
    write_json(os.path.join(output, f"{name}.summary.json"), summary)
    shutil.rmtree(partial, ignore_errors=True)
