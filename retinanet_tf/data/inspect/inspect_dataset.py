"""Inspect a dataset: read it, collect errors and statistics, draw samples as training sees them, write the report."""

import dataclasses
import functools
import io
import itertools
import os
import re
import tempfile
from collections import Counter
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
from retinanet_tf.data.records.images import BadImage, ImagePolicy, load_image
from retinanet_tf.data.records.index import find_shards, read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import labels_beside, read_records
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.image_headers import DAMAGE
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection.anchors import Anchors
from retinanet_tf.detection.assignment import assign
from retinanet_tf.errors import InputError, first_line
from retinanet_tf.text import printable
from retinanet_tf.visualize import contact_sheet, draw_detections

_THUMBNAILS = 24
_SAMPLES = 16
_COUNTED = 64  # images
_SAMPLES_TITLE = "What training sees: resized, flipped, jittered and padded, with its boxes"


def inspect_dataset(
    data: str | os.PathLike,
    config: Config,
    output: str | os.PathLike,
    *,
    images: str | None = None,
    split: str | None = None,
) -> Inspection:
    """Inspects a dataset and writes `output/report.html`, `report.txt`, `report.json` and `samples.jpg`.

    Args:
        data: a pattern of shards, or annotations of any format (`read_source`).
        config: whose anchors, image size and augmentation the dataset is compared with.
        output: a folder, made if missing.
        images: the folder of the images if `data` is annotations; without images only annotations are inspected.
        split: see `read_source`.

    Returns:
        The inspection; problems of the data are its `errors`.

    Raises:
        InputError: data that can't be read at all.
    """
    output, pattern = Path(files.local(output, "output folder")), None
    damaged: list[str] = []
    sheets: list[tuple[str, np.ndarray]] = []
    with files.output_folder(output, "output folder"), tempfile.TemporaryDirectory() as scratch:
        if os.path.isdir(data) or str(data).lower().endswith((".json", ".csv", ".yaml", ".yml")):
            annotations, folder = read_source(data, split, images=images)
            picture: Callable = functools.partial(_picture, folder)
            if folder is not None:
                pattern = _prepare_some(annotations, folder, scratch)
        elif images or split:
            raise InputError(f"images and split are for annotations; {data} is a pattern of shards, which have both.")
        else:
            annotations, damaged, picture = _from_shards(str(data))
            folder, pattern = None, None if damaged else str(data)
        inspection = inspect(annotations, config, folder)
        inspection.errors[:0] = damaged
        samples = output / "samples.jpg"
        samples.unlink(missing_ok=True)  # an earlier inspection's
        if pattern is not None:
            try:
                counts, sheet = _training(pattern, config, annotations.label_map)
            except tf.errors.OpError as error:  # a picture that doesn't decode
                sentence = re.search("<<(.*?)>>", str(error))
                inspection.errors.append(sentence[1] if sentence else first_line(error))
            else:
                inspection.facts["expected positives per image"] = counts
                sheets.append((_SAMPLES_TITLE, sheet))
                with files.written_aside(samples) as aside:
                    Image.fromarray(sheet).save(aside, "JPEG", quality=90)
    files.write_text(output / "report.txt", text_page(inspection))
    files.write_text(output / "report.html", html_page(inspection, _thumbnails(inspection, picture), sheets))
    files.write_json(output / "report.json", _plain(inspection))
    return inspection


def _from_shards(pattern: str) -> tuple[Annotations, list[str], Callable]:
    """Annotations, errors and a reader of pictures. A damaged record ends the reading of its file.

    Images without a name are called by their place: ids and names of other tools' records may be missing or repeat.
    """
    label_map = labels_beside(pattern)
    images: list[ImageAnnotations] = []
    errors, places, names = [], dict[str, tuple[str, int]](), Counter[str]()
    for path in find_shards(pattern):
        try:
            for number, record in enumerate(read_records(path)):
                image, place = record.annotations, f"record {number} of {path}"
                if unknown := set(image.category_ids.tolist()) - set(label_map.ids):
                    errors.append(f"{place} has category id {min(unknown)}, which labels.json lacks.")
                else:
                    places[place] = (path, number)
                    names[image.file_name] += 1
                    images.append(dataclasses.replace(image, image_id=place, file_name=image.file_name or place))
        except InputError as error:
            errors.append(f"{error} The records after it were not inspected.")
    if not errors:
        try:
            read_index(pattern)
        except InputError as error:
            errors.append(str(error))

    def picture(image: ImageAnnotations) -> np.ndarray | None:
        path, number = places[str(image.image_id)]
        return _pixels(next(itertools.islice(read_records(path), number, None)).encoded)

    annotations = Annotations(pattern, images, label_map)
    repeated = {name: count for name, count in names.items() if name and count > 1}
    if repeated:
        name, count = max(repeated.items(), key=lambda item: item[1])
        annotations.warnings.append(
            f"{len(repeated)} images are there several times, {printable(name)} {count} times: where a copy has only "
            "some of the objects, the others are learned as background."
        )
    return annotations, errors, picture


def _picture(folder: str | None, image: ImageAnnotations) -> np.ndarray | None:
    if folder is None:
        return None
    try:
        return _pixels(load_image(folder, image, ImagePolicy(verify="header", exif="upright")).encoded)
    except BadImage:
        return None


def _pixels(encoded: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except DAMAGE:
        return None


def _prepare_some(annotations: Annotations, folder: str, scratch: str) -> str | None:
    """Shards of a few usable images, those with objects first; None if there are none."""
    order = sorted(annotations.images, key=lambda image: not len(image))
    some = dataclasses.replace(annotations, images=order[: 4 * _SAMPLES])
    try:
        prepare(some, folder, scratch, on_bad_image="skip", exif="upright", progress=False)
    except InputError:
        return None
    return os.path.join(scratch, "train-*.tfrecord")


def _training(pattern: str, config: Config, label_map: LabelMap) -> tuple[dict, np.ndarray]:
    """The anchors per image that are assigned to an object, and images with their boxes, of some training batches."""
    data = dataclasses.replace(config.data, batch_size=4)
    counts: list[int] = []
    pictures: list[np.ndarray] = []
    for images, objects in load_for_training(dataclasses.replace(config, data=data), pattern).take(_COUNTED // 4):
        targets = assign(Anchors(config.anchors)(images), objects["boxes"], objects["labels"], config.assign)
        counts += tf.reduce_sum(tf.cast(targets.positive, tf.int32), axis=1).numpy().tolist()
        for image, boxes, labels in zip(images, objects["boxes"], objects["labels"], strict=True):
            if len(pictures) < _SAMPLES:
                pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
                boxes, labels = boxes.numpy(), labels.numpy()
                pictures.append(draw_detections(pixels, boxes, labels, names=label_map.names, ids=label_map.ids))
    spread = {"least": float(np.min(counts)), "median": float(np.median(counts)), "most": float(np.max(counts))}
    return {"mean": round(float(np.mean(counts)), 1), **spread}, contact_sheet(pictures)


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
        size = pixels.shape[1::-1]
        low, high = np.sort(np.clip(box, 0, [*size, *size]).reshape(2, 2), axis=0)  # corners may be swapped
        margin = max(24.0, 0.5 * (high - low).max())
        left, top = np.maximum(np.minimum(low, np.subtract(size, 1)) - margin, 0).astype(int)
        right, bottom = np.minimum(high + margin, size).astype(int) + 1
        around = np.concatenate([low, high]) - [left, top, left, top]
        drawn = draw_detections(pixels[top:bottom, left:right], around[None], np.array([0]), names=[""])
        thumbnails.append((contact_sheet([drawn], tile=240, gap=0), f"{reason}: {image.file_name}, {text}"))
    return thumbnails


def _plain(inspection: Inspection) -> dict:
    names = ("flags", "unreached_0.5", "unreached_0.4")
    return {
        **{name: getattr(inspection, name) for name in ("source", "errors", "warnings", "facts")},
        "settings": [dict(zip(names, row, strict=True)) for row in inspection.settings],
        "suspicious": [
            {"reason": reason, "image": image.file_name, "box": np.round(box.astype(float), 3).tolist(), "detail": text}
            for reason, image, box, text in inspection.suspicious
        ],
    }
