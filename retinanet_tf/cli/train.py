"""Training of a detector, with resume: `retinanet train --data='shards/train-*.tfrecord' --run_dir=runs/mine`.

The same command again resumes. Settings come from --preset, from the weights that --init_weights names (the network's,
and of a detector those of its anchors, assignment and losses) and from the other flags; each overrides those named
before it. Without --preset, a detector of torchvision's v2 brings the preset `modern`, by which it was trained.
"""

from typing import Any

from absl import flags

from retinanet_tf.cli import flags as config_flags
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flag_lines, flagfile
from retinanet_tf.config.presets import presets

DATA = flags.DEFINE_string("data", None, "Pattern of training shards; labels.json is beside them.", required=True)
VALIDATION = flags.DEFINE_string(
    "validation", "", "Pattern of shards to evaluate on: at the end, and every --eval_steps."
)
INIT_WEIGHTS = flags.DEFINE_string(
    "init_weights",
    "",
    "Weights to start from: a name that `retinanet models` lists, from `retinanet import-weights`, or another run_dir.",
)
RUN_DIR = flags.DEFINE_string("run_dir", None, "Run directory: settings, checkpoints, metrics.", required=True)
DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Check data, weights, settings and devices and print them; write nothing. Where XLA compiles the step, on a GPU or "
    "with --xla=true, also say how much memory it needs and the batches that cards hold (a minute or more).",
)
config_flags.define()


def main() -> None:
    """Runs the job, or with --dry_run prints its settings."""
    from retinanet_tf.training.job import announce, open_job
    from retinanet_tf.training.train import compile_model, train
    from retinanet_tf.xla import resolve_jit_compile

    config = config_flags.read(_base())
    paths: dict[str, Any] = {"data": DATA.value, "validation": VALIDATION.value, "init_weights": INIT_WEIGHTS.value}
    if not DRY_RUN.value:
        train(config, run_dir=RUN_DIR.value, **paths)
        return
    job = open_job(config, **paths)
    print(flagfile(config, **paths), end="")
    scope = "nothing"
    if resolve_jit_compile(config.train.xla):
        with job.strategy.scope():
            scope = compile_model(config, job.label_map.unique_names).xla_scope
    announce(job, scope)
    if scope != "nothing":
        from retinanet_tf.training.memory_report import memory_report

        print("XLA now plans the step's memory, a minute or more for a large network.", flush=True)
        print(memory_report(config, DATA.value, job.strategy.num_replicas_in_sync))


def _base() -> Config:
    """The preset, with the settings that go with --init_weights; those that change it are printed."""
    from retinanet_tf.pretrained.by_name import resolve, starting_config
    from retinanet_tf.pretrained.loading import preset

    if not INIT_WEIGHTS.value:
        return presets[flags.FLAGS.preset]
    brought = "" if flags.FLAGS["preset"].present else preset(resolve(INIT_WEIGHTS.value))
    name = brought or flags.FLAGS.preset
    before, config = presets[name].flat(), starting_config(INIT_WEIGHTS.value, name)
    changed = {name: value for name, value in config.flat().items() if value != before[name]}
    unsaid = {name: value for name, value in changed.items() if not flags.FLAGS[name].present}
    if brought or unsaid:
        lines = flag_lines(({"preset": brought} if brought else {}) | unsaid)
        print(f"From init_weights={INIT_WEIGHTS.value}:", *(line.strip() for line in lines))
    return config
