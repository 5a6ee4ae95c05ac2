"""The training data that a configuration describes."""

from typing import Any

import tensorflow as tf

from retinanet_tf.config.config import Config
from retinanet_tf.data import pipeline
from retinanet_tf.data.records.damage import DamageLog


def canvas_settings(config: Config) -> dict[str, Any]:
    """The pictures' sizes in pixels, as `pipeline.load` and `position.image_ids` are told them."""
    return {
        "image_size": config.model.image_size,
        "max_size": config.model.max_size,
        "size_multiple": 2**config.anchors.max_level,
    }


def load_training_data(
    config: Config,
    pattern: str,
    start_step: int = 0,
    damage_log: DamageLog | None = None,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """The training batches of a configuration, from step `start_step` on; skipped records go into `damage_log`."""
    return pipeline.load(
        pattern,
        training=True,
        **canvas_settings(config),
        pixel_mean=config.model.pixel_mean,
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
        shard=shard,
        shard_by=config.data.shard_by,
        static=config.train.xla or config.train.strategy == "tpu",
    )
