"""keras-hub's RetinaNet as it comes, in a process of its own: with TensorFlow's own settings, not `retinanet_tf`'s.

Each line on the standard input is answered by one training step on what `sys.argv[1]` holds (an .npz of "images",
"boxes" and "labels") and a line: the bytes that the process has needed at most beyond what it had without the model.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from experiments.bench.memory import process_memory
from experiments.bench.peers import keras_hub_detector


def main() -> None:
    """Serves steps until the input ends."""
    with np.load(sys.argv[1]) as example:
        images, boxes, labels = (tf.constant(example[name]) for name in ("images", "boxes", "labels"))
    before = process_memory("VmHWM")
    model = keras_hub_detector()
    model.compile()
    for _ in sys.stdin:
        # keras-hub's own train_on_batch wants one tensor for y; its fit calls what Keras' own calls.
        keras.Model.train_on_batch(model, images, {"boxes": boxes, "labels": labels})
        print(process_memory("VmHWM") - before, flush=True)


if __name__ == "__main__":
    main()
