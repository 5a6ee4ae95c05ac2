"""Inspect a dataset: read it, collect errors and statistics, draw samples as training sees them, write the report."""

import dataclasses
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.data.inspect.page import html_page, text_page
from retinanet_tf.data.inspect.report import Inspection, inspect
from retinanet_tf.data.pipeline import load_for_training
from retinanet_tf.data.records.example import from_example
from retinanet_tf.data.records.images import BadImage, ImagePolicy, load_image
from retinanet_tf.data.records.index import find_shards, read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import labels_beside
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection.anchors import Anchors
from retinanet_tf.detection.assignment import assign
from retinanet_tf.errors import InputError
from retinanet_tf.visualize import contact_sheet, draw_detections

_THUMBNAILS = 24
_SAMPLES = 16
_COUNTED_STEPS = 16
_SAMPLES_TITLE = "What training sees: resized, flipped, jittered and padded, with its boxes"


def inspect_dataset(
    data: str | os.PathLike,
    config: Config,
    output: str | os.PathLike,
    *,
    images: str | None = None,
    split: str | None = None,
    label_map: LabelMap | None = None,
) -> Inspection:
    """Inspects a dataset and writes `output/report.html`, `report.txt`, `report.json` and `samples.jpg`.

    Args:
        data: a pattern of shards, or annotations of any format (`read_source`).
        config: whose anchors, image size and augmentation the dataset is compared with.
        output: a folder, made if missing.
        images: the folder of the images if `data` is annotations; without images only annotations are inspected.
        split: see `read_source`.
        label_map: see `read_source`; for shards it replaces the labels.json beside them.

    Returns:
        The inspection; problems of the data are its `errors`.

    Raises:
        InputError: data that can't be read at all.
    """
    files.make_folder(output, "output folder")
    pattern: str | None = None
    damaged: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        if os.path.isdir(data) or str(data).lower().endswith((".json", ".csv")):
            annotations, folder = read_source(data, split, label_map, images)
            picture = _picture_reader(folder)
            if folder is not None:
                pattern = _prepare_some(annotations, folder, scratch)
        else:
            annotations, damaged, picture = _from_shards(str(data), label_map)
            folder, pattern = None, None if damaged else str(data)
        inspection = inspect(annotations, config, folder)
        inspection.errors[:0] = damaged
        sheets = []
        if pattern is not None:
            inspection.facts["expected positives per image"] = _expected_positives(pattern, config)
            sheets.append((_SAMPLES_TITLE, _samples(pattern, config, annotations.label_map)))
    thumbnails = _thumbnails(inspection, picture)
    output = Path(output)
    if sheets:
        with files.written_aside(output / "samples.jpg") as aside:
            Image.fromarray(sheets[0][1]).save(aside, "JPEG", quality=90)
    files.write_text(output / "report.txt", text_page(inspection))
    files.write_text(output / "report.html", html_page(inspection, thumbnails, sheets))
    files.write_json(output / "report.json", _plain(inspection))
    return inspection


def _from_shards(pattern: str, label_map: LabelMap | None) -> tuple[Annotations, list[str], Callable]:
    """Annotations, errors and a reader of pictures. A damaged record ends the reading of its file."""
    label_map = labels_beside(pattern, label_map)
    images, errors, position = [], [], {}
    for path in find_shards(pattern):
        number = 0
        try:
            for data in tf.data.TFRecordDataset(path).as_numpy_iterator():
                image = from_example(data).annotations
                unknown = set(image.category_ids.tolist()) - set(label_map.ids)
                if unknown:
                    errors.append(f"record {number} of {path} has category id {min(unknown)}, which labels.json lacks.")
                else:
                    position[image.image_id] = (path, number)
                    images.append(image)
                number += 1
        except (ValueError, tf.errors.OpError):
            errors.append(f"record {number} of {path} is damaged; the records after it were not inspected.")
    if not errors:
        try:
            read_index(pattern)
        except InputError as error:
            errors.append(str(error))

    def picture(image: ImageAnnotations) -> np.ndarray:
        path, number = position[image.image_id]
        data = next(tf.data.TFRecordDataset(path).skip(number).take(1).as_numpy_iterator())
        return _pixels(from_example(data).encoded)

    return Annotations(pattern, images, label_map), errors, picture


def _picture_reader(folder: str | None) -> Callable[[ImageAnnotations], np.ndarray | None]:
    def picture(image: ImageAnnotations) -> np.ndarray | None:
        if folder is None:
            return None
        try:
            return _pixels(load_image(folder, image, ImagePolicy(verify="header", exif="upright")).encoded)
        except BadImage:
            return None

    return picture


def _pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def _prepare_some(annotations: Annotations, folder: str, scratch: str) -> str | None:
    """Shards of a few usable images, those with objects first; None if there are none."""
    order = sorted(annotations.images, key=lambda image: not len(image))
    some = dataclasses.replace(annotations, images=order[: 4 * _SAMPLES])
    try:
        prepare(some, folder, scratch, on_bad_image="skip", exif="upright", progress=False)
    except InputError:
        return None
    return os.path.join(scratch, "train-*.tfrecord")


def _batches(config: Config, pattern: str) -> tf.data.Dataset:
    data = dataclasses.replace(config.data, batch_size=4)
    return load_for_training(dataclasses.replace(config, data=data), pattern)


def _expected_positives(pattern: str, config: Config) -> dict:
    """Anchors per image that are assigned to an object, over some training batches."""
    counts = []
    for images, objects in _batches(config, pattern).take(_COUNTED_STEPS):
        targets = assign(Anchors(config.anchors)(images), objects["boxes"], objects["labels"], config.assign)
        counts += tf.reduce_sum(tf.cast(targets.positive, tf.int32), axis=1).numpy().tolist()
    percentiles = {"least": 0, "median": 50, "most": 100}
    spread = {name: float(np.percentile(counts, percent)) for name, percent in percentiles.items()}
    return {"mean": round(float(np.mean(counts)), 1), **spread}


def _samples(pattern: str, config: Config, label_map: LabelMap) -> np.ndarray:
    pictures = []
    for images, objects in _batches(config, pattern).take(_SAMPLES // 4):
        for image, boxes, labels in zip(images, objects["boxes"], objects["labels"], strict=True):
            pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
            pictures.append(draw_detections(pixels, boxes.numpy(), labels.numpy(), names=label_map.names))
    return contact_sheet(pictures)


def _thumbnails(inspection: Inspection, picture: Callable) -> list[tuple[np.ndarray, str]]:
    """The surroundings of suspicious boxes, some of each reason."""
    by_reason: dict[str, list] = {}
    for entry in inspection.suspicious:
        by_reason.setdefault(entry[0], []).append(entry)
    share = max(1, _THUMBNAILS // max(1, len(by_reason)))
    thumbnails = []
    for reason, image, box, text in [entry for entries in by_reason.values() for entry in entries[:share]]:
        pixels = picture(image)
        if pixels is None:
            continue
        height, width = pixels.shape[:2]
        x1, y1, x2, y2 = np.clip(box, 0, [width, height, width, height])
        margin = max(24.0, 0.5 * max(x2 - x1, y2 - y1))
        left, top = int(max(0, min(x1, width - 1) - margin)), int(max(0, min(y1, height - 1) - margin))
        right, bottom = int(min(width, x2 + margin)) + 1, int(min(height, y2 + margin)) + 1
        drawn = draw_detections(
            pixels[top:bottom, left:right],
            np.array([[x1 - left, y1 - top, x2 - left, y2 - top]]),
            np.array([0]),
            names=[""],
        )
        thumbnails.append((contact_sheet([drawn], tile=240, gap=0), f"{reason}: {image.file_name}, {text}"))
    return thumbnails


def _plain(inspection: Inspection) -> dict:
    suspicious = [
        {"reason": reason, "image": image.file_name, "box": [round(float(v), 3) for v in box], "detail": text}
        for reason, image, box, text in inspection.suspicious
    ]
    suggestions = [{"flags": f, "unreached_0.5": half, "unreached_0.4": less} for f, half, less in inspection.settings]
    return {
        "source": inspection.source,
        "errors": inspection.errors,
        "warnings": inspection.warnings,
        "facts": inspection.facts,
        "settings": suggestions,
        "suspicious": suspicious,
    }
