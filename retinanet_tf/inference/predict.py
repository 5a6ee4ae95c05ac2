"""Predict: detections on image files as annotated pictures, JSON and a contact sheet; needs no TensorFlow itself."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from tqdm import tqdm

from retinanet_tf.data.records.images import BadImage, read_pixels
from retinanet_tf.data.sources.image_files import SUFFIXES
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import make_folder, read_bytes, write_json
from retinanet_tf.inference.results import to_results
from retinanet_tf.patterns import existing_folder, matching
from retinanet_tf.visualize import contact_sheet, draw_detections, save_image

if TYPE_CHECKING:
    from retinanet_tf.inference.detector import DetectorLike

_SHEET_SIZE = 40  # pictures on the contact sheet at most
_PICTURES, _SHEET, _RESULTS = "pictures", "contact_sheet.jpg", "detections.json"


@runtime_checkable
class ImageDetector(Protocol):
    """The interface of exported detectors, which run without `Detector`: `ExportedDetector`, `SavedModelDetector`."""

    label_map: LabelMap

    def detect_all(
        self, images: Iterable[np.ndarray], batch_size: int
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]: ...


class Predictions(NamedTuple):
    """Result of `predict`."""

    detections: list[dict[str, Any]]  # the content of detections.json
    pictures: dict[str, Path]  # the annotated picture of each image file, in the input's order
    unreadable: list[tuple[str, str]]  # (path, reason)
    drawn: dict[str, int]  # detections on the pictures per category, the most frequent first


def find_images(inputs: Sequence[str | os.PathLike], output: str | os.PathLike | None = None) -> list[str]:
    """The image files of files, folders (searched recursively, by suffix) and glob patterns, each once.

    Hidden files and what `predict` wrote, in `output` or in a folder with its detections.json and contact_sheet.jpg,
    are left out of folders and patterns that contain such a folder. What exists is no pattern (see `matching`).

    Raises:
        InputError: an input that doesn't exist and matches nothing.
    """
    paths: dict[str, None] = {}
    for given in [os.fspath(path) for path in inputs]:
        if os.path.isdir(given):
            inside = [path for path in Path(given).rglob("*") if path.suffix.lower() in SUFFIXES]
            found = sorted(str(p) for p in inside if not any(part[0] == "." for part in p.relative_to(given).parts))
        else:
            found = matching(given)
        if found != [given]:
            base = Path(existing_folder(given))
            found = [path for path in found if not (os.path.isdir(path) or _is_output(Path(path), base, output))]
        if not found:
            raise InputError(f"{given} is neither an image file nor a folder or pattern with any.")
        paths.update(dict.fromkeys(found))
    return list(paths)


def predict(
    detector: "DetectorLike | ImageDetector",
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    min_score: float = 0.3,
    batch_size: int = 4,
    progress: bool = True,
) -> Predictions:
    """Detects objects on image files and writes pictures and JSON.

    Args:
        detector: a trained detector, or an exported one.
        inputs: files, folders, glob patterns: see `find_images`.
        output: folder that gets pictures/NAME.jpg (annotated), contact_sheet.jpg and detections.json: COCO's results
            format, {"image_id", "category_id", "bbox": [x, y, w, h], "score"}, with the image's path as "image_id"
            and the category's name as "category".
        min_score: detections below aren't drawn; detections.json has all that the detector gives.
        batch_size: images that go through the network together.
        progress: whether to show a progress bar.

    Returns:
        `Predictions`. An unreadable file doesn't stop the others.

    Raises:
        InputError: an input doesn't exist or would be overwritten, or the output folder can't be written.
    """
    paths, output = find_images(inputs, output), Path(output)
    targets = {path: output / _PICTURES / name for path, name in _picture_names(paths).items()}
    written = {os.path.realpath(path) for path in (*targets.values(), output / _SHEET)}
    for path in paths:
        if os.path.realpath(path) in written:
            raise InputError(f"{path} would be overwritten by its own annotated copy; choose another output folder.")
    make_folder(output / _PICTURES)
    readable: list[str] = []
    images: dict[int, np.ndarray] = {}
    unreadable: list[tuple[str, str]] = []

    def read() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                image = read_pixels(read_bytes(path, "the image"))
            except (BadImage, InputError) as error:
                unreadable.append((path, str(error)))
                bar.update()
                continue
            images[len(readable)] = image
            readable.append(path)
            yield image

    label_map, drawn = detector.label_map, Counter[str]()
    unique_names, results = label_map.unique_names, dict[str, list[dict[str, Any]]]()
    with tqdm(total=len(paths), desc="predict", unit="image", disable=not progress, mininterval=0.5) as bar:
        for index, detections in _detect_all(detector, read(), batch_size):
            path = readable[index]
            shown = detections["scores"] >= min_score
            boxes, labels, scores = (detections[name][shown] for name in ("boxes", "labels", "scores"))
            picture = draw_detections(images.pop(index), boxes, labels, scores, label_map.names, ids=label_map.ids)
            save_image(picture, targets[path])
            drawn.update(unique_names[label] for label in labels)
            # Bytes of a path that aren't UTF-8 aren't JSON either.
            rows = to_results(detections, path.encode(errors="backslashreplace").decode(), label_map.ids)
            for row, label in zip(rows, detections["labels"], strict=True):
                row["category"] = label_map.names[label]
            results[path] = rows
            bar.update()
    flat = [row for path in readable for row in results[path]]
    write_json(output / _RESULTS, flat)
    if readable:
        sheet = readable[:_SHEET_SIZE]
        pictures = [np.asarray(Image.open(targets[path])) for path in sheet]
        save_image(contact_sheet(pictures, titles=list(map(os.path.basename, sheet))), output / _SHEET)
    return Predictions(flat, {path: targets[path] for path in readable}, unreadable, dict(drawn.most_common()))


def _detect_all(
    detector: "DetectorLike | ImageDetector", images: Iterable[np.ndarray], batch_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    if isinstance(detector, ImageDetector):
        return detector.detect_all(images, batch_size)
    from retinanet_tf.inference.detector import detect_all

    return detect_all(detector, images, batch_size)


def _is_output(path: Path, base: Path, output: str | os.PathLike | None) -> bool:
    """Whether `predict` wrote a file, into a folder at or below `base`."""
    if path.parent.name == _PICTURES:
        folder = path.parent.parent
    elif path.name == _SHEET:
        folder = path.parent
    else:
        return False
    if not folder.is_relative_to(base):
        return False
    is_former = all((folder / name).is_file() for name in (_RESULTS, _SHEET))
    return is_former or (output is not None and os.path.realpath(folder) == os.path.realpath(output))


def _picture_names(paths: Sequence[str]) -> dict[str, str]:
    """A file name for every path's picture; equal names of different folders are numbered."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        stem = Path(path).stem
        candidates = itertools.chain([f"{stem}.jpg"], (f"{stem}-{number}.jpg" for number in itertools.count(2)))
        names[path] = next(name for name in candidates if name.lower() not in taken)
        taken.add(names[path].lower())
    return names
