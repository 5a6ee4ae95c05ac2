"""keras-hub's RetinaNet in a process of its own: with TensorFlow's own settings, not `retinanet_tf`'s.

Each line on the standard input is answered by one training step on what `sys.argv[1]` holds (an .npz of "images",
"boxes", "labels", and whether the layers are "frozen" that the paper freezes), and by a line: the bytes that the
process has needed at most beyond what it had without the model.
"""

import sys

import numpy as np
import tensorflow as tf

from experiments.bench.memory import process_memory
from experiments.bench.peers import keras_hub_detector, keras_hub_frozen
from experiments.bench.step import fit_step


def main() -> None:
    """Serves steps until the input ends."""
    with np.load(sys.argv[1]) as example:
        images, boxes, labels = (tf.constant(example[name]) for name in ("images", "boxes", "labels"))
        frozen = bool(example["frozen"])
    before = process_memory("VmHWM")
    if frozen:
        model = keras_hub_frozen()
    else:
        model = keras_hub_detector()
        model.compile()
    step = fit_step(model, images, {"boxes": boxes, "labels": labels})
    for _ in sys.stdin:
        step()
        print(process_memory("VmHWM") - before, flush=True)


if __name__ == "__main__":
    main()
