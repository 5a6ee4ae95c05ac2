"""Cost against work: how time and memory grow with image size, batch, classes, objects and replicas.

    python -m experiments.bench.scaling --output=experiments/results/bench

Each curve changes one thing and measures the part that it burdens. The slope is that of time over work on logarithmic
axes, between the two largest points: 1 is linear, below 1 there is a fixed cost, above 1 it gets worse with size.
Memory is what the process needed at its peak beyond what it had before the point; points run from small to large.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags

from experiments.bench.memory import process_memory
from experiments.bench.timing import hardware, in_turns, stack
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.config.config import AnchorConfig, AssignConfig, DetectConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.detection import assignment as targets
from retinanet_tf.detection.anchors import anchors_by_level
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.losses import classification as losses
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.training.train import compile_model
from retinanet_tf.visualize import new_figure, save_figure

_OUTPUT = flags.DEFINE_string("output", "runs/bench", "Folder for scaling_vXYZ.json and .png.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed calls of a point; the median counts.")
_SMALL = flags.DEFINE_boolean("small", False, "The two smallest points of every curve, to try it.")
_REPLICAS = flags.DEFINE_integer("replicas", 0, "Measure the step on so many logical devices and print its seconds.")

Point = Callable[[], object]
CURVES: dict[str, tuple[int, ...]] = {
    "image size: pixels of a square image, ResNet-50 network": tuple(s * s for s in (256, 384, 512, 768, 1024)),
    "batch: images of 256 px, ResNet-50 network": (1, 2, 4, 8),
    "classes: focal loss forward and backward, 49,104 anchors": (1, 10, 80, 300, 1000),
    "classes: from logits to detections, 49,104 anchors": (1, 10, 80, 300, 1000),
    "objects: assignment on 49,104 anchors": (0, 1, 10, 100, 500),
    "replicas: a step of 16 images of 128 px, `mini` preset": (1, 2, 4),
}
_SIDE = 512


def main() -> None:
    """Measures all curves, or one point of the last."""
    if _REPLICAS.value:
        print(json.dumps(_replica_seconds(_REPLICAS.value)))
        return
    curves = {}
    makers = (_network_of_size, _network_of_batch, _loss_of, _detections_of, _assignment_of, None)
    for (name, work), make in zip(CURVES.items(), makers, strict=True):
        points = []
        for amount in work[:2] if _SMALL.value else work:
            before = process_memory("VmHWM")
            seconds = _in_process(amount) if make is None else _seconds(make(amount))
            memory = None if make is None else round((process_memory("VmHWM") - before) / 2**20, 1)
            points.append({"work": amount, "ms": round(1e3 * seconds, 2), "MiB": memory})
            print(f"{name}: {points[-1]}", flush=True)
        curves[name] = {"slope": slope(points), "points": points}
    folder = Path(_OUTPUT.value)
    files.make_folder(folder, "--output")
    stem = f"scaling_v{sys.version_info.major}{sys.version_info.minor}"
    files.write_json(folder / f"{stem}.json", {"stack": stack(), "hardware": hardware(), "curves": curves})
    draw(curves, folder / f"{stem}.png")


def slope(points: list[dict]) -> float:
    """d log(time) / d log(work) between the last two points."""
    first, last = points[-2:]
    work = math.log(last["work"] / max(first["work"], 1))
    return round(math.log(last["ms"] / first["ms"]) / work, 2) if work else 0.0


def draw(curves: dict, path: Path) -> None:
    """Time over work, one panel per curve, with the line of proportionality through the last point."""
    figure = new_figure(12, 7)
    for axes, (name, curve) in zip(figure.subplots(2, 3).flat, curves.items(), strict=True):
        work = [max(point["work"], 0.5) for point in curve["points"]]
        times = [point["ms"] for point in curve["points"]]
        axes.loglog(work, times, "o-")
        axes.loglog(work, [times[-1] * each / work[-1] for each in work], ":", color="#777777")
        axes.set(title=f"{name}\nslope {curve['slope']:g}", ylabel="ms")
        axes.title.set_fontsize(8)
    save_figure(figure, path)


def _seconds(point: Point) -> float:
    return statistics.median(in_turns({"": point}, _ROUNDS.value)[""])


_NETWORKS: dict[str, Callable] = {}


def _network(images: np.ndarray) -> Point:
    if not _NETWORKS:
        model = RetinaNet()
        _NETWORKS["resnet50"] = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    constant = tf.constant(images, tf.float32)
    return lambda: _NETWORKS["resnet50"](constant)


def _network_of_size(pixels: int) -> Point:
    side = math.isqrt(pixels)
    return _network(np.zeros((1, side, side, 3)))


def _network_of_batch(images: int) -> Point:
    return _network(np.zeros((images, 256, 256, 3)))


def _loss_of(classes: int) -> Point:
    count = sum(map(len, anchors_by_level(_SIDE, _SIDE, AnchorConfig())))
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(-4.6, 1.0, (1, count, classes)), tf.float32)
    of_anchor = np.where(rng.uniform(size=(1, count)) < 0.002, rng.integers(0, classes, (1, count)), -1)
    class_targets, loss = tf.constant(of_anchor, tf.int32), losses.FocalLoss()

    @tf.function
    def both():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(class_targets, logits)
        return tape.gradient(value, logits)

    return both


def _detections_of(classes: int) -> Point:
    config, rng = AnchorConfig(), np.random.default_rng(0)
    levels = anchors_by_level(_SIDE, _SIDE, config)
    # About 500 scores above the threshold, whatever the number of classes.
    total = sum(len(level) for level in levels) * classes
    logits = []
    for level in levels:
        values = np.full((1, len(level), classes), -7.0, np.float32)
        values[rng.uniform(size=values.shape) < 500 / total] = 0.5
        logits.append(tf.constant(values))
    deltas = [tf.zeros((1, len(level), 4)) for level in levels]
    size = tf.constant([[_SIDE, _SIDE]], tf.float32)
    return tf.function(lambda: select_detections(logits, deltas, levels, tf.ones([1, 2]), size, DetectConfig(), config))


def _assignment_of(objects: int) -> Point:
    rng = np.random.default_rng(0)
    rows = max(objects, 1)
    corner = rng.uniform(0, _SIDE - 64, (1, rows, 2))
    boxes = tf.constant(np.concatenate([corner, corner + rng.uniform(16, 64, (1, rows, 2))], -1), tf.float32)
    labels = tf.constant(np.full((1, rows), 0 if objects else -1), tf.int32)
    anchors = tf.concat(anchors_by_level(_SIDE, _SIDE, AnchorConfig()), axis=0)
    return tf.function(lambda: targets.assign(anchors, boxes, labels, AssignConfig()))


def _in_process(replicas: int) -> float:
    """One strategy per process: those of several sizes would share the keys of TensorFlow's CPU collectives."""
    command = [sys.executable, "-m", "experiments.bench.scaling", f"--replicas={replicas}", f"--rounds={_ROUNDS.value}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def _replica_seconds(replicas: int) -> float:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    config = presets["mini"].replace(batch_size=16)
    with tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)]).scope():
        model = compile_model(config)
    boxes = tf.tile(tf.constant([[[20.0, 30.0, 60.0, 80.0]]]), [16, 1, 1])
    batch = (tf.zeros((16, 128, 128, 3)), {"boxes": boxes, "labels": tf.zeros((16, 1), tf.int32)})
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    steps = 5
    return _seconds(lambda: model.fit(dataset, steps_per_epoch=steps, verbose=0)) / steps


if __name__ == "__main__":
    run(main)
