"""Writing one shard: images read, checked, serialised; the shard, its report and its index are whole or absent."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import tensorflow as tf

from retinanet_tf.data.records.box_rules import Finding, clean
from retinanet_tf.data.records.checksum import checksum
from retinanet_tf.data.records.example import to_example
from retinanet_tf.data.records.images import BadImage, ImagePolicy, prepare_image
from retinanet_tf.data.sources.annotations import ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import write_json, written_aside

# Bytes that the TFRecord format puts before a record (length and its checksum) and after it (checksum).
HEADER, FOOTER = 12, 4


@dataclass
class ShardReport:
    """What went into one shard; stored beside it until the dataset is complete.

    rows: a list a record of [offset, length, checksum, width, height, boxes without crowds].
    """

    bytes: int = 0
    images: int = 0
    boxes: int = 0
    crowds: int = 0
    empty_images: int = 0
    per_category: dict[int, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)

    @classmethod
    def load(cls, path: str) -> "ShardReport | None":
        """The stored report, None if there is none (or one of an older form)."""
        try:
            with open(path, encoding="utf-8") as file:
                stored = json.load(file)
            findings = [Finding(**entry) for entry in stored.pop("findings")]
            report = cls(**stored, findings=findings)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        report.per_category = {int(category): count for category, count in report.per_category.items()}
        return report


def write_shard(
    path: str,
    images: list[ImageAnnotations],
    folder: str,
    labels: LabelMap,
    policy: ImagePolicy,
    skip_bad: bool,
    step: Callable[[], None],
) -> ShardReport:
    """Writes the images to the TFRecord file `path` and its report to `path` + ".json".

    step: called after every image; may raise to stop. Raises InputError naming the image if one can't be used and
    `skip_bad` is false.
    """
    report = ShardReport()
    with written_aside(path) as aside:
        with tf.io.TFRecordWriter(aside) as writer:
            for image in images:
                try:
                    serialized, cleaned, findings = _serialise(image, folder, labels, policy)
                except BadImage as error:
                    if not skip_bad:
                        raise InputError(
                            f"image {os.path.join(folder, image.file_name)} {error}. Mend or remove it, or give "
                            "--on_bad_image=skip to go on without such images."
                        ) from None
                    report.findings.append(Finding("skipped_images", image.file_name, str(error)))
                else:
                    writer.write(serialized)
                    _count(report, serialized, cleaned, findings)
                step()
        report.bytes = os.path.getsize(aside)
    write_json(path + ".json", asdict(report))
    return report


def _serialise(image: ImageAnnotations, folder: str, labels: LabelMap, policy: ImagePolicy):
    try:
        with open(os.path.join(folder, image.file_name), "rb") as file:
            encoded = file.read()
    except OSError as error:
        raise BadImage(f"can't be read: {error.strerror}") from None
    prepared = prepare_image(encoded, (image.width, image.height), policy)
    cleaned, findings = clean(image, prepared.width, prepared.height)
    if prepared.changed:
        findings.append(Finding("converted_images", image.file_name, prepared.changed))
    if prepared.exif:
        how = f"settled as {policy.exif}" if prepared.exif == "ambiguous" else ""
        findings.append(Finding(f"exif_{prepared.exif}", image.file_name, how))
    return to_example(prepared, cleaned, labels), cleaned, findings


def _count(report: ShardReport, serialized: bytes, image: ImageAnnotations, findings: list[Finding]) -> None:
    assert image.width and image.height, "cleaned images have their size"
    crowds = int(image.iscrowd.sum())
    offset = report.rows[-1][0] + report.rows[-1][1] + FOOTER + HEADER if report.rows else HEADER
    report.rows.append([offset, len(serialized), checksum(serialized), image.width, image.height, len(image) - crowds])
    report.images += 1
    report.boxes += len(image)
    report.crowds += crowds
    report.empty_images += not len(image)
    report.findings.extend(findings)
    for category, count in zip(*np.unique(image.category_ids, return_counts=True), strict=True):
        report.per_category[int(category)] = report.per_category.get(int(category), 0) + int(count)
