"""What a training job is made of: opened and checked before anything is computed or written."""

import dataclasses
from pathlib import Path

import tensorflow as tf
from absl import logging

from retinanet_tf.config.config import Config
from retinanet_tf.data.records.reader import labels_beside
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.training_data import load_training_data
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.source import Source, category_ids, read_source
from retinanet_tf.pretrained.loading import check
from retinanet_tf.training.optimizers import linear_rule_excess
from retinanet_tf.training.strategies import Worker, make_strategy, worker_of


@dataclasses.dataclass(frozen=True)
class Job:
    """A configuration, its data, weights to start from and devices, which are known to go together.

    paths: "data", "validation" and "init_weights" as they were given, '' for none. source: the validation data, on the
    chief worker alone. worker: this process.
    """

    config: Config
    paths: dict[str, str]
    strategy: tf.distribute.Strategy
    worker: Worker
    label_map: LabelMap
    source: Source | None


def open_job(config: Config, *, data: str, validation: str = "", init_weights: str = "") -> Job:
    """Opens what `train` takes. Whatever can be told of a job before its first step is told here.

    Raises:
      InputError: the data, the configuration, the weights or the devices can't be used, or not together.
    """
    strategy = make_strategy(config.train.strategy, config.train.devices)
    worker = worker_of(strategy)
    label_map = _checked_labels(config, data, strategy)
    load_training_data(config, data)
    if init_weights:
        check(config.model, config.anchors, init_weights)
    source = read_source(validation) if validation and worker.is_chief else None
    if source:
        category_ids(label_map, source.labels, source.name)
    paths = {"data": data, "validation": validation, "init_weights": init_weights}
    return Job(config, paths, strategy, worker, label_map, source)


def _checked_labels(config: Config, data: str, strategy: tf.distribute.Strategy) -> LabelMap:
    """The dataset's label map, once it and the settings are known to go together."""
    label_map = labels_beside(data)
    if label_map.num_classes != config.model.num_classes:
        raise InputError(
            f"--num_classes={config.model.num_classes} disagrees with the {label_map.num_classes} categories of "
            f"{Path(data).parent / 'labels.json'}; set --num_classes={label_map.num_classes}."
        )
    settings = config.train
    if settings.bias_lr_factor != 1.0 and settings.optimizer != "sgd":
        raise InputError(f"--bias_lr_factor works with --optimizer=sgd; {settings.optimizer} would undo the factor.")
    if settings.accumulation > 1 and config.loss.mining != "none" and config.loss.normalizer != "image":
        raise InputError(
            f"--accumulation={settings.accumulation} with --mining={config.loss.mining} needs --normalizer=image: the "
            "others count the examples of the whole batch, which mining knows a part at a time."
        )
    parts = strategy.num_replicas_in_sync * settings.accumulation
    if config.data.batch_size % parts:
        raise InputError(
            f"--batch_size={config.data.batch_size} must be a multiple of {parts} ({strategy.num_replicas_in_sync} "
            f"devices, --accumulation={config.train.accumulation})."
        )
    return label_map


def announce(config: Config, replicas: int) -> None:
    """Says what is about to run, and warns of a rate that the linear rule wouldn't give."""
    settings, batch = config.train, config.data.batch_size
    parts = f", in {settings.accumulation} parts each" if settings.accumulation > 1 else ""
    print(
        f"{settings.steps} steps of {batch} images on {replicas} device(s){parts}; {settings.optimizer}, learning rate "
        f"{settings.learning_rate:g}, schedule {settings.schedule}."
    )
    excess = linear_rule_excess(settings, batch)
    if excess > 2.0:
        logging.warning(
            "learning_rate=%g is %.1f times what the linear rule gives for a batch of %d (0.01 for 16, section 4.1); "
            "the loss may become NaN.",
            settings.learning_rate,
            excess,
            batch,
        )
