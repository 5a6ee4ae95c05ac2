"""`load`: TFRecord shards to batches of images and boxes for `model.fit`."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tf.data import transforms
from retinanet_tf.data.batching import CanvasBatch
from retinanet_tf.data.records.cache import decoded, pixels
from retinanet_tf.data.records.damage import DamageLog, guarded
from retinanet_tf.data.records.example import decode_image, parse_example
from retinanet_tf.data.records.index import ShardIndex, read_index
from retinanet_tf.data.records.reader import RecordReader, labels_beside, to_labels
from retinanet_tf.data.service import distributed
from retinanet_tf.data.shuffle import Pools, share_of_files
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError

PIXEL_MEAN = (123.675, 116.28, 103.53)
_BOXES_MULTIPLE = 8


def load(
    pattern: str | os.PathLike,
    *,
    image_size: int = 600,
    max_size: int = 1000,
    batch_size: int = 16,
    training: bool = True,
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    labels: LabelMap | str | os.PathLike | None = None,
    seed: int = 0,
    start_step: int = 0,
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    scale_jitter: tuple[float, float] = (1.0, 1.0),
    translate_jitter: float = 0.0,
    colour_jitter: float = 0.0,
    size_multiple: int = 128,
    static: bool = False,
    max_boxes: int | None = None,
    shard: tuple[int, int] = (0, 1),
    shard_by: str = "records",
    cache: str = "none",
    cache_dir: str | None = None,
    on_bad_record: str = "stop",
    damage_log: DamageLog | None = None,
    data_service: str | None = None,
) -> tf.data.Dataset:
    """Batches of `(images, {"boxes", "labels"})` from the shards that `pattern` matches.

    images: (B, H, W, 3) float32 RGB 0..255, resized by the paper's rule (§4.1) and put at the top left of a canvas of
    `pixel_mean`. boxes: (B, M, 4) float32 xyxy pixels of the canvas. labels: (B, M) int32, 0..K-1; places without an
    object have label -1 and a box of zeros. Crowds are left out (authors' code).

    Training: endless and shuffled, a pure function of (seed, step): `start_step=n` begins with the batch that an
    uninterrupted run would see at step n, and nothing before it is read. Otherwise: each record once, those of the
    wide canvas in file order, then those of the tall one, neither flipped nor jittered; a canvas' last batch is
    smaller.

    Args:
        pattern: of shards, e.g. "data/train-*.tfrecord".
        image_size, max_size: shorter side, and the most the longer one may have.
        batch_size: of the whole step; a worker's part is batch_size / shard[1].
        labels: the label map or its file; by default labels.json beside the shards.
        flip, vertical_flip: probabilities.
        scale_jitter: range of a factor on the size, e.g. (0.8, 1.25).
        translate_jitter: how far an image may move into free room, as a share of its frame.
        colour_jitter: brightness, contrast and saturation by at most this share.
        size_multiple: canvases are multiples of this, as the deepest pyramid level needs. There are two canvases,
            wide and tall, a batch has one of them; equal `image_size` and `max_size` make one square canvas.
        static: M is the same for all batches, as XLA needs: the most that any image has, rounded up to a multiple of
            8. By default a batch has the M of its fullest image.
        max_boxes: the M of all batches. Objects are never dropped: an image with more raises InputError.
        shard: (index, count) of this worker in training.
        shard_by: "records": every worker takes its part of each step's records, so the workers' batches, put together,
            are those of a single process, however many files there are. "files": every worker reads (and caches) only
            its own files, every count-th, and shuffles those; by records where there are fewer files than workers.
        cache: "ram" or "disk" decodes every image once, before the first batch; see `retinanet_tf.data.records.cache`.
        cache_dir: of the disk cache, by default `cache` beside the shards.
        on_bad_record: "stop" makes a damaged record an error that names its file and number; "skip" puts another
            record in its place. A shard that was cut, before or while the job runs, loses only what is missing.
        damage_log: notes the records that were skipped.
        data_service: grpc://HOST:PORT of a tf.data service dispatcher whose workers make the batches; they then come
            in the order in which workers finish them.
    """
    _check(image_size, max_size, batch_size, shard, shard_by, cache, on_bad_record, data_service)
    log = (damage_log or DamageLog()) if on_bad_record == "skip" else None
    index = read_index(pattern, log.add if log else None)
    labels = labels_beside(pattern, labels)
    max_boxes = _count_boxes(index, max_boxes, static)
    if training and shard_by == "files":
        index, batch_size, seed, shard = share_of_files(index, batch_size, seed, shard)
    if training and not index.boxes.any():
        logging.warning("no image of %s has an object: a detector learns nothing from them.", pattern)
    short, long = (-(-side // size_multiple) * size_multiple for side in (image_size, max_size))
    if cache != "none":
        index = decoded(index, cache, cache_dir, log.add if log else None)
    decode = decode_image_of if cache == "none" else pixels
    canvas = CanvasBatch(short, long, pixel_mean)
    pools = Pools.by_orientation(index.width, index.height, short == long)
    part = batch_size // shard[1]
    jittered = training and (tuple(scale_jitter) != (1.0, 1.0) or translate_jitter > 0)

    def one(serialized: tf.Tensor, place: tf.Tensor):
        """Image, boxes and labels of a record; `place` numbers the sample and seeds its augmentation."""
        example = parse_example(serialized)
        boxes, classes = objects_of(example, labels)
        image = decode(example)
        seeds = [tf.stack([place, tf.constant(seed * 3 + kind, tf.int64)]) for kind in range(3)]
        if training:
            image, boxes = transforms.random_flip(image, boxes, seeds[0], flip, vertical_flip)
        if jittered:
            image, boxes, kept = transforms.random_jitter(
                image, boxes, seeds[1], image_size, max_size, scale_jitter, translate_jitter, pixel_mean
            )
            classes = tf.boolean_mask(classes, kept)
        else:
            image, scale = transforms.resize(image, image_size, max_size)
            boxes = transforms.scale_boxes(boxes, scale)
        if training and colour_jitter:
            image = transforms.random_colour(image, seeds[2], colour_jitter)
        return image, boxes, classes

    def assemble(read: Callable[[tf.Tensor], tf.Tensor], places: tf.Tensor, tall: tf.Tensor):
        return canvas.fill(tf.size(places), tall, lambda i: one(read(i), places[i]), max_boxes)

    def with_static_size(images: tf.Tensor, objects: dict[str, tf.Tensor]):
        known = {key: tf.ensure_shape(value, (part, *value.shape[1:])) for key, value in objects.items()}
        return tf.ensure_shape(images, (part, *images.shape[1:])), known

    def batches(groups: tf.data.Dataset) -> tf.data.Dataset:
        return guarded(groups, assemble, RecordReader(index), pools, log, remote=data_service is not None)

    def of_step(step: tf.Tensor):
        places = shard[0] * part + tf.range(part, dtype=tf.int64)
        records = tf.gather(pools.records(step, batch_size, seed), places)
        return records, step * batch_size + places, tf.fill((part,), pools.is_tall(step))

    if training:
        dataset = batches(tf.data.Dataset.range(start_step, np.iinfo(np.int64).max).map(of_step))
        dataset = dataset.map(with_static_size)
    else:
        whole = [
            batches(tf.data.Dataset.from_tensor_slices((pool, pool, np.full(len(pool), tall))).batch(part))
            for pool, tall in ((pools.wide, False), (pools.tall, True))
            if len(pool)
        ]
        dataset = whole[0] if len(whole) == 1 else whole[0].concatenate(whole[1])
    if data_service is not None:
        dataset = distributed(dataset, data_service)
    return dataset.prefetch(tf.data.AUTOTUNE)


def decode_image_of(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """(H, W, 3) uint8 of a parsed record."""
    return decode_image(example["encoded"])


def objects_of(example: dict[str, tf.Tensor], labels: LabelMap) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes (N, 4) and labels (N,) of a parsed record, crowds left out."""
    keep = tf.logical_not(example["iscrowd"])
    return tf.boolean_mask(example["boxes"], keep), to_labels(tf.boolean_mask(example["category_ids"], keep), labels)


def _check(image_size, max_size, batch_size, shard, shard_by, cache, on_bad_record, data_service) -> None:
    if not 0 < image_size <= max_size:
        raise InputError(f"image_size={image_size} must be above 0 and at most max_size={max_size}.")
    if batch_size < 1 or batch_size % shard[1]:
        raise InputError(f"batch_size={batch_size} must be a positive multiple of the {shard[1]} workers.")
    if shard_by not in ("records", "files"):
        raise InputError(f"--shard_by={shard_by} must be records or files.")
    if cache not in ("none", "ram", "disk"):
        raise InputError(f"--cache={cache} must be none, ram or disk.")
    if cache == "ram" and data_service is not None:
        raise InputError("--cache=ram is memory of this process, which the workers of --data_service don't see.")
    if on_bad_record not in ("stop", "skip"):
        raise InputError(f"--on_bad_record={on_bad_record} must be stop or skip.")


def _count_boxes(index: ShardIndex, max_boxes: int | None, static: bool) -> int | None:
    most = int(index.boxes.max())
    if max_boxes is None:
        return max(_BOXES_MULTIPLE, -(-most // _BOXES_MULTIPLE) * _BOXES_MULTIPLE) if static else None
    if most > max_boxes:
        record = int(index.boxes.argmax())
        raise InputError(
            f"record {index.number[record]} of {index.files[index.shard[record]]} has {most} objects, more than "
            f"max_boxes={max_boxes}; none is dropped, so raise it."
        )
    return max_boxes
