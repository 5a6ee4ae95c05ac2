"""Predict: detections on image and video files as annotated copies, JSON and a contact sheet; no TensorFlow here."""

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from retinanet_tf.data.records.images import BadImage, read_pixels
from retinanet_tf.data.sources.image_files import PREDICTED, SUFFIXES, is_predicted
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError, check_count
from retinanet_tf.files import local, make_folder, read_bytes, write_json
from retinanet_tf.inference.annotation_files import WRITTEN, AnnotatedPicture, check_formats, write_annotations
from retinanet_tf.inference.results import MIN_SCORE, to_results
from retinanet_tf.inference.video import SUFFIXES as VIDEO_SUFFIXES
from retinanet_tf.inference.video import is_video, read_frames, video_writer
from retinanet_tf.patterns import existing_folder, matching
from retinanet_tf.visualize import TILE, contact_sheet, draw_detections, save_image

if TYPE_CHECKING:
    from retinanet_tf.inference.detector import DetectorLike
    from retinanet_tf.inference.saved_model import SavedModelDetector
    from retinanet_tf.runtime.exported import ExportedDetector

    AnyDetector = DetectorLike | ExportedDetector | SavedModelDetector

_SHEET_SIZE = 40  # pictures on the contact sheet at most
_PICTURES, _SHEET, _RESULTS = PREDICTED


class Predictions(NamedTuple):
    """Result of `predict`."""

    detections: list[dict[str, Any]]  # the content of detections.json
    pictures: dict[str, Path]  # the annotated copy of each file, in the input's order
    unreadable: list[tuple[str, str]]  # (path, reason)
    drawn: dict[str, int]  # detections on the pictures per category, the most frequent first
    counts: dict[str, dict[str, int]]  # the same for each file, over all frames of a video
    notes: list[str]  # sentences on videos
    saved: list[str]  # files of annotations in the output folder


def find_images(
    inputs: str | os.PathLike | Sequence[str | os.PathLike], output: str | os.PathLike | None = None
) -> list[str]:
    """The image and video files of files, folders (searched recursively, by suffix) and glob patterns, each once.

    Hidden files and what `predict` wrote, in `output` or in a folder with its detections.json and contact_sheet.jpg,
    are left out of folders and patterns that contain such a folder. What exists is no pattern (see `matching`).

    Raises:
        InputError: an input that doesn't exist and matches nothing, or no input.
    """
    inputs = _as_list(inputs)
    if not inputs:
        raise InputError("no image or video is given; name files, folders or patterns.")
    paths: dict[str, str] = {}
    for given in inputs:
        if os.path.isdir(given):
            inside = [p for p in Path(given).rglob("*") if p.suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES)]
            found = sorted(str(p) for p in inside if not any(part[0] == "." for part in p.relative_to(given).parts))
        else:
            found = matching(given)
        if found != [given]:
            base = existing_folder(given)
            found = [path for path in found if not (os.path.isdir(path) or is_predicted(path, base, output))]
        if not found:
            raise InputError(f"{given} is neither an image or video file nor a folder or pattern with any.")
        for path in found:
            paths.setdefault(os.path.abspath(path), path)
    return list(paths.values())


def predict(
    detector: "AnyDetector",
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    min_score: float = MIN_SCORE,
    batch_size: int = 4,
    save: str | Sequence[str] = (),
    progress: bool = True,
) -> Predictions:
    """Detects objects on image and video files and writes pictures and JSON.

    Args:
        detector: a trained detector, or an exported one.
        inputs: a file, a folder, a glob pattern or several of them: see `find_images`.
        output: folder that gets pictures/NAME.jpg (annotated), contact_sheet.jpg and detections.json: COCO's results
            format, {"image_id", "category_id", "bbox": [x, y, w, h], "score"}, with the image's path as "image_id"
            and the category's name as "category". Of a video there are pictures/NAME.mp4 (without sound), and "frame",
            from 0, and "time" in seconds.
        min_score: detections below aren't drawn; detections.json has all that the detector gives.
        batch_size: images that go through the network together.
        save: also write the detections that are drawn as annotations: "coco", "csv" or "yolo", see
            `annotation_files.write_annotations`. File names are relative to the folder that is given, or that all
            inputs share.
        progress: whether to show a progress bar.

    Returns:
        `Predictions`. An unreadable file doesn't stop the others.

    Raises:
        InputError: an input doesn't exist or would be overwritten, or the output folder can't be written; annotations
            of videos; two pictures whose annotations would be one file.
    """
    check_count("batch_size", batch_size)
    if not isinstance(min_score, Real) or math.isnan(min_score):
        raise InputError(f"min_score={min_score} must be a number.")
    inputs, save = _as_list(inputs), _as_list(save)
    output = Path(local(output))
    paths = find_images(inputs, output)
    base = _common_folder(inputs)
    check_formats(save, [os.path.relpath(path, base) for path in paths])
    if save and (videos := [path for path in paths if is_video(path)]):
        raise InputError(f"save={save[0]} writes annotations of picture files, and {videos[0]} is a video.")
    targets = {path: output / _PICTURES / name for path, name in _picture_names(paths).items()}
    written = {os.path.realpath(path) for path in (*targets.values(), output / _SHEET)}
    for path in paths:
        if os.path.realpath(path) in written:
            raise InputError(f"{path} would be overwritten by its own annotated copy; choose another output folder.")
    if not (output / _RESULTS).exists():
        _check_own_files(inputs, output, save)
    make_folder(output / _PICTURES)
    found = _Found(detector.label_map, min_score, base)
    with tqdm(total=len(paths), desc="predict", unit="file", disable=not progress, mininterval=0.5) as bar:
        stills = [path for path in paths if not is_video(path)]
        for path, picture in _pictures(detector, stills, batch_size, found, bar):
            save_image(picture, targets[path])
        for path in filter(is_video, paths):
            _annotate_video(detector, path, targets[path], batch_size, found)
            bar.update()
    done = [path for path in paths if path in found.rows]
    flat = [row for path in done for row in found.rows[path]]
    write_json(output / _RESULTS, flat)
    if done:
        sheet = done[:_SHEET_SIZE]
        pictures = [found.first_frames[path] if is_video(path) else _thumbnail(targets[path]) for path in sheet]
        save_image(contact_sheet(pictures, titles=list(map(os.path.basename, sheet))), output / _SHEET)
    return Predictions(
        flat,
        {path: targets[path] for path in done},
        found.unreadable,
        dict(sum(found.counts.values(), Counter()).most_common()),
        {path: dict(found.counts[path].most_common()) for path in done},
        found.notes,
        write_annotations(save, output, [found.annotated[path] for path in done if save], detector.label_map),
    )


def _check_own_files(inputs: Sequence[str], output: Path, save: Sequence[str]) -> None:
    """Refuses a folder without predictions that has files of its own which they would replace."""
    pictures = output / _PICTURES
    given = any(os.path.isdir(path) and pictures.resolve().is_relative_to(Path(path).resolve()) for path in inputs)
    taken = [pictures] if given and pictures.is_dir() and any(pictures.iterdir()) else []
    taken += [path for path in (output / WRITTEN[name] for name in save) if path.exists()]
    if taken:
        raise InputError(f"{taken[0]} exists and isn't of an earlier prediction; choose another output folder.")


def _as_list(given: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    return [os.fspath(one) for one in ([given] if isinstance(given, str | os.PathLike) else given)]


def _thumbnail(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        picture.draft("RGB", (2 * TILE, 2 * TILE))
        picture.thumbnail((TILE, TILE))
        return np.asarray(picture)


class _Found:
    """What was found on the files so far, by their paths."""

    def __init__(self, label_map: LabelMap, min_score: float, base: str):
        self.label_map, self.min_score, self.base = label_map, min_score, base
        self.rows: dict[str, list[dict[str, Any]]] = {}  # of detections.json
        self.counts: dict[str, Counter[str]] = {}
        self.annotated: dict[str, AnnotatedPicture] = {}
        self.first_frames: dict[str, np.ndarray] = {}
        self.unreadable: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def draw(self, path: str, image: np.ndarray, detections: dict[str, np.ndarray], **more: Any) -> np.ndarray:
        """The annotated image, whose detections are noted; `more` goes into the rows of a frame."""
        shown = detections["scores"] >= self.min_score
        boxes, labels, scores = (detections[name][shown] for name in ("boxes", "labels", "scores"))
        names, ids = self.label_map.names, self.label_map.ids
        unique_names = self.label_map.unique_names
        self.counts.setdefault(path, Counter()).update(unique_names[label] for label in labels)
        # Bytes of a path that aren't UTF-8 aren't JSON either.
        rows = to_results(detections, path.encode(errors="backslashreplace").decode(), ids)
        for row, label in zip(rows, detections["labels"], strict=True):
            row.update(category=names[label], **more)
        self.rows.setdefault(path, []).extend(rows)
        if is_video(path):  # its frames keep their size
            return draw_detections(image, boxes, labels, scores, names, min_side=0, ids=ids)
        height, width = image.shape[:2]
        name = os.path.relpath(path, self.base)
        self.annotated[path] = AnnotatedPicture(name, width, height, boxes, labels, scores)
        return draw_detections(image, boxes, labels, scores, names, ids=ids)

    def refuse(self, path: str, reason: BadImage | InputError) -> None:
        """Notes that a file can't be read, and forgets what was found on it."""
        self.unreadable.append((path, str(reason)))
        for noted in (self.rows, self.counts, self.first_frames):
            noted.pop(path, None)


def _pictures(
    detector: "AnyDetector", paths: Sequence[str], batch_size: int, found: _Found, bar: tqdm
) -> Iterator[tuple[str, np.ndarray]]:
    """The annotated picture of every readable file, in any order."""
    readable: list[str] = []
    images: dict[int, np.ndarray] = {}

    def read() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                image = read_pixels(read_bytes(path, "the image"))
            except (BadImage, InputError) as error:
                found.refuse(path, error)
                bar.update()
                continue
            images[len(readable)] = image
            readable.append(path)
            yield image

    for index, detections in _detect_all(detector, read(), batch_size):
        yield readable[index], found.draw(readable[index], images.pop(index), detections)
        bar.update()


def _annotate_video(detector: "AnyDetector", path: str, target: Path, batch_size: int, found: _Found) -> None:
    """Writes the annotated copy of a video; a few batches of frames are held at a time."""
    try:
        frames, number = read_frames(path), 0
        with video_writer(target) as writer:
            while part := list(itertools.islice(frames, 4 * batch_size)):
                answers = dict(_detect_all(detector, (frame.pixels for frame in part), batch_size))
                for index, (pixels, time) in enumerate(part):
                    more = {"frame": number, "time": round(time, 6)}
                    picture = found.draw(path, pixels, answers[index], **more)
                    found.first_frames.setdefault(path, picture)
                    writer.write(picture, time)
                    number += 1
        if writer.resized:
            found.notes.append(f"{path}: {writer.resized} of {number} frames had another size; fitted to the first's.")
    except BadImage as error:
        found.refuse(path, error)


def _common_folder(inputs: Sequence[str]) -> str:
    """The folder that all inputs share: a folder that is given is its own, a pattern's is what comes before it."""
    folders = [path if os.path.isdir(path) else existing_folder(os.path.dirname(path)) for path in inputs]
    return os.path.commonpath([os.path.abspath(folder or ".") for folder in folders]) if folders else "."


def _detect_all(
    detector: "AnyDetector", images: Iterable[np.ndarray], batch_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    if hasattr(detector, "detect_all"):  # an exported one
        return detector.detect_all(images, batch_size)
    from retinanet_tf.inference.detector import detect_all

    return detect_all(detector, images, batch_size)


def _picture_names(paths: Sequence[str]) -> dict[str, str]:
    """A file name for every path's picture; equal names of different folders are numbered."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        stem, suffix = Path(path).stem, ".mp4" if is_video(path) else ".jpg"
        candidates = itertools.chain([f"{stem}{suffix}"], (f"{stem}-{number}{suffix}" for number in itertools.count(2)))
        names[path] = next(name for name in candidates if name.lower() not in taken)
        taken.add(names[path].lower())
    return names
