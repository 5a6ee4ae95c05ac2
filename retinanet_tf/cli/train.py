"""Training of a detector, with resume: `retinanet train --data='shards/train-*.tfrecord' --run_dir=runs/mine`.

The same command again resumes. Settings come from --preset and the flags after it.
"""

from typing import Any

from absl import flags

from retinanet_tf.cli import flags as config_flags
from retinanet_tf.config.flagfile import flagfile

DATA = flags.DEFINE_string("data", None, "Pattern of training shards; labels.json is beside them.", required=True)
VALIDATION = flags.DEFINE_string("validation", "", "Pattern of shards to evaluate on at the end.")
INIT_WEIGHTS = flags.DEFINE_string(
    "init_weights", "", "Weights to start from: from `retinanet import-weights`, or another job's run_dir."
)
RUN_DIR = flags.DEFINE_string("run_dir", None, "Run directory: settings, checkpoints, metrics.", required=True)
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Check data, settings and devices and print them; write nothing.")
config_flags.define()


def main() -> None:
    """Runs the job, or with --dry_run prints its settings."""
    from retinanet_tf.training.job import announce, open_job
    from retinanet_tf.training.train import train

    config = config_flags.read()
    paths: dict[str, Any] = {"data": DATA.value, "validation": VALIDATION.value, "init_weights": INIT_WEIGHTS.value}
    if not DRY_RUN.value:
        train(config, run_dir=RUN_DIR.value, **paths)
        return
    job = open_job(config, **paths)
    print(flagfile(config, **paths), end="")
    announce(config, job.strategy.num_replicas_in_sync)
