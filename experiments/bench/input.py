"""Speed of the input pipeline: the 600-pixel training pipeline beside bare decoding and a torch DataLoader.

    python -m experiments.bench.input --images=photos --json=input.json

Everything works on the same photos, all cores, batches of 8. "decode and resize alone" is tf.io.decode_jpeg and
tf.image.resize in a parallel map: no reading, no boxes, no flip, no padding, no batch. The torch DataLoader does all
that `data.load` does, with Pillow, in one process per core; it is left out where torch isn't installed. Times are per
image; a ratio of 1.33 to decoding alone is 75 % of its rate. What decoding alone leaves out is copying most of all, so
the ratio follows the machine's memory: one core's copy of a canvas is timed beside. A core's rate is images by the CPU
time of the whole process, all of its threads. Memory is the process' after epochs 4 and 20.
"""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from experiments.bench.timing import Rows
from retinanet_tf.cli.main import run
from retinanet_tf.config.config import ModelConfig
from retinanet_tf.data import pipeline, transforms
from retinanet_tf.data.records.example import parse_example
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import labels_beside, read_records

_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEG photos; by default pictures of noise are made.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs of each, in turns.")
_TIMED = flags.DEFINE_integer("timed", 160, "Images of a timed run.")
_BATCH = 8
_BOXES_AN_IMAGE = 7  # COCO's mean
_STEP = 291  # images of 800 px that an H100 trained on a second, see docs/devices.md


def main() -> None:
    """Measures rates, the share of the ground truth, and memory."""
    rows = Rows()
    with tempfile.TemporaryDirectory() as scratch:
        pattern = _dataset(Path(scratch))
        records = list(read_records(pattern))
        runs = {
            "ours": (lambda: iter(pipeline.load(pattern, batch_size=_BATCH)), _BATCH),
            "decode": (lambda: iter(_decode_and_resize([record.encoded for record in records])), 1),
            "truth": (lambda: iter(_ground_truth_alone(pattern)), 100),
            "copy": (_copies, _BATCH),
        }
        if importlib.util.find_spec("torch") is not None:
            runs["torch"] = (lambda: _torch(records), _BATCH)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(_ROUNDS.value):
            for name, (start, batch) in runs.items():
                times[name].append(_seconds_an_image(start, batch))
        name = "600 px training pipeline, per image"
        rows.add(name, times["ours"], "decode_jpeg and resize alone", times["decode"], 1 / 0.75)
        rows.add(name, times["ours"], "torch DataLoader with Pillow", times.get("torch"), 1 / 1.3)
        rows.add("ground truth alone, per image", times["truth"], "the whole pipeline", times["ours"], 0.05)
        rows.add(name, times["ours"], "one copy of its canvas", times["copy"], None)
        _cores(rows, pattern)
        _memory(rows, pattern, len(records))
    rows.write()


def _dataset(scratch: Path) -> str:
    folder = Path(_IMAGES.value) if _IMAGES.value else scratch / "images"
    rng = np.random.default_rng(0)
    if not _IMAGES.value:
        folder.mkdir()
        for number in range(48):
            small = rng.integers(0, 255, (60, 80, 3), np.uint8)
            picture = Image.fromarray(small).resize((640, 480) if number % 4 else (480, 640))
            picture.save(folder / f"{number}.jpg", quality=92)
    images, annotations = [], []
    for number, path in enumerate(sorted(folder.glob("*.jpg")), 1):
        width, height = Image.open(path).size
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        for _ in range(_BOXES_AN_IMAGE):
            x, y = float(rng.uniform(0, width * 0.7)), float(rng.uniform(0, height * 0.7))
            box = [x, y, width * 0.2, height * 0.2]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0}
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (scratch / "instances.json").write_text(json.dumps(content))
    prepare(scratch / "instances.json", folder, scratch / "shards", shards=4, progress=False, exif="stored")
    return str(scratch / "shards" / "train-*.tfrecord")


def _decode_and_resize(encoded: list[bytes]) -> tf.data.Dataset:
    def one(data: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(data, channels=3)
        size = tf.stack(transforms.resized_shape(tf.shape(image)[0], tf.shape(image)[1], 600, 1000))
        return tf.image.resize(image, size)

    dataset = tf.data.Dataset.from_tensor_slices(encoded).shuffle(len(encoded), seed=0).repeat()
    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _ground_truth_alone(pattern: str) -> tf.data.Dataset:
    """The pipeline's work for boxes and labels, on records without their pixels."""
    label_map, bare = labels_beside(pattern), []
    for serialized in tf.data.TFRecordDataset(tf.io.gfile.glob(pattern)).as_numpy_iterator():
        example = tf.train.Example.FromString(serialized)
        example.features.feature["image/encoded"].bytes_list.value[:] = [b""]
        bare.append(example.SerializeToString())

    def one(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        boxes, labels = pipeline.objects_of(parse_example(serialized), label_map)
        boxes = transforms.scale_boxes(boxes, tf.constant([1.25, 1.25]))
        missing = 16 - tf.shape(boxes)[0]
        return tf.pad(boxes, [[0, missing], [0, 0]]), tf.pad(labels, [[0, missing]], constant_values=-1)

    # Delivered a hundred at a time: the step into Python would cost more than the work that is measured.
    dataset = tf.data.Dataset.from_tensor_slices(bare).repeat()
    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(100).prefetch(1)


def _copies() -> Iterator:
    """Memory bandwidth: the pipeline has to copy its pixels twice."""
    batch = np.ones((_BATCH, 640, 1024, 3), np.float32)
    copy = np.empty_like(batch)
    while True:
        np.copyto(copy, batch)
        yield copy


def _torch(records: list) -> Iterator:
    from experiments.bench import torch_loader

    photos = torch_loader.Photos(
        [record.encoded for record in records],
        [record.annotations.boxes for record in records],
        ModelConfig().pixel_mean,
    )
    wide = [i for i, record in enumerate(records) if record.annotations.width >= record.annotations.height]
    tall = [i for i in range(len(records)) if i not in wide]
    return iter(torch_loader.batches(photos, _BATCH, os.cpu_count() or 1, wide, tall))


def _seconds_an_image(start: Callable[[], Iterator], batch: int) -> float:
    """Of `--timed` images, after a quarter as many to warm up; the iterator and its threads end with the run."""
    iterator = start()
    for _ in range(max(4, _TIMED.value // batch // 4)):
        next(iterator)
    steps = max(8, _TIMED.value // batch)
    begin = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return (time.perf_counter() - begin) / steps / batch


def _cores(rows: Rows, pattern: str) -> None:
    """Images that a core makes a second, and so the cores that an accelerator needs for its training step."""
    for image_size, max_size in ((600, 1000), (800, 1333)):
        iterator = iter(pipeline.load(pattern, batch_size=_BATCH, image_size=image_size, max_size=max_size))
        batches, rates = max(8, _TIMED.value // _BATCH), []
        for _ in range(_ROUNDS.value + 1):  # one to warm up
            begin = time.process_time()
            for _ in range(batches):
                next(iterator)
            rates.append(batches * _BATCH / (time.process_time() - begin))
        rate = float(np.median(rates[1:]))
        rows.add_value(
            f"{image_size} px training pipeline, images per second of one core", rate, "-", None, "1/s", None
        )
        rows.add_value(f"cores for {_STEP} images/s of {image_size} px", _STEP / rate, "-", None, "cores", None)


def _memory(rows: Rows, pattern: str, images: int) -> None:
    iterator = iter(pipeline.load(pattern, batch_size=_BATCH))
    epoch = max(1, images // _BATCH)
    after = []
    for _ in range(20):
        for _ in range(epoch):
            next(iterator)
        after.append(_resident())
    rows.add_value("resident memory after 20 epochs", after[-1], "after 4 epochs", after[3], "MiB", 1.1)


def _resident() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return round(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


if __name__ == "__main__":
    run(main)
