"""Speed of `retinanet prepare`: beside one core's decoding of the same photos, by header only, by annotations.

    python -m experiments.bench.prepare --images=photos --json=prepare.json

One process everywhere. "decode" is the default check, beside tf.io.decode_jpeg of the same bytes on one core: a ratio
of times of 1.25 is 80 % of its rate. "header" must take at most 2 ms per photo (500 per second). For the annotations,
tiny images and ten boxes per image: time per annotation at the largest number over that at a tenth, and peak memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from experiments.bench.timing import Rows
from retinanet_tf.cli.main import run
from retinanet_tf.data.records.prepare import prepare

_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEG photos; by default pictures of noise are made.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs, in turns.")
_PHOTOS = flags.DEFINE_integer("photos", 240, "Photos of a timed run; those of the folder, again and again.")
_ANNOTATIONS = flags.DEFINE_integer("annotations", 1_000_000, "Annotations of the largest run; 0 leaves it out.")
_BOXES_AN_IMAGE = 10

# Runs in a process of its own, so that its peak memory is its own.
_CHILD = """
import sys, time
from experiments.bench.memory import process_memory
from retinanet_tf.data.records.prepare import prepare
start = time.perf_counter()
prepare(sys.argv[1], sys.argv[2], sys.argv[3], verify="header", progress=False)
print(time.perf_counter() - start, process_memory("VmHWM"))
"""


def main() -> None:
    """Measures photos, then annotations."""
    rows = Rows()
    with tempfile.TemporaryDirectory() as scratch:
        _photos(rows, Path(scratch))
        if _ANNOTATIONS.value:
            _annotations(rows, Path(scratch))
    rows.write()


def _photos(rows: Rows, scratch: Path) -> None:
    folder = Path(_IMAGES.value) if _IMAGES.value else _pictures(scratch / "pictures")
    paths = [path for path in sorted(folder.glob("*.jpg")) if Image.open(path).mode == "RGB"]
    chosen = [paths[number % len(paths)] for number in range(_PHOTOS.value)]
    _write(scratch / "photos.json", [(path.name, *Image.open(path).size) for path in chosen], 7)
    times: dict[str, list[float]] = {"decode": [], "header": [], "peer": []}
    for number in range(_ROUNDS.value):
        for verify in ("decode", "header"):
            output = scratch / f"{verify}{number}"
            times[verify].append(_seconds(lambda v=verify, o=output: _prepare(scratch / "photos.json", folder, o, v)))
        times["peer"].append(_seconds(lambda: [tf.io.decode_jpeg(path.read_bytes(), channels=3) for path in chosen]))
    times = {name: [seconds / len(chosen) for seconds in each] for name, each in times.items()}
    rows.add(
        "retinanet prepare, every photo decoded, per photo",
        times["decode"],
        "decode_jpeg, one core",
        times["peer"],
        1.25,
    )
    rows.add_absolute("retinanet prepare --verify=header, per photo", times["header"], 2.0)


def _annotations(rows: Rows, scratch: Path) -> None:
    folder = scratch / "tiny"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "0.jpg")
    cost, memory = {}, {}
    for count in (_ANNOTATIONS.value // 10, _ANNOTATIONS.value):
        _write(scratch / "many.json", [("0.jpg", 32, 32)] * (count // _BOXES_AN_IMAGE), _BOXES_AN_IMAGE)
        arguments = [str(scratch / "many.json"), str(folder), str(scratch / f"many{count}")]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", _CHILD, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        seconds, peak = (float(word) for word in done.stdout.split())
        cost[count], memory[count] = 1e6 * seconds / count, peak / 2**30
    small, large = cost
    name = f"{large:,} annotations, time per annotation"
    rows.add_value(name, cost[large], f"at {small:,}", round(cost[small], 3), "us", 1.15)
    rows.add_value(f"{large:,} annotations, peak memory", memory[large], "limit", 4.0, "GiB", 1.0)


def _prepare(annotations: Path, folder: Path, output: Path, verify: str) -> None:
    prepare(annotations, folder, output, verify=verify, exif="stored", progress=False)


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _pictures(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(48):
        small = rng.integers(0, 255, (60, 80, 3), np.uint8)
        Image.fromarray(small).resize((640, 480)).save(folder / f"{number}.jpg", quality=92)
    return folder


def _write(path: Path, images: list[tuple[str, int, int]], boxes: int) -> None:
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number, (name, width, height) in enumerate(images, 1):
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for x, y in rng.uniform(0, 0.7, (boxes, 2)).tolist():
            box = [x * width, y * height, width * 0.2, height * 0.2]
            number_of = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number_of, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0, "area": 1.0}
            )
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


if __name__ == "__main__":
    run(main)
