"""Prepare a dataset: annotations and images to TFRecord shards with an index, a label map and a summary."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np

from retinanet_tf.data.records.box_rules import KINDS, doubt_format, nothing_to_learn, shares_of_image
from retinanet_tf.data.records.example import shard_name, split_shard_name
from retinanet_tf.data.records.images import ImagePolicy
from retinanet_tf.data.records.index import VERSION
from retinanet_tf.data.records.shards import ShardReport, write_shards
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.image_files import BadImage, find_image
from retinanet_tf.data.sources.labels import ONE_MAP, LabelMap
from retinanet_tf.detection.rounding import round_up
from retinanet_tf.errors import InputError
from retinanet_tf.files import ended_by_sigterm, make_folder, output_folder, write_json

_IMAGES_PER_SHARD = 1000


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
    allow_outside: bool = False,
    progress: bool = True,
) -> dict:
    """Writes `output/name-*-of-*.tfrecord`, `labels.json`, `name.index.npz` and `name.summary.json`.

    Everything is written to `output/name.partial` and renamed at the end; what an earlier run with this `name` left is
    replaced.

    Args:
        annotations: a path in any format of `read_source` that needs no further word, or the result of a reader.
        images: the folder that the annotations' file names are relative to; `sources.image_files` says how.
        output: a folder, made if missing; splits (train, val) share it and its label map, of which the later ones may
            have a part.
        name: of the split, the shards' prefix. One that begins with "train" must have an object.
        shards: number of files; by default one per 1,000 images.
        limit: only the first so many images.
        num_workers: processes. The shards' bytes don't depend on it.
        on_bad_image: "stop" raises InputError at the first unusable image; "skip" lists it in the summary, and skips
            annotations of a COCO JSON without a usable bbox.
        verify: "decode" decodes every image, "header" only reads its header.
        exif: "stop", "upright" or "stored": see `ImagePolicy`; where `annotations.exif` says it, that decides.
        max_pixels: larger images count as bad and are not decoded.
        allow_outside: also reads files outside `images` that names lead to; otherwise they count as bad.
        progress: shows a bar with images per second.

    Returns:
        The summary, as in `name.summary.json`; its "warnings" are sentences.

    Raises:
        InputError: bad input; nothing is left in the folder, and an earlier dataset there is untouched.
    """
    if not isinstance(annotations, Annotations):
        label_map, skip_bad = written_labels(output), on_bad_image == "skip"
        annotations, _ = read_source(annotations, None, label_map, os.fspath(images), skip_bad, exif=exif)
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} must be at least 1.")
    chosen = replace(annotations, images=annotations.images[:limit])
    summaries = prepare_splits(
        {name: chosen},
        images,
        output,
        shards=shards,
        num_workers=num_workers,
        on_bad_image=on_bad_image,
        verify=verify,
        exif=exif,
        max_pixels=max_pixels,
        allow_outside=allow_outside,
        progress=progress,
    )
    return summaries[name]


def written_labels(output: str | os.PathLike) -> LabelMap | None:
    """The label map in a folder of shards, which the splits that follow share; None if there is none yet."""
    path = os.path.join(os.fspath(output), "labels.json")
    return LabelMap.load(path) if os.path.exists(path) else None


def prepare_splits(
    splits: Mapping[str, Annotations],
    images: str | os.PathLike,
    output: str | os.PathLike,
    *,
    shards: int | None = None,
    num_workers: int = 1,
    on_bad_image: str = "stop",
    verify: str = "decode",
    exif: str = "stop",
    max_pixels: int = ImagePolicy.max_pixels,
    allow_outside: bool = False,
    progress: bool = True,
) -> dict[str, dict]:
    """`prepare` for several splits of one image folder, such as those of `random_split`: all are written, or none.

    Args:
        splits: by their names.
        images, output, shards, num_workers, on_bad_image, verify, exif, max_pixels, allow_outside, progress: see
            `prepare`.

    Returns:
        The summary of each split.

    Raises:
        InputError: as `prepare`.
    """
    for key, choice, allowed in (
        ("on_bad_image", on_bad_image, ("stop", "skip")),
        ("verify", verify, ("decode", "header")),
        ("exif", exif, ("stop", "upright", "stored")),
    ):
        if choice not in allowed:
            raise InputError(f"{key}={choice} must be one of {', '.join(allowed)}.")
    for key, value in (("shards", shards), ("num_workers", num_workers)):
        if value is not None and value < 1:
            raise InputError(f"{key}={value} must be at least 1.")
    if not splits:
        raise InputError("splits is empty; give at least one.")
    folder, output = os.fspath(images), os.fspath(output)
    for name, annotations in splits.items():
        _check_split(name, annotations, exif)
    label_map = _shared_label_map(splits, output)
    if not os.path.isdir(folder):
        raise InputError(f"the image folder {folder} doesn't exist.")
    if on_bad_image == "stop":
        for annotations in splits.values():
            _find_files(annotations.images, folder, annotations.source, allow_outside)

    def write(name: str, annotations: Annotations) -> dict:
        """Writes everything of a split to its partial folder and returns the summary."""
        chosen, partial = annotations.images, _partial(output, name)
        policy = ImagePolicy(verify, annotations.exif or exif, max_pixels, allow_outside)
        count = min(shards or round_up(len(chosen), _IMAGES_PER_SHARD) // _IMAGES_PER_SHARD, len(chosen), 99999)
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        jobs = {
            os.path.join(partial, shard_name(name, shard, count)): [chosen[i] for i in numbers]
            for shard, numbers in enumerate(np.array_split(np.arange(len(chosen)), count))
        }
        reports = write_shards(jobs, folder, label_map, policy, on_bad_image == "skip", num_workers, progress)
        options = {"name": name, "shards": count, "on_bad_image": on_bad_image, **asdict(policy)}
        summary = {**_summarise(annotations, label_map, name, reports), "settings": options}
        _write_index(os.path.join(partial, f"{name}.index.npz"), reports)
        write_json(os.path.join(partial, f"{name}.summary.json"), summary)
        return summary

    summaries, published = {}, False
    with ended_by_sigterm(), output_folder(output, "output folder"):
        try:
            for name, annotations in splits.items():
                summaries[name] = write(name, annotations)
            _publish_labels(label_map, output)
            published = True
            for name in splits:
                _publish(_partial(output, name), output, name)
        except OSError as error:
            raise InputError(f"{output} can't be written: {error.strerror or error}.") from None
        finally:
            # What hasn't got its name yet when this is interrupted is all that is left of the split.
            for name in () if published else splits:
                shutil.rmtree(_partial(output, name), ignore_errors=True)
    return summaries


def _check_split(name: str, annotations: Annotations, exif: str) -> None:
    """Refuses a split that can't be prepared, before anything is written."""
    if not name or os.path.basename(name) != name:
        raise InputError(f"name={name} must be a plain word, the prefix of the shards' file names.")
    if name.startswith("train") and not annotations.num_boxes:
        raise InputError(
            f"{nothing_to_learn(annotations)} A split of background alone is possible under another name, such as val."
        )
    if not annotations.images:
        raise InputError(f"{annotations.source} has no image.")
    known = set(annotations.label_map.ids)
    for image in annotations.images:
        if not np.isfinite(image.boxes).all():
            raise InputError(f"image {image.file_name} of {annotations.source} has a box that is NaN or infinite.")
        if unknown := set(image.category_ids.tolist()) - known:
            raise InputError(
                f"image {image.file_name} of {annotations.source} has category id {min(unknown)}, which isn't among "
                "its categories."
            )
    if wrong := shares_of_image(annotations):
        raise InputError(wrong)
    if annotations.exif and exif not in ("stop", annotations.exif):
        raise InputError(f"exif={exif}, but the boxes of {annotations.source} were read as {annotations.exif}.")


def _partial(output: str, name: str) -> str:
    return os.path.join(output, f"{name}.partial")


def _find_files(images: list[ImageAnnotations], folder: str, source: str, allow_outside: bool) -> None:
    """Names the first image without a file before anything is written."""
    for image in images:
        try:
            find_image(folder, image.file_name, allow_outside)
        except BadImage as error:
            raise InputError(
                f"image {image.file_name} (id {image.image_id} in {source}) {error}. Correct the name, add the file, "
                "or give on_bad_image=skip to skip such images."
            ) from None


def _shared_label_map(splits: Mapping[str, Annotations], output: str) -> LabelMap:
    """The label map of the folder, or of the first split in a new one, whose categories all splits must have."""
    written, first = written_labels(output), next(iter(splits.values()))
    shared, owner = (written, os.path.join(output, "labels.json")) if written else (first.label_map, first.source)
    names = dict(zip(shared.ids, shared.names, strict=True))
    for annotations in splits.values():
        for category, name in zip(annotations.label_map.ids, annotations.label_map.names, strict=True):
            if names.get(category) != name:
                there = f"calls it {names[category]!r}" if category in names else "doesn't have it"
                raise InputError(
                    f"{annotations.source} has the category {category} ({name}), but {owner} {there}; {ONE_MAP}."
                )
    return shared


def _summarise(annotations: Annotations, label_map: LabelMap, name: str, reports: list[ShardReport]) -> dict:
    objects = sum((report.categories for report in reports), Counter())
    categories = {text: objects[i] for i, text in zip(label_map.ids, label_map.unique_names, strict=True)}
    findings: dict[str, list] = {kind: [] for kind in KINDS}
    for finding in (finding for report in reports for finding in report.findings):
        findings[finding.kind].append({"image": finding.image, "detail": finding.detail})
    counts = {kind: len(entries) for kind, entries in findings.items()}
    boxes, crowds = sum(report.boxes for report in reports), sum(report.crowds for report in reports)
    dropped = counts["zero_size_boxes"] + counts["outside_boxes"]
    doubt = doubt_format(counts["clipped_boxes"] + dropped, boxes + dropped)
    without = [text for text, count in categories.items() if not count]
    warnings = [nothing_to_learn(annotations), *annotations.warnings, doubt]
    if without and boxes > crowds:
        more = f" and {len(without) - 20} more" if len(without) > 20 else ""
        warnings.append(f"categories without an object: {', '.join(without[:20])}{more}.")
    summary = {
        "name": name,
        "source": annotations.source,
        "images": sum(len(report.rows) for report in reports),
        "images_without_objects": sum(report.empty_images for report in reports),
        "boxes": boxes,
        "crowds": crowds,
        "categories": categories,
        "counts": counts,
        "meaning": KINDS,
        "warnings": list(filter(None, warnings)),
        "findings": findings,
        "bytes": [report.bytes for report in reports],
    }
    if dropped and not boxes:
        raise InputError(
            f"none of the {dropped} boxes of {annotations.source} can be used: they have no size, swapped corners or "
            "no part in their image."
        )
    if not summary["images"]:
        raise InputError(f"no image of {annotations.source} could be used; on_bad_image=stop tells why.")
    return summary


def _write_index(path: str, reports: list[ShardReport]) -> None:
    np.savez_compressed(
        path,
        version=VERSION,
        bytes=np.array([report.bytes for report in reports], np.int64),
        shard=np.repeat(np.arange(len(reports)), [len(report.rows) for report in reports]),
        rows=np.array([row for report in reports for row in report.rows], np.int64),
        present=np.array([len(ids) for report in reports for ids in report.present], np.int64),
        categories=np.array([i for report in reports for ids in report.present for i in ids], np.int64),
    )


def _publish_labels(label_map: LabelMap, output: str) -> None:
    """Writes labels.json, which another `prepare` of the same new folder may have written meanwhile."""
    if (written := written_labels(output)) is None:
        label_map.save(os.path.join(output, "labels.json"))
    elif written != label_map:
        raise InputError(f"{output} got the labels.json of another `retinanet prepare` meanwhile; run this one again.")


def _publish(partial: str, output: str, name: str) -> None:
    """Replaces the split `name`: its old files go first, and the summary comes last."""
    for other in [f"{name}.summary.json", f"{name}.index.npz", *os.listdir(output)]:
        shard = split_shard_name(other)
        if other in (f"{name}.summary.json", f"{name}.index.npz") or (shard and shard[0] == name):
            with suppress(FileNotFoundError):
                os.remove(os.path.join(output, other))
    for other in sorted(os.listdir(partial), key=lambda other: (other.endswith(".summary.json"), other)):
        os.replace(os.path.join(partial, other), os.path.join(output, other))
    os.rmdir(partial)
