"""Generates a dataset of shapes as COCO files, without a download: exact labels, learnable in minutes.

    DIR/train.json  DIR/train/000000000001.jpg …
    DIR/val.json    DIR/val/000001000001.jpg …

Each picture depends on (seed, split, its number) alone, so the same call gives the same bytes on one installation
whatever the number of images and processes.
"""

import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from retinanet_tf.data.synthetic.scenes import CATEGORIES, draw_scene
from retinanet_tf.errors import InputError
from retinanet_tf.files import make_folder, write_text

_VERSION = 2  # raised whenever the same arguments would draw other pictures
_ID_STEP = 1_000_000  # image ids are unique over both splits


class Split(NamedTuple):
    """Paths and number of images of one split."""

    annotations: Path
    images: Path
    num_images: int


def generate(
    output_dir: str | os.PathLike,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
    objects: tuple[int, int] = (1, 5),
    sizes: tuple[float, float] | None = None,
    empty_share: float = 0.05,
    min_visible: float = 0.5,
    processes: int = 1,
) -> dict[str, Split]:
    """Writes the dataset, or reuses that of an earlier call with the same arguments, and prints which.

    Args:
        output_dir: folder for `train.json`, `train/`, `val.json`, `val/`; made if missing.
        num_train: images in the training split.
        num_val: images in the validation split.
        image_size: side of the square pictures, pixels.
        seed: a whole number ≥ 0.
        objects: fewest and most shapes on a picture that isn't empty.
        sizes: smallest and largest longer side of a shape in pixels; None is 8 px to 0.85 of the picture.
            Few small shapes on a large canvas: image_size=512, objects=(1, 3), sizes=(16, 64).
        empty_share: share of pictures without any shape.
        min_visible: shapes that would show less than this share of their area are not painted.
        processes: worker processes.

    Returns:
        {"train": Split, "val": Split}.

    Raises:
        InputError: impossible arguments, a folder that can't be written, or one that holds a dataset generated
            with other arguments (it is never overwritten).
    """
    sizes = (8.0, 0.85 * image_size) if sizes is None else (float(sizes[0]), float(sizes[1]))
    settings = {
        "generator": "retinanet_tf.data.synthetic.shapes",
        "version": _VERSION,
        "image_size": image_size,
        "seed": seed,
        "objects": list(objects),
        "sizes": list(sizes),
        "empty_share": empty_share,
        "min_visible": min_visible,
    }
    _check(settings, num_train, num_val, processes)
    output_dir = Path(output_dir)
    make_folder(output_dir, "output_dir")
    counts = {"train": num_train, "val": num_val}
    finished = {name: _reusable(output_dir, name, counts[name], settings) for name in counts}
    for name, done in finished.items():
        if done:
            print(f"{output_dir / name}.json is there with the same settings: its {counts[name]} images are reused")
        else:
            _write_split(output_dir, name, counts[name], settings, processes)
    return {name: Split(output_dir / f"{name}.json", output_dir / name, counts[name]) for name in counts}


def _check(settings: dict, num_train: int, num_val: int, processes: int) -> None:
    low, high = settings["objects"]
    smallest, largest = settings["sizes"]
    rules = {
        "num_train and num_val must be 1 to 999,999": all(0 < n < _ID_STEP for n in (num_train, num_val)),
        "image_size must be at least 32": settings["image_size"] >= 32,
        "seed must be 0 or more": settings["seed"] >= 0,
        "objects must be (fewest, most) with 1 ≤ fewest ≤ most": 1 <= low <= high,
        "sizes must be (smallest, largest) pixels, 4 ≤ smallest ≤ largest ≤ image_size": (
            4 <= smallest <= largest <= settings["image_size"]
        ),
        "empty_share must lie in [0, 1)": 0 <= settings["empty_share"] < 1,
        "min_visible must lie in (0, 1]": 0 < settings["min_visible"] <= 1,
        "processes must be at least 1": processes >= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InputError(f"shapes can't be generated: {rule}.")


def _reusable(output_dir: Path, name: str, count: int, settings: dict) -> bool:
    """Whether a finished split with the same settings is there; a split of other settings is an InputError."""
    path = output_dir / f"{name}.json"
    if not path.exists():
        return False
    try:
        content = json.loads(path.read_text())
        written, images = content["info"]["settings"], content["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} was not written by the generator; choose another output folder.") from error
    if written != settings or len(images) != count:
        differing = [key for key in settings if written.get(key) != settings[key]] or ["number of images"]
        raise InputError(
            f"{path} holds a dataset generated with another {', '.join(differing)}; delete {output_dir} or choose "
            f"another output folder."
        )
    present = set(os.listdir(output_dir / name)) if (output_dir / name).is_dir() else set()
    return all(image["file_name"] in present for image in images)


def _write_split(output_dir: Path, name: str, count: int, settings: dict, processes: int) -> None:
    """Pictures go into a folder aside, which is renamed when it is full; the JSON file comes last."""
    aside = output_dir / f"{name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    jobs = [(str(aside), name, index, settings) for index in range(count)]
    bar = {"total": count, "desc": f"shapes {name}", "unit": "image", "mininterval": 0.5}
    if processes > 1:
        # An executor, not a Pool: workers that can't start (a script without a main guard) end it with an error.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, count), mp_context=context) as pool:
            records = list(tqdm(pool.map(_write_image, jobs, chunksize=16), **bar))
    else:
        records = list(tqdm(map(_write_image, jobs), **bar))
    annotations = [annotation for _, annotations in records for annotation in annotations]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    content = {
        "info": {"description": "Generated shapes", "version": "1.0", "settings": settings},
        "licenses": [{"id": 1, "name": "Public domain (generated)", "url": ""}],
        "images": [image for image, _ in records],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": category, "supercategory": "shape"} for number, category in CATEGORIES.items()
        ],
    }
    shutil.rmtree(output_dir / name, ignore_errors=True)
    os.replace(aside, output_dir / name)
    write_text(output_dir / f"{name}.json", json.dumps(content))


def _write_image(job: tuple[str, str, int, dict]) -> tuple[dict, list[dict]]:
    """Draws and writes one picture; returns its COCO image record and its annotations, ids still missing."""
    folder, split_name, index, settings = job
    split = ("train", "val").index(split_name)
    seed = (settings["seed"], split, index)
    rng = np.random.default_rng([*seed, 99])
    low, high = settings["objects"]
    count = 0 if rng.random() < settings["empty_share"] else int(rng.integers(low, high + 1))
    scene = draw_scene(seed, settings["image_size"], count, tuple(settings["sizes"]), settings["min_visible"])
    image_id = split * _ID_STEP + index + 1
    record = {
        "id": image_id,
        "file_name": f"{image_id:012d}.jpg",
        "width": settings["image_size"],
        "height": settings["image_size"],
        "license": 1,
    }
    Image.fromarray(scene.image).save(Path(folder) / record["file_name"], quality=92)
    annotations = [
        {
            "image_id": image_id,
            "category_id": shape.category_id,
            "bbox": [*shape.box[:2], shape.box[2] - shape.box[0], shape.box[3] - shape.box[1]],
            "area": shape.area,
            "iscrowd": 0,
            "segmentation": {"size": list(shape.mask.shape), "counts": _run_lengths(shape.mask)},
        }
        for shape in scene.shapes
    ]
    return record, annotations


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, starting with a run of zeros (that may be empty)."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs
