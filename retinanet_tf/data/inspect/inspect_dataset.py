"""The dataset doctor's visit: reads a dataset, inspects it, draws it as training will see it, writes the page."""

import dataclasses
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.data.inspect.page import html_page, text_page
from retinanet_tf.data.inspect.report import Inspection, inspect
from retinanet_tf.data.records.example import from_example
from retinanet_tf.data.records.images import BadImage, ImagePolicy, prepare_image
from retinanet_tf.data.records.index import find_shards, read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import labels_beside
from retinanet_tf.data.records.salvage import whole_records
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.sources.reading import read_source
from retinanet_tf.data.training_data import load_training_data
from retinanet_tf.detection.assignment import assign
from retinanet_tf.errors import InputError
from retinanet_tf.visualize import contact_sheet, draw_detections

_THUMBNAILS = 24
_SAMPLES = 16
_COUNTED_STEPS = 16


def visit(
    data: str | os.PathLike,
    config: Config,
    output: str | os.PathLike,
    *,
    images: str | None = None,
    split: str | None = None,
    labels: LabelMap | None = None,
) -> Inspection:
    """Inspects a dataset and writes OUTPUT/report.html, report.txt, report.json and samples.jpg.

    data: a pattern of shards, or any source that prepare_data reads (`read_source`), with `images` its folder. config:
    whose anchors, image size and augmentation the dataset is held against. Without images only annotations are looked
    at. Raises InputError for data that can't be read at all; what else is wrong are the result's `errors`.
    """
    files.make_folder(output, "--output folder")
    shards = not os.path.isdir(data) and not str(data).lower().endswith((".json", ".csv"))
    if shards:
        annotations, damaged, picture = _from_shards(str(data), labels)
        folder = None
    else:
        annotations, folder = read_source(data, split, labels)
        folder, damaged = images or folder, []
        picture = _picture_reader(folder)
    found = inspect(annotations, config, folder)
    found.errors[:0] = damaged
    sheets = []
    with tempfile.TemporaryDirectory() as scratch:
        pattern = str(data) if shards and not damaged else None
        if not shards and folder is not None:
            pattern = _prepare_some(annotations, folder, scratch)
        if pattern is not None:
            found.facts["expected positives an image"] = _expected_positives(pattern, config)
            title = "What training sees: resized, flipped, jittered and padded, with its boxes"
            sheets.append((title, _samples(pattern, config, annotations.labels)))
    thumbnails = _thumbnails(found, picture)
    output = Path(output)
    if sheets:
        with files.written_aside(output / "samples.jpg") as aside:
            Image.fromarray(sheets[0][1]).save(aside, "JPEG", quality=90)
    files.write_text(output / "report.txt", text_page(found))
    files.write_text(output / "report.html", html_page(found, thumbnails, sheets))
    files.write_json(output / "report.json", _plain(found))
    return found


def _from_shards(pattern: str, labels: LabelMap | None) -> tuple[Annotations, list[str], Callable]:
    labels = labels_beside(pattern, labels)
    images, damaged, where = [], [], {}
    for path in find_shards(pattern):
        for number, _, data in whole_or_checked(path):
            try:
                image = from_example(data or b"").annotations
            except ValueError:
                damaged.append(f"record {number} of {path} is damaged.")
                continue
            unknown = set(image.category_ids.tolist()) - set(labels.ids)
            if unknown:
                damaged.append(f"record {number} of {path} has category id {min(unknown)}, which labels.json lacks.")
                continue
            where[image.image_id] = (path, number)
            images.append(image)
    try:
        read_index(pattern)
    except InputError as error:
        if not damaged:
            damaged.append(str(error))

    def picture(image: ImageAnnotations) -> np.ndarray | None:
        path, number = where[image.image_id]
        data = next(data for at, _, data in whole_or_checked(path) if at == number)
        assert data is not None, "damaged records are not among the images"
        return _pixels(from_example(data).encoded)

    return Annotations(pattern, images, labels), damaged, picture


def whole_or_checked(path: str) -> Iterator[tuple[int, int | None, bytes | None]]:
    """(number, None, bytes or None) of each record; the slow way through a file only if it is damaged."""
    found = []
    try:
        for number, data in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
            found.append(number)
            yield number, None, data
    except tf.errors.OpError:
        yield from (record for record in whole_records(path) if record[0] >= len(found))


def _picture_reader(folder: str | None) -> Callable[[ImageAnnotations], np.ndarray | None]:
    def picture(image: ImageAnnotations) -> np.ndarray | None:
        if folder is None:
            return None
        try:
            encoded = Path(folder, image.file_name).read_bytes()
            policy = ImagePolicy(verify="header", exif="upright")
            return _pixels(prepare_image(encoded, (image.width, image.height), policy).encoded)
        except (OSError, BadImage):
            return None

    return picture


def _pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def _prepare_some(annotations: Annotations, folder: str, scratch: str) -> str | None:
    """Shards of a few usable images, those with objects first; None if there are none."""
    order = sorted(annotations.images, key=lambda image: not len(image))
    some = Annotations(annotations.source, order[: 4 * _SAMPLES], annotations.labels)
    try:
        prepare(some, folder, scratch, on_bad_image="skip", exif="upright", progress=False)
    except InputError:
        return None
    return os.path.join(scratch, "train-*.tfrecord")


def _batches(config: Config, pattern: str) -> tf.data.Dataset:
    data = dataclasses.replace(config.data, batch_size=4)
    return load_training_data(dataclasses.replace(config, data=data), pattern)


def _expected_positives(pattern: str, config: Config) -> dict:
    """Anchors assigned to an object, an image, over some training batches."""
    from retinanet_tf.detection.anchors import Anchors

    counts = []
    for images, objects in _batches(config, pattern).take(_COUNTED_STEPS):
        targets = assign(Anchors(config.anchors)(images), objects["boxes"], objects["labels"], config.assign)
        counts += tf.reduce_sum(tf.cast(targets.positive, tf.int32), axis=1).numpy().tolist()
    marks = {"least": 0, "median": 50, "most": 100}
    spread = {name: float(np.percentile(counts, mark)) for name, mark in marks.items()}
    return {"mean": round(float(np.mean(counts)), 1), **spread}


def _samples(pattern: str, config: Config, labels: LabelMap) -> np.ndarray:
    pictures = []
    for images, objects in _batches(config, pattern).take(_SAMPLES // 4):
        for image, boxes, classes in zip(images, objects["boxes"], objects["labels"], strict=True):
            pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
            pictures.append(draw_detections(pixels, boxes.numpy(), classes.numpy(), names=labels.names))
    return contact_sheet(pictures)


def _thumbnails(found: Inspection, picture: Callable) -> list[tuple[np.ndarray, str]]:
    """The surroundings of suspicious boxes, some of each reason."""
    by_reason: dict[str, list] = {}
    for entry in found.suspicious:
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
        crop = np.ascontiguousarray(pixels[top:bottom, left:right])
        drawn = draw_detections(crop, np.array([[x1 - left, y1 - top, x2 - left, y2 - top]]), np.array([0]), names=[""])
        thumbnails.append((contact_sheet([drawn], tile=240, gap=0), f"{reason}: {image.file_name}, {text}"))
    return thumbnails


def _plain(found: Inspection) -> dict:
    suspicious = [
        {"reason": reason, "image": image.file_name, "box": [round(float(v), 3) for v in box], "detail": text}
        for reason, image, box, text in found.suspicious
    ]
    settings = [{"flags": f, "unreached_0.5": half, "unreached_0.4": less} for f, half, less in found.settings]
    return {
        "source": found.source,
        "errors": found.errors,
        "warnings": found.warnings,
        "facts": found.facts,
        "settings": settings,
        "suspicious": suspicious,
    }
