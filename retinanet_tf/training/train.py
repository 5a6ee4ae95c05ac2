"""The training job: strategy, model, data, callbacks and the loop; resumes from its run directory.

Failures (NaN loss, out of memory, lost worker) become readable errors.
"""

import dataclasses
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf import files
from retinanet_tf.compat import CLIPS_THE_SUM
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flagfile
from retinanet_tf.data.pipeline import image_ids, load_for_training
from retinanet_tf.data.records.damage import DamageLog
from retinanet_tf.data.records.index import find_shards
from retinanet_tf.errors import InputError, first_line
from retinanet_tf.inference import checkpoint
from retinanet_tf.losses.classification import retinanet_losses
from retinanet_tf.models.ema import WeightAverage
from retinanet_tf.models.fit_data import readable_faults
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.models.train_step import Step
from retinanet_tf.pretrained.by_name import initialize
from retinanet_tf.training import run_directory
from retinanet_tf.training.callbacks import NonFiniteLoss, Progress, SaveState, StopRequest, WatchLosses
from retinanet_tf.training.checkpoints import TrainingState, newest_step
from retinanet_tf.training.job import Job, announce, open_job
from retinanet_tf.training.loop import run_steps
from retinanet_tf.training.optimizers import make_optimizer, make_schedule
from retinanet_tf.training.service_watch import ServiceWatch
from retinanet_tf.training.strategies import LOST, distribute, gathered, leave_together
from retinanet_tf.training.validation import Validation
from retinanet_tf.visualize import training_curves

NAN_CAUSES = (
    "usually the learning rate is too high for the batch (lower learning_rate, lengthen warmup_steps, set clip_norm), "
    "the class loss begins without the prior, or a box is wrong (`retinanet inspect`)"
)


def compile_model(config: Config, class_names: Sequence[str] = ()) -> RetinaNet:
    """A new model with the configuration's losses, optimizer and step; call it in the strategy's scope.

    `class_names`: the K different names that `class_alpha` may use.
    """
    train = config.train
    optimizers = train if CLIPS_THE_SUM else dataclasses.replace(train, clip_norm=0.0)
    with precision_policy(train.precision):
        model = RetinaNet.from_config(config)
        model.compile(
            optimizer=make_optimizer(optimizers),
            loss=retinanet_losses(config.loss, class_names),
            jit_compile=train.xla,
        )
    average = WeightAverage(model.weights, train.ema_decay) if train.ema_decay else None
    model.step = Step(train.accumulation, train.bias_lr_factor, average, train.clip_norm - optimizers.clip_norm)
    return model


def train(
    config: Config,
    *,
    data: str | os.PathLike,
    run_dir: str | os.PathLike,
    validation: str | os.PathLike = "",
    init_weights: str | os.PathLike = "",
    verbose: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> RetinaNet:
    """Trains a detector, or resumes the same job.

    SIGTERM and Ctrl-C save the state at the end of the step; then the process exits with 143, or KeyboardInterrupt is
    raised. After `kill -9` the job resumes from the last checkpoint. On CPUs the final weights are those of an
    uninterrupted job, bit for bit.

    Args:
        config: everything but the paths.
        data: pattern of the training shards; labels.json is beside them.
        run_dir: folder for the job's files (see `run_directory`), local or mounted; shared by all workers of
            strategy='multi_worker'.
        validation: pattern of shards whose COCO numbers are written every `eval_steps` and at the end; '' for none.
        init_weights: to start from: the result of `pretrained.import_weights`, another run's directory, or a published
            name; '' for none.
        verbose: 0 is silent; 1, the default on a terminal, refreshes a line; 2 prints one every half minute.
        callbacks: of Keras or others, such as W&B's and MLflow's, called after the job's own. Epochs are those of
            `checkpoint_steps`; their logs have the losses, "step", "learning_rate", "images_per_s" and, where the
            chief worker evaluated, "val_AP", "val_AP50" and "val_AP75"; what a stop delays to the next process is in
            log.csv alone. `model.stop_training` ends the job.

    Returns:
        The trained model (with `ema_decay`, its averaged weights).

    Raises:
        InputError: an argument can't be used, or the loss became NaN.
    """
    if not isinstance(config, Config):
        raise InputError(f"config={config!r} must be a Config, such as presets['mini'].")
    if verbose not in (None, 0, 1, 2):
        raise InputError(f"verbose={verbose!r} must be 0, 1 or 2.")
    if not isinstance(callbacks, Sequence) or not all(isinstance(one, keras.callbacks.Callback) for one in callbacks):
        raise InputError(f"callbacks={callbacks!r} must be a list of Keras callbacks.")
    if any(isinstance(one, keras.callbacks.BackupAndRestore) for one in callbacks):
        raise InputError("callbacks: leave BackupAndRestore out; a job resumes by itself, and it would undo that.")
    run_dir = Path(files.local(run_dir, "run_dir")).expanduser()
    paths = {"data": data, "validation": validation, "init_weights": init_weights}
    job = open_job(config, **{name: files.path_text(path or "", name) for name, path in paths.items()})
    flagfile(config, **job.paths, run_dir=str(run_dir))  # refuses a name before anything is written
    keras.utils.set_random_seed(config.train.seed)
    if not job.worker.is_chief:
        return _run(job, run_dir, verbose or 0, callbacks)
    files.make_folder(run_dir, "run_dir")
    with run_directory.exclusive(run_dir):
        run_directory.start(run_dir, config, job.label_map, **job.paths, workers=job.worker.count)
        return _run(job, run_dir, (1 if sys.stdout.isatty() else 2) if verbose is None else verbose, callbacks)


def _run(job: Job, run_dir: Path, verbose: int, callbacks: Sequence[keras.callbacks.Callback]) -> RetinaNet:
    """The job of one process, whose run directory is in order."""
    config, strategy, worker, data = job.config, job.strategy, job.worker, job.paths["data"]
    with readable_failures(job, run_dir):
        finished = (run_dir / checkpoint.WEIGHTS).exists()
        if worker.count > 1:
            shards = [tf.io.gfile.stat(path).length for path in find_shards(data)], job.label_map.to_json()
            checksums = [zlib.crc32(text.encode()) for text in (flagfile(config), repr(shards))]
            facts = {
                "the settings' checksum": checksums[0],
                "the checksum of the shards' sizes and labels": checksums[1],
                "the newest checkpoint's step": newest_step(run_dir / "checkpoints"),
            }
            _agree(job, facts)
        if finished:
            print(f"{run_dir}: this run is finished; its result is used as it is.")
            return checkpoint.load_model(run_dir)
        total = config.train.steps
        with strategy.scope():
            model = compile_model(config, job.label_map.unique_names)
            average = model.step.average
            state = TrainingState(run_dir / "checkpoints", model, average, worker.is_chief)
            done = state.restore()
        # Outside of the scope, where each worker reads its own file: inside, building a network waits for the others.
        if done:
            print(f"{run_dir}: resuming after {done} of {total} steps.")
        elif job.paths["init_weights"]:
            print(initialize(model, job.paths["init_weights"], job.label_map))
            if average:
                average.restart()
        if worker.count > 1:
            beginning = zlib.crc32(b"".join(weights.tobytes() for weights in model.get_weights()))
            facts = {
                "the step of the newest readable checkpoint": done,
                "the checksum of the weights to start from": beginning,
            }
            _agree(job, facts)
        if worker.is_chief and done < total:
            announce(job, model.xla_scope)
        progress = Progress(total, done, config.data.batch_size, make_schedule(config.train), verbose)
        evaluator = Validation(job, model, run_dir, progress)
        damage_log = DamageLog(run_dir / "damaged_records.txt") if config.data.on_bad_record == "skip" else None
        service, states = config.data.data_service, run_dir / "checkpoints"
        with (
            StopRequest() as stop,
            ServiceWatch(service, progress, stop, states) if service else nullcontext() as watch,
        ):
            every = [
                *([watch] if watch else []),
                progress,
                WatchLosses(progress, config.loss.box_weight),
                *evaluator.loggers(lambda: next(iter(load_for_training(config, data)))),
                SaveState(state, progress, stop, config.train.checkpoint_steps),
                evaluator,
                *callbacks,
            ]
            batches = distribute(strategy, lambda shard: load_for_training(config, data, done, damage_log, shard))
            run_steps(model, batches, every, progress, config.train.checkpoint_steps, stop)
        with files.ended_by_sigterm():  # the state is saved
            if worker.is_chief and (run_dir / run_directory.LOG).exists():
                training_curves(run_dir / run_directory.LOG, run_dir / "training.png")
            evaluator.finish()
            # A worker that had left would not come back if the chief had to be started again.
            leave_together(strategy, lambda: (run_dir / checkpoint.WEIGHTS).exists())
    return model


def _agree(job: Job, facts: dict[str, int]) -> None:
    """Raises InputError on all workers unless these numbers are the same on all."""
    by_worker = gathered(job.strategy, list(facts.values()))
    for what, values in zip(facts, zip(*by_worker, strict=True), strict=True):
        if len(set(values)) > 1:
            found = ", ".join(f"{value} on worker {index}" for index, value in enumerate(values))
            raise InputError(
                f"the workers of strategy=multi_worker disagree on {what} ({found}); they need the same flags, "
                "data and init_weights, and run_dir must be on storage that all of them share."
            )


@contextmanager
def readable_failures(job: Job, run_dir: Path) -> Iterator[None]:
    """Turns NaN losses, damaged records, exhausted memory and lost workers inside the block into an InputError.

    Args:
        job: the job.
        run_dir: gets the batch of a step with a NaN loss.
    """
    config, worker, states = job.config, job.worker, run_dir / "checkpoints"
    try:
        with readable_faults():
            yield
    except NonFiniteLoss as error:
        if not worker.is_chief:
            ids = f" (here with the images {', '.join(_images_of(job, error.step))})" if _own_batches(config) else ""
            raise InputError(f"{error}{ids}; the chief worker has the details.") from None
        if config.data.data_service:
            raise InputError(
                f"{error}; data_service makes batches in an unknown order, so its images aren't known; "
                f"causes: {NAN_CAUSES}."
            ) from None
        raise InputError(_nan_report(job, run_dir, error.step)) from None
    except tf.errors.ResourceExhaustedError as error:
        raise InputError(
            f"the devices' memory is too small for a step of {config.data.batch_size} images of "
            f"{config.model.image_size} px ({first_line(error)}); lower batch_size, or keep it and "
            "compute it in parts with accumulation (precision=bfloat16 and a smaller image_size help too)."
        ) from None
    except (*LOST, tf.errors.OpError) as e:
        if worker.count > 1 and isinstance(e, LOST):
            raise InputError(
                f"worker {worker.index} of {worker.count} lost the others ({first_line(e)}); where none of them has "
                "ended with an error of its own, start all workers again with the same commands: they resume from step "
                f"{newest_step(states)}."
            ) from None
        if not config.data.data_service:
            raise
        raise InputError(
            f"data_service={config.data.data_service}: {first_line(e)}; if the service was started again or has lost "
            f"its workers, repeat the command: the job resumes from step {newest_step(states)}."
        ) from None


def _nan_report(job: Job, run_dir: Path, step: int) -> str:
    """Saves the batch of a step with a NaN loss as `nonfinite_step_N.npz`; returns the error's sentence."""
    images, objects = next(iter(load_for_training(job.config, job.paths["data"], step, shard=_shard_of(job))))
    ids, newest = _images_of(job, step), newest_step(run_dir / "checkpoints")
    path = run_dir / f"nonfinite_step_{step}.npz"
    with files.written_aside(path) as aside, open(aside, "wb") as file:
        np.savez(file, images=images, image_ids=np.array(ids), **objects)
    state = f"the state of step {newest} is in {run_dir / 'checkpoints'}" if newest else "no state was saved before it"
    return (
        f"the loss of step {step} became NaN or infinite, with the images {', '.join(ids)} (saved in {path}); {state}. "
        f"{'The other workers name theirs. ' if _own_batches(job.config) and job.worker.count > 1 else ''}"
        f"Causes: {NAN_CAUSES}; then start in another run_dir."
    )


def _own_batches(config: Config) -> bool:
    """Whether each worker has batches of its own, whose images it can tell."""
    return config.data.shard_by == "files" and not config.data.data_service


def _shard_of(job: Job) -> tuple[int, int]:
    return (job.worker.index, job.worker.count) if job.config.data.shard_by == "files" else (0, 1)


def _images_of(job: Job, step: int) -> list[str]:
    return image_ids(job.config, job.paths["data"], step, _shard_of(job))
