"""Trains a detector: `python -m experiments.train --data='shards/train-*.tfrecord' --run_dir=runs/mine`.

The same command again goes on where it stopped. Settings come from --preset and the flags after it.
"""

from absl import flags

from experiments import cli
from retinanet_tf import config_flags
from retinanet_tf.training import train

DATA = flags.DEFINE_string("data", None, "Pattern of training shards; labels.json is beside them.", required=True)
VALIDATION = flags.DEFINE_string("validation", "", "Pattern of shards to evaluate on at the end.")
INIT_WEIGHTS = flags.DEFINE_string(
    "init_weights", "", "Weights to start from: what experiments.import_weights wrote, or another job's run_dir."
)
RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder for everything the job leaves behind.", required=True)


def main() -> None:
    """Runs the job."""
    train(
        config_flags.read(),
        data=DATA.value,
        run_dir=RUN_DIR.value,
        validation=VALIDATION.value,
        init_weights=INIT_WEIGHTS.value,
    )


if __name__ == "__main__":
    config_flags.define()
    flags.adopt_module_key_flags(config_flags)
    cli.run(main)
