"""A small training job as a process of its own: `python -m tests.job RUN_DIR SHARDS NAME=VALUE…`."""

import ast
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

TINY = {
    "num_classes": 5,
    "backbone": "resnet10_w16",
    "norm": "frozen",
    "freeze_stages": 0,
    "max_level": 5,
    "anchor_multiplier": 2.0,
    "fpn_channels": 16,
    "subnet_channels": 16,
    "subnet_depth": 1,
    "image_size": 64,
    "max_size": 64,
    "batch_size": 4,
    "normalizer": "global",
    "weight_decay": 1e-4,
    "learning_rate": 2e-3,
    "decay_steps": (),
}
"""No statistics of a replica's own images, so that one device, several, and several processes compute the same."""


def main() -> None:
    """Runs the job; the settings after SHARDS change TINY."""
    import retinanet_tf as rn
    from experiments.cli import run

    run_dir, shards, *changes = sys.argv[1:]
    sys.argv = sys.argv[:1]
    values = {name: ast.literal_eval(value) for name, value in (change.split("=", 1) for change in changes)}
    config = rn.Config().replace(**{**TINY, **values})
    run(lambda: rn.train(config, data=f"{shards}/train-*.tfrecord", run_dir=run_dir, verbose=2) and None)


if __name__ == "__main__":
    main()
