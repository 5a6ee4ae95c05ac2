"""Speed and memory of a training step of the paper's network on one 512 × 512 image, optimizer included.

    python -m experiments.bench.train --json=train.json

Compared with keras-hub's RetinaNet where it is installed (Keras 3): out of the box (everything trained, Adam), with the
same layers frozen and the same SGD, each with TensorFlow's own settings, and the latter with ours too. The floor is
the same network's forward and backward with a trivial loss. Peak memory is that of a process of its own for each, above
what it had before the model was made.
"""

import json
import subprocess
import sys

import numpy as np
import tensorflow as tf
from absl import flags

from experiments.bench.memory import process_memory
from experiments.bench.peers import keras_hub_frozen, keras_hub_step
from experiments.bench.step import fit_step
from experiments.bench.timing import Rows, in_turns
from retinanet_tf.cli.main import run
from retinanet_tf.config.presets import presets
from retinanet_tf.models.summary import flop
from retinanet_tf.training.train import compile_model

_ROUNDS = flags.DEFINE_integer("rounds", 11, "Timed steps of everything, in turns.")
_ONLY = flags.DEFINE_enum("only", None, ["ours", "peer_frozen"], "Print the peak memory of this one alone.")
_SIDE = 512
_OBJECTS = 8


def main() -> None:
    """Runs the comparison, or one part of it for its memory."""
    if _ONLY.value:
        print(json.dumps(_peak(_STEPS[_ONLY.value])))
        return
    rows = Rows()
    steps = {"ours": _ours(), "floor": _floor(), "matmul": _matmul()}
    peer, peer_frozen = (keras_hub_step(*_example(), frozen) for frozen in (False, True))
    if peer is not None:
        steps |= {"peer": peer, "peer_frozen": peer_frozen, "peer_tuned": _peer_frozen()}
    times = in_turns(steps, _ROUNDS.value)
    name = "training step"
    rows.add(name, times["ours"], "keras-hub, as it comes", times.get("peer"), 0.72)
    rows.add(name, times["ours"], "keras-hub, same layers frozen, same SGD", times.get("peer_frozen"), 0.95)
    rows.add(
        name,
        times["ours"],
        "keras-hub, the same and our TensorFlow settings",
        times.get("peer_tuned"),
        None,
    )
    rows.add(name, times["ours"], "forward + backward, trivial loss", times["floor"], 1.10)
    seconds, peak = float(np.median(times["ours"])), _MATMUL_FLOP / min(times["matmul"]) / 1e9
    rows.add_value("images", 1 / seconds, "-", None, "1/s", None)
    rows.add_value("step's convolutions", _flop() / seconds / 1e9, "matmul peak", round(peak, 1), "GFLOP/s", None)
    memory = _memory("ours")
    theirs = (None, None) if peer is None else (round(peer(), 1), _memory("peer_frozen"))
    for label, value in zip(("keras-hub, as it comes", "keras-hub, same layers frozen"), theirs, strict=True):
        rows.add_value("peak memory", memory, label, value, "MiB", 1.0)
    rows.write()


def _config():
    return presets["paper"].replace(image_size=_SIDE, max_size=_SIDE, batch_size=1)


def _example() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 300, (1, _OBJECTS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 200, (1, _OBJECTS, 2))], axis=-1)
    images = rng.uniform(0, 255, (1, _SIDE, _SIDE, 3))
    labels = rng.integers(0, 80, (1, _OBJECTS))
    return tf.constant(images, tf.float32), tf.constant(boxes, tf.float32), tf.constant(labels, tf.int32)


def _ours():
    images, boxes, labels = _example()
    model = compile_model(_config())
    return fit_step(model, images, {"boxes": boxes, "labels": labels})


def _floor():
    images, _, _ = _example()
    model = compile_model(_config())

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            loss = tf.reduce_sum(outputs["class_logits"]) + tf.reduce_sum(outputs["box_deltas"])
        # All used, so that nothing is pruned, the last convolutions' outputs neither; a sum of each is the least that
        # can be done with a gradient.
        return [loss, *(tf.reduce_sum(gradient) for gradient in tape.gradient(loss, model.trainable_variables))]

    return lambda: [value.numpy() for value in step()]


def _peer_frozen():
    images, boxes, labels = _example()
    return fit_step(keras_hub_frozen(), images, {"boxes": boxes, "labels": labels})


_STEPS = {"ours": _ours, "peer_frozen": _peer_frozen}
_MATMUL = 2048
_MATMUL_FLOP = 2 * _MATMUL**3


def _matmul():
    """NumPy's matmul, whose library knows the CPU; TensorFlow's, without oneDNN, is slower than its convolutions."""
    matrix = np.random.default_rng(0).normal(size=(_MATMUL, _MATMUL)).astype(np.float32)
    return lambda: matrix @ matrix


def _flop() -> float:
    config = _config()
    return flop(compile_model(config), _SIDE, _SIDE, training=True)


def _peak(make) -> float:
    """MiB that three steps need beyond what the process has without the model."""
    before = process_memory("VmHWM")
    step = make()
    for _ in range(3):
        step()
    return (process_memory("VmHWM") - before) / 2**20


def _memory(name: str) -> float:
    """The median of three processes': which operations meet is a matter of chance."""
    arguments = [sys.executable, "-m", "experiments.bench.train", f"--only={name}"]
    runs = [subprocess.run(arguments, check=True, capture_output=True, text=True).stdout for _ in range(3)]
    return round(float(np.median([json.loads(printed.splitlines()[-1]) for printed in runs])), 1)


if __name__ == "__main__":
    run(main)
