"""A job of six steps on generated shapes, for the tests of training, and what a run directory says."""

import csv
import re

from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.data.synthetic import shapes

TINY = rn.presets["mini"].replace(
    **TINY_NETWORK,
    max_level=5,
    image_size=64,
    max_size=64,
    batch_size=4,
    steps=6,
    checkpoint_steps=2,
    warmup_steps=2,
    learning_rate=1e-3,
    eval_steps=4,
    # In one process, the collectives of several strategies get the same keys, under which TensorFlow wants one shape.
    strategy="one_device",
)


def write_shards(folder):
    """FOLDER/train-*.tfrecord of 24 images and val-*.tfrecord of 6, with labels.json; returns the folder."""
    splits = shapes.generate(folder / "coco", num_train=24, num_val=6, image_size=64)
    for name, split in splits.items():
        rn.data.prepare(split.annotations, split.images, folder, name, shards=2, progress=False)
    return folder


def log_of(run_dir):
    """Rows of log.csv, one per epoch, as dictionaries of strings."""
    with open(run_dir / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def losses(run_dir):
    """Of each epoch, the mean over its steps."""
    return [float(row["loss"]) for row in log_of(run_dir)]


def saved_step(run_dir):
    """Of the newest checkpoint, 0 for none."""
    state = run_dir / "checkpoints/checkpoint"
    return int(re.search(r"step-(\d+)", state.read_text())[1]) if state.exists() else 0
