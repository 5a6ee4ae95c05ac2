"""Detections as annotations, which labelling tools and `prepare` read: COCO JSON, CSV and YOLO's text files."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import make_folder, write_json, write_text
from retinanet_tf.inference.results import to_results

WRITTEN = {"coco": "annotations.json", "csv": "annotations.csv", "yolo": "labels"}
"""The formats, and what is written of each."""
_LABELS, _CLASSES = WRITTEN["yolo"], "classes.txt"


class AnnotatedPicture(NamedTuple):
    """A picture and its N objects."""

    file_name: str  # relative to the folder of the pictures
    width: int
    height: int
    boxes: np.ndarray  # `(N, 4)` xyxy pixels of the upright picture
    labels: np.ndarray  # `(N,)` class indices
    scores: np.ndarray  # `(N,)`


def check_formats(formats: Sequence[str], file_names: Sequence[str]) -> None:
    """Raises InputError if a format is unknown, or if two pictures would share a label file of YOLO's."""
    if unknown := [name for name in formats if name not in WRITTEN]:
        raise InputError(f"save={unknown[0]} must be one of {', '.join(WRITTEN)}.")
    taken = {_CLASSES: "the list of classes"}
    for name in file_names if "yolo" in formats else ():
        other = taken.setdefault(_text_name(name), name)
        if other != name:
            raise InputError(
                f"save=yolo would write the objects of {name} and {other} to one file, {_LABELS}/{_text_name(name)}; "
                "give another name to one of them, or another output folder for each."
            )


def write_annotations(
    formats: Sequence[str], folder: str | os.PathLike, pictures: Sequence[AnnotatedPicture], label_map: LabelMap
) -> list[str]:
    """Writes annotations.json (coco), annotations.csv (csv) and labels/NAME.txt with labels/classes.txt (yolo).

    Boxes are rounded to thousandths of a pixel. Pictures without objects are in each: YOLO's have an empty file.

    Args:
        formats: of `WRITTEN`.
        folder: where to.
        pictures: see `AnnotatedPicture`.
        label_map: ids of COCO's categories, and names. YOLO's ids are the class indices.

    Returns:
        What was written, relative to `folder`.

    Raises:
        InputError: a file can't be written.
    """
    folder = Path(folder)
    if "coco" in formats:
        write_json(folder / WRITTEN["coco"], _coco(pictures, label_map))
    if "csv" in formats:
        write_text(folder / WRITTEN["csv"], _csv(pictures, label_map))
    if "yolo" in formats:
        for picture in pictures:
            path = folder / _LABELS / _text_name(picture.file_name)
            make_folder(path.parent)
            write_text(path, _yolo(picture))
        names = [" ".join(name.split()) for name in label_map.unique_names]
        write_text(folder / _LABELS / _CLASSES, "".join(f"{name}\n" for name in names))
    return [f"{name}/" if name == _LABELS else name for key, name in WRITTEN.items() if key in formats]


def _text_name(file_name: str) -> str:
    return f"{os.path.splitext(file_name)[0]}.txt"


def _coco(pictures: Sequence[AnnotatedPicture], label_map: LabelMap) -> dict:
    images: list[dict] = []
    annotations: list[dict] = []
    for number, picture in enumerate(pictures, 1):
        name = picture.file_name.encode(errors="backslashreplace").decode()  # what isn't UTF-8 isn't JSON either
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        corners = np.round(np.asarray(picture.boxes, np.float64), 3)
        detections = {"boxes": corners, "labels": picture.labels, "scores": picture.scores}
        for row in to_results(detections, number, label_map.ids):
            area = round(row["bbox"][2] * row["bbox"][3], 3)
            annotations.append({"id": len(annotations) + 1, **row, "area": area, "iscrowd": 0})
    return {"images": images, "annotations": annotations, "categories": label_map.to_json()}


def _csv(pictures: Sequence[AnnotatedPicture], label_map: LabelMap) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "x1", "y1", "x2", "y2", "class", "width", "height", "score"])
    for picture in pictures:
        name = picture.file_name.encode(errors="backslashreplace").decode()
        for box, label, score in zip(picture.boxes, picture.labels, picture.scores, strict=True):
            corners = np.round(np.asarray(box, np.float64), 3).tolist()
            row = [name, *corners, label_map.unique_names[label], picture.width, picture.height, np.float32(score)]
            writer.writerow(row)
        if not len(picture.boxes):
            writer.writerow([name, "", "", "", "", "", picture.width, picture.height, ""])
    return text.getvalue()


def _yolo(picture: AnnotatedPicture) -> str:
    x1, y1, x2, y2 = np.asarray(picture.boxes, np.float64).reshape(-1, 4).T
    width, height = picture.width, picture.height
    shares = np.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], axis=1)
    lines = [
        " ".join([str(int(label)), *(f"{share:.8f}" for share in row)])
        for row, label in zip(shares, picture.labels, strict=True)
    ]
    return "".join(f"{line}\n" for line in lines)
