"""The training job: strategy, model, data, callbacks and `model.fit`, restartable from its run directory."""

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from retinanet_tf import files
from retinanet_tf.compat import make_step_variables
from retinanet_tf.config.config import Config
from retinanet_tf.data.position import image_ids
from retinanet_tf.data.records.damage import DamageLog
from retinanet_tf.data.training_data import canvas_settings, load_training_data
from retinanet_tf.inference import checkpoint
from retinanet_tf.losses.classification import retinanet_losses
from retinanet_tf.models.ema import WeightAverage
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.models.train_step import Step
from retinanet_tf.pretrained.loading import initialize
from retinanet_tf.training import failures as faults
from retinanet_tf.training import run_directory
from retinanet_tf.training.callbacks import Progress, SaveState, WatchLosses
from retinanet_tf.training.checkpoints import TrainingState
from retinanet_tf.training.job import Job, announce, open_job
from retinanet_tf.training.locking import exclusive
from retinanet_tf.training.optimizers import make_optimizer, make_schedule
from retinanet_tf.training.stopping import StopRequest
from retinanet_tf.training.strategies import Worker, distribute
from retinanet_tf.training.validation import Validation
from retinanet_tf.visualize import training_curves


def compile_model(config: Config) -> RetinaNet:
    """A fresh model with the configuration's losses, optimizer and step; call it in the strategy's scope."""
    settings = config.train
    with _precision(settings.precision):
        model = RetinaNet.from_config(config)
        model.compile(
            optimizer=make_optimizer(settings, config.model.weight_decay),
            loss=retinanet_losses(config.loss, static=settings.xla),
            jit_compile=settings.xla,
        )
    make_step_variables(model)
    average = WeightAverage(model.weights, settings.ema_decay) if settings.ema_decay else None
    if average or settings.accumulation > 1 or settings.bias_lr_factor != 1.0:
        model.step = Step(settings.accumulation, settings.bias_lr_factor, average)
    return model


@contextmanager
def _precision(name: str) -> Iterator[None]:
    """Layers made inside the block compute in `name`; their variables stay float32."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name if name == "float32" else f"mixed_{name}")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def train(
    config: Config,
    *,
    data: str,
    run_dir: str | os.PathLike,
    validation: str = "",
    init_weights: str = "",
    verbose: int | None = None,
) -> RetinaNet:
    """Trains a detector, or goes on where the same job stopped.

    SIGTERM and Ctrl-C save the state of the step in hand; then the process exits with 143, or KeyboardInterrupt is
    raised. After `kill -9` it goes on from the last checkpoint. On CPUs the final weights are those of an
    uninterrupted job, bit for bit.

    Args:
      config: everything but the paths.
      data: pattern of the training shards; labels.json stands beside them.
      run_dir: folder for what the job leaves (see `runs`); shared by all workers of strategy='multi_worker'.
      validation: pattern of shards whose COCO numbers are written every `eval_steps` and at the end; '' for none.
      init_weights: what `pretrained.import_weights` wrote, or another run's directory, to start from; '' for none.
      verbose: Keras' `verbose`; by default a bar on a terminal and a line an epoch elsewhere.

    Returns:
      The trained model (with `ema_decay`, its averaged weights).

    Raises:
      InputError: the data, the configuration or the run directory can't be used, or the loss was no number.
    """
    folder = Path(run_dir)
    # Whatever is wrong is said before anything is written.
    job = open_job(config, data=data, validation=validation, init_weights=init_weights)
    keras.utils.set_random_seed(config.train.seed)
    if not job.worker.is_chief:
        return _run(job, folder, verbose or 0)
    files.make_folder(folder, "run_dir")
    with exclusive(folder):
        run_directory.start(folder, config, job.label_map, **job.paths)
        verbose = (1 if sys.stdout.isatty() else 2) if verbose is None else verbose
        return _run(job, folder, verbose)


def _run(job: Job, run_dir: Path, verbose: int) -> RetinaNet:
    """The job of one process whose run directory is in order."""
    if (run_dir / checkpoint.WEIGHTS).exists():
        print(f"{run_dir}: this run is finished; its result is used as it is.")
        return checkpoint.load_model(run_dir)
    config, strategy, worker, data = job.config, job.strategy, job.worker, job.paths["data"]
    total = config.train.steps
    with strategy.scope():
        model = compile_model(config)
        average = model.step.average if model.step else None
        state = TrainingState(run_dir / "checkpoints", model, average, worker.is_chief)
        done = state.restore()
        if done:
            print(f"{run_dir}: going on after {done} of {total} steps.")
        elif job.paths["init_weights"]:
            print(initialize(model, job.paths["init_weights"], job.label_map))
            if average:
                average.restart()
    if worker.is_chief and done < total:
        announce(config, strategy.num_replicas_in_sync)
    judge = Validation(config, model, job.label_map, run_dir, job.source, worker, average)
    damage_log = DamageLog(run_dir / "damaged_records.txt") if config.data.on_bad_record == "skip" else None
    progress = Progress(total, done, config.data.batch_size, make_schedule(config.train))
    if worker.is_chief:
        run_directory.trim_log(run_dir, done)
    with StopRequest() as stop:
        callbacks = [
            progress,
            WatchLosses(progress),
            SaveState(state, progress, stop),
            *judge.callbacks(progress, lambda: load_training_data(config.replace(cache="none"), data)),
        ]
        for initial_epoch, epochs, steps in _segments(done, total, config.train.checkpoint_steps):
            batches = distribute(
                strategy, lambda shard: load_training_data(config, data, progress.step, damage_log, shard)
            )
            batch_of = functools.partial(_batch_of, config, data, worker)
            with faults.explained(config, run_dir, worker, lambda: state.newest, batch_of):
                model.fit(
                    batches,
                    epochs=epochs,
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps,
                    callbacks=callbacks,
                    verbose=verbose,
                )
    if worker.is_chief and (run_dir / run_directory.LOG).exists():
        training_curves(run_dir / run_directory.LOG, run_dir / "training.png")
    judge.finish()
    return model


def _segments(done: int, total: int, every: int) -> Iterator[tuple[int, int, int]]:
    """(first epoch, epochs in all, steps an epoch) of the calls of `fit` that lead from step `done` to `total`.

    Epochs end at the multiples of `every` and at the last step; Keras' epochs are equally long within a call.
    """
    while done < total:
        first = done // every
        steps = min((first + 1) * every, total) - done
        count = (total - done) // every if steps == every else 1
        yield first, first + count, steps
        done += count * steps


def _batch_of(config: Config, data: str, worker: Worker, step: int) -> tuple[faults.Batch, list[str]]:
    """The batch that a step saw, and the ids of its images; by files, each worker's own."""
    shard = (worker.index, worker.count) if config.data.shard_by == "files" else (0, 1)
    batch = next(iter(load_training_data(config.replace(cache="none"), data, step, shard=shard)))
    return batch, image_ids(
        data,
        step,
        batch_size=config.data.batch_size,
        **canvas_settings(config),
        seed=config.train.seed,
        shard=shard,
        shard_by=config.data.shard_by,
    )
