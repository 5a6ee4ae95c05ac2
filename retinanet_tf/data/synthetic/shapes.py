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

from retinanet_tf.data.sources.coco import xyxy_to_coco
from retinanet_tf.data.synthetic.scenes import draw_scene
from retinanet_tf.data.synthetic.styles import STYLES
from retinanet_tf.errors import InputError
from retinanet_tf.files import make_folder, read_json, write_text

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
    style: str = "shapes",
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
        style: one of `styles.STYLES`; "lookalikes" stays hard.

    Returns:
        {"train": Split, "val": Split}.

    Raises:
        InputError: impossible arguments, a folder that can't be written, or one that holds a dataset generated
            with other arguments (it is never overwritten).
    """
    settings = {
        "generator": "retinanet_tf.data.synthetic.shapes",
        "version": _VERSION,
        "image_size": image_size,
        "seed": seed,
        "objects": list(objects),
        "sizes": [float(size) for size in sizes or (8.0, 0.85 * image_size)],
        "empty_share": empty_share,
        "min_visible": min_visible,
        "style": style,
    }
    _check(settings, num_train, num_val, processes)
    output_dir = Path(output_dir)
    make_folder(output_dir, "output_dir")
    splits = {
        name: Split(output_dir / f"{name}.json", output_dir / name, count)
        for name, count in (("train", num_train), ("val", num_val))
    }
    for split, done in [(split, _reusable(split, settings)) for split in splits.values()]:
        if done:
            print(f"{split.annotations} is there with the same settings: its {split.num_images} images are reused")
        else:
            _write_split(split, settings, processes)
    return splits


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
        f"style must be one of {', '.join(STYLES)}": settings["style"] in STYLES,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InputError(f"shapes can't be generated: {rule}.")


def _reusable(split: Split, settings: dict) -> bool:
    """Whether a finished split with the same settings is there; a split of other settings is an InputError."""
    path, folder = split.annotations, split.images
    if not path.exists():
        return False
    try:
        content = read_json(path, "the generated dataset")
        written, images = content["info"]["settings"], content["images"]
        written.setdefault("style", "shapes")  # datasets from before there were others
        differing = [key for key in settings if written.get(key) != settings[key]]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path} was not written by the generator; choose another output folder.") from error
    if differing or len(images) != split.num_images:
        raise InputError(
            f"{path} holds a dataset generated with another {', '.join(differing or ['number of images'])}; delete "
            f"{folder.parent} or choose another output folder."
        )
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    return all(image["file_name"] in present for image in images)


def _write_split(split: Split, settings: dict, processes: int) -> None:
    """Pictures go into a folder aside, which is renamed when it is full; the JSON file comes last."""
    name, count = split.images.name, split.num_images
    aside = split.images.with_name(f"{name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    jobs = [(aside, name, index, settings) for index in range(count)]
    bar = {"total": count, "desc": f"shapes {name}", "unit": "image", "mininterval": 0.5}
    if processes > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, count), mp_context=context) as pool:
            records = list(tqdm(pool.map(_write_image, jobs, chunksize=16), **bar))
    else:
        records = list(tqdm(map(_write_image, jobs), **bar))
    annotations = [annotation for _, annotations in records for annotation in annotations]
    content = {
        "info": {"description": "Generated shapes", "version": "1.0", "settings": settings},
        "licenses": [{"id": 1, "name": "Public domain (generated)", "url": ""}],
        "images": [image for image, _ in records],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)],
        "categories": [
            {"id": number, "name": " ".join(filter(None, (kind.surface, kind.outline))), "supercategory": "shape"}
            for number, kind in STYLES[settings["style"]].categories.items()
        ],
    }
    shutil.rmtree(split.images, ignore_errors=True)
    os.replace(aside, split.images)
    write_text(split.annotations, json.dumps(content))


def _write_image(job: tuple[Path, str, int, dict]) -> tuple[dict, list[dict]]:
    """Draws and writes one picture; returns its COCO image record and its annotations, ids still missing."""
    folder, name, index, settings = job
    split = ("train", "val").index(name)
    seed, side = (settings["seed"], split, index), settings["image_size"]
    rng = np.random.default_rng([*seed, 99])
    low, high = settings["objects"]
    count = 0 if rng.random() < settings["empty_share"] else int(rng.integers(low, high + 1))
    scene = draw_scene(seed, side, count, tuple(settings["sizes"]), settings["min_visible"], settings["style"])
    image_id = split * _ID_STEP + index + 1
    record = {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": side, "height": side, "license": 1}
    Image.fromarray(scene.image).save(folder / record["file_name"], quality=92)
    annotations = [
        {
            "image_id": image_id,
            "category_id": shape.category_id,
            "bbox": xyxy_to_coco(shape.box).tolist(),
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
