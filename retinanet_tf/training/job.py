"""A training job's data, weights and devices, opened and validated before anything is computed or written."""

import dataclasses
from pathlib import Path

import tensorflow as tf
from absl import logging

from retinanet_tf.config.config import Config
from retinanet_tf.data.pipeline import batch_shapes, load_for_training
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.reader import labels_beside
from retinanet_tf.data.repeat_factors import with_repeats
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.source import Source, category_ids, open_validation
from retinanet_tf.losses.classification import retinanet_losses
from retinanet_tf.models.resnet import variant
from retinanet_tf.pretrained.by_name import resolve
from retinanet_tf.pretrained.loading import check
from retinanet_tf.training.optimizers import DECOUPLED_DECAY, make_optimizer
from retinanet_tf.training.strategies import Worker, make_strategy, worker_of
from retinanet_tf.xla import has_accelerator, resolve_jit_compile


@dataclasses.dataclass(frozen=True)
class Job:
    """A validated configuration with its data and devices.

    `paths` has "data", "validation" and "init_weights" as they were given, '' for none. `source` is the validation
    data, on the chief worker only.
    """

    config: Config
    paths: dict[str, str]
    strategy: tf.distribute.Strategy
    worker: Worker
    label_map: LabelMap
    source: Source | None


def open_job(config: Config, *, data: str, validation: str = "", init_weights: str = "") -> Job:
    """Opens and validates everything that `train` takes.

    Raises:
        InputError: the data, the configuration, the weights or the devices can't be used, or not together.
    """
    strategy = make_strategy(config.train.strategy, config.train.devices)
    worker = worker_of(strategy)
    label_map = labels_beside(data)
    if label_map.num_classes != config.model.num_classes:
        raise InputError(
            f"num_classes={config.model.num_classes} disagrees with the {label_map.num_classes} categories of "
            f"{Path(data).parent / 'labels.json'}; set num_classes={label_map.num_classes}."
        )
    variant(config.model.backbone)
    make_optimizer(config.train)
    retinanet_losses(config.loss, label_map.unique_names)
    _check_combinations(config, strategy.num_replicas_in_sync)
    source = open_validation(validation) if validation and worker.is_chief else None
    if source:
        category_ids(label_map, source.label_map, source.name)
    _check_evaluations(config, validation, source)
    load_for_training(config, data)
    if init_weights:
        check(config.model, config.anchors, resolve(init_weights))
    paths = {"data": data, "validation": validation, "init_weights": init_weights}
    return Job(config, paths, strategy, worker, label_map, source)


def _check_evaluations(config: Config, validation: str, source: Source | None) -> None:
    train, patience = config.train, f"patience={config.train.patience}"
    if not validation or not train.eval_steps:
        if train.patience:
            raise InputError(f"{patience} counts evaluations: it needs validation data and eval_steps above 0.")
        if train.validation_loss:
            raise InputError("validation_loss is part of evaluations: it needs validation data and eval_steps above 0.")
    if train.eval_steps and not validation:
        logging.warning("eval_steps=%d without validation data: nothing is evaluated.", train.eval_steps)
    if train.patience and source and all(row["iscrowd"] for row in source.instances["annotations"]):
        raise InputError(f"{patience} needs an AP, but {source.name} has no object that counts; set patience=0.")


def _check_combinations(config: Config, replicas: int) -> None:
    train, batch = config.train, config.data.batch_size
    if train.bias_lr_factor != 1.0 and train.optimizer != "sgd":
        raise InputError(
            f"bias_lr_factor={train.bias_lr_factor} needs optimizer=sgd; {train.optimizer} would undo the factor."
        )
    if train.optimizer in DECOUPLED_DECAY and train.adamw_decay and config.model.weight_decay:
        raise InputError(
            f"adamw_decay={train.adamw_decay} and weight_decay={config.model.weight_decay} would both shrink the "
            "kernels; set one of them to 0."
        )
    if train.accumulation > 1 and config.loss.mining != "none" and config.loss.normalizer != "image":
        raise InputError(
            f"accumulation={train.accumulation} with mining={config.loss.mining} needs normalizer=image: the others "
            "count the examples of the whole batch, of which mining sees one part at a time."
        )
    parts = replicas * train.accumulation
    if batch % parts:
        raise InputError(
            f"batch_size={batch} must be a multiple of {parts} ({replicas} devices, accumulation={train.accumulation})."
        )


def announce(job: Job, xla_scope: str) -> None:
    """Prints the job's size, what repeat-factor sampling does and what XLA compiles (`RetinaNet.xla_scope`).

    Warns of a learning rate far above the linear rule's, of batch norm on parts, and where XLA compiles nothing.
    """
    config, data, replicas = job.config, job.paths["data"], job.strategy.num_replicas_in_sync
    train, batch = config.train, config.data.batch_size
    parts = f", in {train.accumulation} parts each" if train.accumulation > 1 else ""
    print(
        f"{train.steps} steps of {batch} images on {replicas} device(s){parts}; {train.optimizer}, learning rate "
        f"{train.learning_rate:g}, schedule {train.schedule}."
    )
    excess = train.learning_rate / (0.01 * batch / 16)
    if train.optimizer == "sgd" and excess > 2.0:
        logging.warning(
            "learning_rate=%g is %.1f times what the linear rule gives for a batch of %d (0.01 for 16, section 4.1); "
            "the loss may become NaN.",
            train.learning_rate,
            excess,
            batch,
        )
    if train.accumulation > 1 and "batch" in (config.model.norm, config.model.subnet_norm):
        logging.warning(
            "accumulation=%d with norm=%s and subnet_norm=%s: batch norm normalises each part by itself, so the "
            "gradients aren't those of the whole batch.",
            *(train.accumulation, config.model.norm, config.model.subnet_norm),
        )
    if config.data.repeat_threshold:
        _, factors = with_repeats(read_index(data, lambda *_: None), config.data.repeat_threshold)
        if factors and (factors.images > 1.0).any():
            print(factors.sentence(job.label_map))
    if xla_scope != "nothing":
        shapes = batch_shapes(config, data)
        canvases = " and ".join(dict.fromkeys(f"{height}x{width}" for height, width, _ in shapes))
        lengths = ", ".join(map(str, sorted({length for _, _, length in shapes})))
        part = {"step": "the step", "replica": "each device's part of the step"}[xla_scope]
        print(
            f"XLA compiles {part}, for at most {len(shapes)} shapes: canvases {canvases}, room for {lengths} objects "
            "per image. The first step of each shape is slow."
        )
    elif resolve_jit_compile(train.xla):
        logging.warning(
            "xla=%s compiles nothing on several devices with norm=batch, subnet_norm=batch, or mining with "
            "normalizer=global: the devices exchange numbers in the middle of a step.",
            train.xla,
        )
    elif train.xla == "auto" and has_accelerator():
        logging.warning(
            "xla=auto compiles nothing where deterministic operations are asked for: some have no such kernel."
        )
