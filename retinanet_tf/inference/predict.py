"""Predict: detections on image files as annotated pictures, JSON and a contact sheet."""

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
from retinanet_tf.files import make_folder, read_bytes, write_json
from retinanet_tf.inference.detector import DetectorLike, detect_all, to_results
from retinanet_tf.visualize import contact_sheet, draw_detections, save_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_SHEET = 40  # pictures on the contact sheet at most
_POLICY = ImagePolicy(exif="upright")  # as viewers show photographs


class Predictions(NamedTuple):
    """Result of `predict`."""

    detections: list[dict[str, Any]]  # the content of detections.json
    pictures: dict[str, Path]  # the annotated picture of each image file, in the input's order
    unreadable: list[tuple[str, str]]  # (path, reason)


def find_images(inputs: Sequence[str | os.PathLike]) -> list[str]:
    """The image files of files, folders (searched recursively, by suffix) and glob patterns, each once.

    Raises:
        InputError: an input that doesn't exist and matches nothing.
    """
    paths: dict[str, None] = {}
    for given in [os.fspath(path) for path in inputs]:
        if os.path.isdir(given):
            matches = sorted(str(path) for path in Path(given).rglob("*") if path.suffix.lower() in SUFFIXES)
        else:
            matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        if not matches:
            raise InputError(f"{given} is neither an image file nor a folder or pattern with any.")
        paths.update(dict.fromkeys(matches))
    return list(paths)


def predict(
    detector: DetectorLike,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    min_score: float = 0.3,
    batch_size: int = 4,
    progress: bool = True,
) -> Predictions:
    """Detects objects on image files and writes pictures and JSON.

    Args:
        detector: a trained detector.
        inputs: files, folders, glob patterns.
        output: folder that gets pictures/NAME.jpg (annotated), contact_sheet.jpg and detections.json: COCO's results
            format, {"image_id", "category_id", "bbox": [x, y, w, h], "score"}, with the image's path as "image_id"
            and the category's name as "category".
        min_score: detections below aren't drawn; detections.json has all that the detector gives.
        batch_size: images that go through the network together.
        progress: whether to show a progress bar.

    Returns:
        `Predictions`. An unreadable file doesn't stop the others.

    Raises:
        InputError: an input doesn't exist, or the output folder can't be written.
    """
    paths, output = find_images(inputs), Path(output)
    make_folder(output / "pictures")
    targets = {path: output / "pictures" / name for path, name in _picture_names(paths).items()}
    readable: list[str] = []
    images: dict[int, np.ndarray] = {}
    unreadable: list[tuple[str, str]] = []

    def read() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                image = _read(path)
            except (BadImage, InputError) as error:
                unreadable.append((path, str(error)))
                bar.update()
                continue
            images[len(readable)] = image
            readable.append(path)
            yield image

    names = detector.label_map.names
    results: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=len(paths), desc="predict", unit="image", disable=not progress, mininterval=0.5) as bar:
        for index, detections in detect_all(detector, read(), batch_size):
            path = readable[index]
            boxes, labels, scores = (detections[name] for name in ("boxes", "labels", "scores"))
            picture = draw_detections(images.pop(index), boxes, labels, scores, names, min_score=min_score)
            save_image(picture, targets[path])
            rows = to_results(detections, path, detector.label_map.ids)
            results[path] = [{**row, "category": names[label]} for row, label in zip(rows, labels, strict=True)]
            bar.update()
    flat = [row for path in readable for row in results[path]]
    write_json(output / "detections.json", flat)
    if readable:
        shown = readable[:_SHEET]
        pictures = [tf.io.decode_jpeg(read_bytes(targets[path], "the picture")).numpy() for path in shown]
        save_image(contact_sheet(pictures, titles=list(map(os.path.basename, shown))), output / "contact_sheet.jpg")
    return Predictions(flat, {path: targets[path] for path in readable}, unreadable)


def _read(path: str) -> np.ndarray:
    """`(H, W, 3)` uint8 RGB, upright; BadImage or InputError give the reason why not."""
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
