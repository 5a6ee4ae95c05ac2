"""The training job: strategy, model, data, callbacks and `model.fit`, restartable from its run directory."""

import math
import sys
from pathlib import Path

import keras
import tensorflow as tf

from retinanet_tf import runs
from retinanet_tf.compat import tensorflow_variables
from retinanet_tf.config import Config
from retinanet_tf.data import files, pipeline
from retinanet_tf.data.damage import DamageLog
from retinanet_tf.data.labels import LabelMap
from retinanet_tf.data.reader import labels_beside
from retinanet_tf.detector import Detector
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation import evaluate
from retinanet_tf.losses import retinanet_losses
from retinanet_tf.model import RetinaNet
from retinanet_tf.optimization import make_optimizer
from retinanet_tf.pretrained.loading import check, initialize
from retinanet_tf.visualize import training_curves


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy called `name`: 'mirrored' over every GPU (or the CPU), or 'one_device'."""
    if name == "one_device":
        gpus = tf.config.list_logical_devices("GPU")
        return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/CPU:0")
    return tf.distribute.MirroredStrategy()


def load_training_data(
    config: Config, pattern: str, start_step: int = 0, damage_log: DamageLog | None = None
) -> tf.data.Dataset:
    """The training batches of a configuration, from step `start_step` on; skipped records go into `damage_log`."""
    return pipeline.load(
        pattern,
        training=True,
        image_size=config.model.image_size,
        max_size=config.model.max_size,
        pixel_mean=config.model.pixel_mean,
        size_multiple=2**config.anchors.max_level,
        batch_size=config.data.batch_size,
        flip=config.data.flip,
        vertical_flip=config.data.vertical_flip,
        scale_jitter=config.data.scale_jitter,
        translate_jitter=config.data.translate_jitter,
        colour_jitter=config.data.colour_jitter,
        cache=config.data.cache,
        on_bad_record=config.data.on_bad_record,
        damage_log=damage_log,
        data_service=config.data.data_service or None,
        seed=config.train.seed,
        start_step=start_step,
    )


def compile_model(config: Config) -> RetinaNet:
    """A fresh model with the configuration's losses and optimizer; call it in the strategy's scope."""
    model = RetinaNet.from_config(config)
    model.compile(optimizer=make_optimizer(config.train), loss=retinanet_losses(config.loss), jit_compile=False)
    return model


class _SaveState(keras.callbacks.Callback):
    """Writes the training state after every epoch with a finite loss; tf.train renames its files into place."""

    def __init__(self, manager: tf.train.CheckpointManager):
        super().__init__()
        self.manager = manager

    def on_epoch_end(self, epoch, logs=None):
        """Saves under the number of finished epochs."""
        if math.isfinite((logs or {}).get("loss", 0.0)):
            self.manager.save(checkpoint_number=epoch + 1)


def train(
    config: Config,
    *,
    data: str,
    run_dir: str,
    validation: str = "",
    init_weights: str = "",
    verbose: int | None = None,
) -> RetinaNet:
    """Trains a detector, or goes on where the same job stopped.

    Args:
      config: everything but the paths.
      data: pattern of the training shards; labels.json stands beside them.
      run_dir: folder for what the job leaves (see `runs`).
      validation: pattern of shards whose COCO numbers are written at the end; '' for none.
      init_weights: what `pretrained.import_weights` wrote, or another run's directory, to start from; '' for none.
      verbose: Keras' `verbose`; by default a bar on a terminal and a line an epoch elsewhere.

    Returns:
      The trained model.

    Raises:
      InputError: the data, the configuration or the run directory can't be used.
    """
    run_dir = Path(run_dir)
    label_map = labels_beside(data)
    if label_map.num_classes != config.model.num_classes:
        raise InputError(
            f"--num_classes={config.model.num_classes} disagrees with the {label_map.num_classes} categories of "
            f"{Path(data).parent / 'labels.json'}; set --num_classes={label_map.num_classes}."
        )
    epoch_steps = min(config.train.checkpoint_steps, config.train.steps)
    epochs = -(-config.train.steps // epoch_steps)
    keras.utils.set_random_seed(config.train.seed)
    # The data is opened first: whatever is wrong with it is said before anything is written.
    load_training_data(config, data)
    if init_weights:
        check(config.model, config.anchors, init_weights)
    known = runs.start(run_dir, config, label_map, data=data, validation=validation, init_weights=init_weights)

    if known and (run_dir / runs.WEIGHTS).exists():
        print(f"{run_dir}: this run is finished; its result is used as it is.")
        return runs.load_model(run_dir)

    strategy = make_strategy(config.train.strategy)
    with strategy.scope():
        model = compile_model(config)
        model.optimizer.build(model.trainable_variables)
        # Plain lists: tf.train's own walk over a Keras 3 model misses the weights of layers that are kept in lists.
        state = tf.train.Checkpoint(
            weights=tensorflow_variables(model.weights), optimizer=tensorflow_variables(model.optimizer.variables)
        )
    manager = tf.train.CheckpointManager(state, str(run_dir / "checkpoints"), max_to_keep=2, checkpoint_name="epoch")
    finished = 0
    if known and manager.latest_checkpoint:
        with strategy.scope():
            state.restore(manager.latest_checkpoint).assert_consumed()
        finished = int(manager.latest_checkpoint.rsplit("-", 1)[1])
        done = min(finished * epoch_steps, config.train.steps)
        print(f"{run_dir}: going on after {done} of {config.train.steps} steps.")
    elif init_weights:
        with strategy.scope():
            print(initialize(model, init_weights, label_map))
    if finished < epochs:
        damage_log = DamageLog(run_dir / "damaged_records.txt") if config.data.on_bad_record == "skip" else None
        model.fit(
            load_training_data(config, data, finished * epoch_steps, damage_log),
            epochs=epochs,
            initial_epoch=finished,
            steps_per_epoch=epoch_steps,
            callbacks=[
                keras.callbacks.TerminateOnNaN(),
                _SaveState(manager),
                keras.callbacks.CSVLogger(str(run_dir / "log.csv"), append=bool(finished)),
            ],
            verbose=(1 if sys.stdout.isatty() else 2) if verbose is None else verbose,
        )
        if model.stop_training:
            raise InputError(
                f"the loss in {run_dir} became NaN or infinite; the last good state is kept in its checkpoints: lower "
                "--learning_rate, lengthen --warmup_steps or set --clip_norm, in another run_dir."
            )
    _finish(config, model, label_map, run_dir, validation)
    return model


def _finish(config: Config, model: RetinaNet, label_map: LabelMap, run_dir: Path, validation: str) -> None:
    """Writes curves, metrics and, last, the weights: they are the mark of a finished run."""
    training_curves(run_dir / "log.csv", run_dir / "training.png")
    if validation:
        detector = Detector.from_config(config, model, label_map)
        metrics = evaluate(detector, validation)
        files.write_json(run_dir / "metrics.json", metrics)
        print(f"{run_dir}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    runs.save_weights(model, run_dir / runs.WEIGHTS)
