"""Detections for image files: annotated pictures, JSON, a contact sheet; what can't be read is told at the end."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from retinanet_tf.data.records.images import BadImage, ImagePolicy, prepare_image
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.evaluator import detect_all, to_results
from retinanet_tf.files import make_folder, read_bytes, write_json
from retinanet_tf.inference.detector import Detector
from retinanet_tf.visualize import contact_sheet, draw_detections, save_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_SHEET = 40  # pictures on the contact sheet at most

# A photograph is shown as a viewer would show it: turned upright.
_POLICY = ImagePolicy(exif="upright")


class Predictions(NamedTuple):
    """What `predict` leaves: entries of detections.json in input order, and (path, reason) of unreadable files."""

    images: list[dict[str, Any]]
    unreadable: list[tuple[str, str]]


def find_images(inputs: Sequence[str | os.PathLike]) -> list[str]:
    """The image files behind files, folders (searched to the bottom, by suffix) and glob patterns, each once.

    Raises:
      InputError: an input that is no file and matches none.
    """
    paths: dict[str, None] = {}
    for given in (os.fspath(path) for path in inputs):
        if os.path.isdir(given):
            found = sorted(str(path) for path in Path(given).rglob("*") if path.suffix.lower() in SUFFIXES)
        else:
            found = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        if not found:
            raise InputError(f"{given} is no image file, no folder with images and no pattern that matches one.")
        paths.update(dict.fromkeys(found))
    return list(paths)


def predict(
    detector: Detector,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    min_score: float = 0.3,
    batch_size: int = 4,
    progress: bool = True,
) -> Predictions:
    """Detects objects on image files and writes what was found.

    Args:
      detector: a trained detector.
      inputs: files, folders, glob patterns.
      output: folder that gets pictures/NAME.jpg (annotated), detections.json and contact_sheet.jpg.
      min_score: detections below aren't drawn; detections.json has all that the detector gives.
      batch_size: images that go through the network together.
      progress: whether to show a progress bar.

    Returns:
      `Predictions`. An unreadable file doesn't stop the others.

    Raises:
      InputError: an input that isn't there, an output folder that can't be written.
    """
    paths, output = find_images(inputs), Path(output)
    make_folder(output / "pictures")
    names = _picture_names(paths)
    readable: list[str] = []
    waiting: dict[int, np.ndarray] = {}
    unreadable: list[tuple[str, str]] = []

    def images() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                image = _read(path)
            except (BadImage, InputError) as error:
                unreadable.append((path, str(error)))
                bar.update()
                continue
            waiting[len(readable)] = image
            readable.append(path)
            yield image

    entries: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(paths), desc="predict", unit="image", disable=not progress, mininterval=0.5) as bar:
        for index, found in detect_all(detector, images(), batch_size):
            path, image = readable[index], waiting.pop(index)
            boxes, labels, scores = (found[key] for key in ("boxes", "labels", "scores"))
            picture = draw_detections(image, boxes, labels, scores, detector.label_map.names, min_score=min_score)
            save_image(picture, output / "pictures" / names[path])
            entries[path] = _entry(path, names[path], image, found, detector)
            bar.update()
    ordered = [entries[path] for path in paths if path in entries]
    write_json(output / "detections.json", ordered)
    if ordered:
        shown = ordered[:_SHEET]
        pictures = [tf.io.decode_jpeg(read_bytes(output / entry["picture"], "the picture")).numpy() for entry in shown]
        titles = [os.path.basename(entry["file"]) for entry in shown]
        save_image(contact_sheet(pictures, titles=titles), output / "contact_sheet.jpg")
    return Predictions(ordered, unreadable)


def _read(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright; BadImage or InputError say why not."""
    prepared = prepare_image(read_bytes(path, "the image"), (None, None), _POLICY)
    try:
        return tf.io.decode_image(prepared.encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise BadImage("doesn't decode") from error


def _picture_names(paths: Sequence[str]) -> dict[str, str]:
    """A file name for every path's picture; equal names of different folders are numbered."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        stem, number = Path(path).stem, 1
        name = f"{stem}.jpg"
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}.jpg"
        taken.add(name.lower())
        names[path] = name
    return names


def _entry(path: str, name: str, image: np.ndarray, found: dict, detector: Detector) -> dict[str, Any]:
    labels = detector.label_map
    detections = to_results(found, 0, labels.ids)
    return {
        "file": path,
        "picture": f"pictures/{name}",
        "width": int(image.shape[1]),
        "height": int(image.shape[0]),
        "detections": [
            {
                "category_id": detection["category_id"],
                "category": labels.names[label],
                "score": detection["score"],
                "bbox": detection["bbox"],
            }
            for detection, label in zip(detections, found["labels"], strict=True)
        ],
    }
