"""Speed and size of exports: a SavedModel, ONNX Runtime and LiteRT in turns, two threads each, canvas to detections.

    python -m experiments.bench.exports --json=exports.json --model=runs/demo

A ResNet-50 of 640x640 pixels and 80 classes with random weights, and the detector of --model. The SavedModel's
signature is the one of fixed shape, so that none of them resizes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags

from experiments.bench.timing import Rows, in_turns
from experiments.random_resnet50 import random_resnet50
from retinanet_tf.cli.main import run
from retinanet_tf.data.synthetic.scenes import draw_scene
from retinanet_tf.export import formats, litert_file, onnx_file, saved_model
from retinanet_tf.export.frozen_graph import file_shape
from retinanet_tf.inference.checkpoint import load_detector
from retinanet_tf.inference.detector import Detector
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.metadata import write_metadata
from retinanet_tf.runtime.preprocess import fit

_MODEL = flags.DEFINE_string("model", None, "Run directory of a trained detector.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed calls of everything, in turns.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of each runtime.")
_CALIBRATION = 8
"""Pictures for INT8: its speed doesn't depend on them."""


def main() -> None:
    """Measures each detector."""
    tf.config.threading.set_intra_op_parallelism_threads(_THREADS.value)
    tf.config.threading.set_inter_op_parallelism_threads(_THREADS.value)
    rows = Rows()
    measure(rows, "ResNet-50, 80 classes", random_resnet50(640))
    if _MODEL.value:
        measure(rows, f"{Path(_MODEL.value).name}'s network", load_detector(_MODEL.value))
    rows.write()


def measure(rows: Rows, name: str, detector: Detector) -> None:
    """Exports a detector and adds its rows."""
    shape = file_shape(detector, (), any_batch=False)
    padding = [round(value) for value in detector.model.config.pixel_mean]
    scenes = [draw_scene((28, number), shape[1], 12, (16, 160)).image for number in range(_CALIBRATION)]
    canvases = [fit(scene, *shape[1:], padding).canvas for scene in scenes]
    sizes = np.float32([shape[1:]])
    with tempfile.TemporaryDirectory() as folder:
        paths = _files(detector, shape, canvases, Path(folder))
        served = saved_model.export(detector, Path(folder, "1"), fixed_shapes=[shape])
        signature = tf.saved_model.load(str(served)).signatures[saved_model.fixed_name(shape)]
        image = tf.constant(canvases[0][None])
        functions: dict[str, Callable] = {"SavedModel": lambda: signature(image)["num_detections"].numpy()}
        for kind, path in paths.items():
            file = ExportedDetector(path, threads=_THREADS.value)
            functions[kind] = lambda file=file: file.run(canvases[0][None], sizes)
        times = in_turns(functions, _ROUNDS.value)
        title = f"{name}, {shape[1]}x{shape[2]}, %s on {_THREADS.value} threads"
        for kind in ("ONNX Runtime", "LiteRT float32", "LiteRT INT8"):
            rows.add(title % kind, times[kind], "SavedModel", times["SavedModel"], 1.0)
        rows.add(title % "LiteRT INT8", times["LiteRT INT8"], "LiteRT float32", times["LiteRT float32"], 1.0)
        size = {kind: path.stat().st_size / 1e6 for kind, path in paths.items()}
        float32 = round(size["LiteRT float32"], 2)
        rows.add_value(f"{name}, LiteRT INT8 file", size["LiteRT INT8"], "LiteRT float32 file", float32, "MB", 0.3)


def _files(detector: Detector, shape: tuple, canvases: list[np.ndarray], folder: Path) -> dict[str, Path]:
    """ONNX and LiteRT files, by what they are called in the rows."""
    float32, _ = litert_file.convert(detector, shape)
    ranges = litert_file.calibrate(detector, shape, canvases)
    contents = {
        "ONNX Runtime": onnx_file.convert(detector, shape)[0],
        "LiteRT float32": float32,
        "LiteRT INT8": litert_file.quantize(float32, "int8", ranges),
    }
    paths = {}
    for number, (kind, content) in enumerate(contents.items()):
        format = "litert" if kind.startswith("LiteRT") else "onnx"
        path = paths[kind] = folder / f"{number}{formats.SUFFIXES[format]}"
        path.write_bytes(content)
        write_metadata(path, formats.metadata(detector, format, "float32", shape, {}))
    return paths


if __name__ == "__main__":
    run(main)
