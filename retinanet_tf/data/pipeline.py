"""The input pipeline: TFRecord shards to batches of images and boxes for `model.fit`."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tf.config.config import Config, DataConfig, ModelConfig
from retinanet_tf.data.augmentation import Augmentation, Scene
from retinanet_tf.data.batching import CanvasBatch, padded_length
from retinanet_tf.data.decoding import decode_image
from retinanet_tf.data.records.damage import DamageLog, guarded
from retinanet_tf.data.records.example import from_example, parse_example
from retinanet_tf.data.records.index import ShardIndex, read_index
from retinanet_tf.data.records.reader import RecordReader, labels_beside
from retinanet_tf.data.repeat_factors import with_repeats
from retinanet_tf.data.service import distributed
from retinanet_tf.data.shuffle import Pools, share_of_files
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection.rounding import round_up
from retinanet_tf.errors import InputError

_MODEL, _DATA = ModelConfig(), DataConfig()
_BLOCK = 64
"""Steps whose records are drawn together: a shuffle of a large data set costs as much as decoding two images."""


def load(
    pattern: str | os.PathLike,
    *,
    image_size: int = _MODEL.image_size,
    max_size: int = _MODEL.max_size,
    resize: str = _MODEL.resize,
    size_multiple: int = 128,
    pixel_mean: tuple[float, float, float] = _MODEL.pixel_mean,
    batch_size: int = _DATA.batch_size,
    training: bool = True,
    label_map: LabelMap | str | os.PathLike | None = None,
    seed: int = 0,
    start_step: int = 0,
    flip: float = _DATA.flip,
    vertical_flip: float = _DATA.vertical_flip,
    scale_jitter: tuple[float, float] = _DATA.scale_jitter,
    translate_jitter: float = _DATA.translate_jitter,
    colour_jitter: float = _DATA.colour_jitter,
    repeat_threshold: float | str = _DATA.repeat_threshold,
    crop: int = _DATA.crop,
    overlap_crop: float = _DATA.overlap_crop,
    mosaic: float = _DATA.mosaic,
    mixup: float = _DATA.mixup,
    mix_steps: int | None = None,
    cutout: float = _DATA.cutout,
    min_visible: float = _DATA.min_visible,
    shard: tuple[int, int] = (0, 1),
    shard_by: str = _DATA.shard_by,
    on_bad_record: str = _DATA.on_bad_record,
    damage_log: DamageLog | None = None,
    data_service: str = _DATA.data_service,
) -> tf.data.Dataset:
    """Batches of `(images, {"boxes", "labels"})` from the shards that `pattern` matches.

    images: `(B, H, W, 3)` float32 RGB 0–255, resized (by the paper's rule, §4.1, or as `resize` says) and put at the
    top left of a canvas of `pixel_mean`. boxes: `(B, M, 4)` float32 xyxy pixels of the canvas. labels: `(B, M)` int32,
    0…K−1; rows without an object have label −1 and a box of zeros. M is the number of objects of the batch's fullest
    image, rounded up to a power of two, at least 8. Crowds are left out (authors' code).

    Training: endless and shuffled, a pure function of (seed, step): `start_step=n` begins with the batch that an
    uninterrupted run would see at step n, and nothing before it is read. Otherwise: each record once, those of the
    wide canvas in file order, then those of the tall one, not augmented; a canvas' last batch is smaller.

    Args:
        pattern: of shards, e.g. "data/train-*.tfrecord".
        image_size: shorter side in pixels.
        max_size: limit of the longer side.
        resize: 'shorter_side' keeps proportions; 'stretch' makes squares of `image_size`, which `max_size` must equal.
        size_multiple: canvases are multiples of this, the stride of the coarsest pyramid level. There are two
            canvases, wide and tall, and a batch has one of them; equal `image_size` and `max_size` make one square
            canvas.
        pixel_mean: colour of the padding, which the model subtracts.
        batch_size: of the whole step; a worker's share is batch_size / shard[1].
        training: see above.
        label_map: the label map or its file; by default labels.json beside the shards.
        seed: of shuffle and augmentation.
        start_step: first step, from 0.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        scale_jitter: range of a factor on the size, e.g. (0.8, 1.25).
        translate_jitter: how far an image may move into free room, as a share of its frame.
        colour_jitter: brightness, contrast and saturation by at most this share.
        repeat_threshold: above 0 or 'auto', images of rare categories come several times per epoch of training, as
            `data.repeat_factors` computes; the same for every worker.
        crop: side of a random square of each image as it is stored, then resized like an image
            (`augmentation.square_crop`); 0 is off. Where no image is smaller, all share one square canvas.
        overlap_crop: probability of a patch as SSD takes it (`augmentation.overlap_crop`).
        mosaic: probability of four images on one (`augmentation.mosaic`).
        mixup: probability of a blend of two images (`augmentation.mixup`).
        mix_steps: the first step without mosaic and mixup; None: none is.
        cutout: side of a covered square, as a share of the image's shorter side (`augmentation.cutout`).
        min_visible: share of an object that must still be seen after jitter, crops, mosaic and cutout for its box to
            stay, clipped to what the image shows; it must also have a pixel on each side.
        shard: (index, count) of this worker in training.
        shard_by: "records": every worker takes its share of each step's records, so the workers' batches, put together,
            are those of a single process, however many files there are. "files": every worker reads only its own
            files, every count-th, and shuffles those; by records where there are fewer files than workers.
        on_bad_record: "stop" makes a damaged record an error that names its file and number; "skip" replaces it by
            another record. A shard that was cut off, before or while the job runs, loses only what is missing. Shards
            without the index that `prepare` writes lose a damaged record and all after it in its file.
        damage_log: notes the records that were skipped.
        data_service: grpc://HOST:PORT of a tf.data service dispatcher whose workers make the batches; they then come
            in the order in which workers finish them.

    Raises:
        InputError: no shard, a damaged index, or an argument out of range.
    """
    model = ModelConfig(image_size=image_size, max_size=max_size, resize=resize, pixel_mean=pixel_mean)
    settings = DataConfig(
        batch_size=batch_size,
        shard_by=shard_by,
        on_bad_record=on_bad_record,
        repeat_threshold=repeat_threshold,
        flip=flip,
        vertical_flip=vertical_flip,
        scale_jitter=scale_jitter,
        translate_jitter=translate_jitter,
        colour_jitter=colour_jitter,
        crop=crop,
        overlap_crop=overlap_crop,
        mosaic=mosaic,
        mixup=mixup,
        cutout=cutout,
        min_visible=min_visible,
    )
    _check(size_multiple, batch_size, start_step, shard)
    log = (damage_log or DamageLog()) if on_bad_record == "skip" else None
    index = read_index(pattern, log.add if log else None)
    label_map = labels_beside(pattern, label_map)
    if training:
        index, factors = with_repeats(index, repeat_threshold)
        if factors and (factors.images == 1.0).all():
            logging.warning("%s", factors.sentence(label_map))
        model = dataclasses.replace(model, max_size=_longer_side(index, image_size, max_size, crop))
    if training and shard_by == "files":
        index, batch_size, seed, shard = share_of_files(index, batch_size, seed, shard)
    if training and not index.boxes.any():
        logging.warning("no image of %s has an object: a detector learns nothing from them.", pattern)
    short, long = round_up(image_size, size_multiple), round_up(model.max_size, size_multiple)
    canvas = CanvasBatch(short, long, pixel_mean)
    pools = Pools.by_orientation(index.width, index.height, short == long, index.repeat)
    share = batch_size // shard[1]
    mixed = None if mix_steps is None else mix_steps * batch_size
    alone = (len(pools.wide) == 1, len(pools.tall) == 1)
    drawn = settings if training else DataConfig(flip=0.0)  # the default has no other augmentation
    augmentation = Augmentation(drawn, model, seed, mixed, short == long, alone)

    @tf.function(autograph=False)
    def stored(serialized: tf.Tensor) -> Scene:
        """A record's picture as it is stored."""
        example = parse_example(serialized)
        boxes, labels = objects_of(example, label_map)
        image = decode_image(example["encoded"])
        same = tf.reduce_all(tf.shape(image)[:2] == [example["height"], example["width"]])
        with tf.control_dependencies([tf.debugging.Assert(same, ["the image has another size"])]):
            return Scene.whole(tf.identity(image), boxes, labels)

    def assemble(read: Callable[[tf.Tensor, int], tf.Tensor], samples: tf.Tensor, tall: tf.Tensor):
        def example(i: tf.Tensor):
            return augmentation(lambda place: stored(read(i, place)), samples[i], tall)[:3]

        return canvas.fill(tf.size(samples), tall, example)

    def with_static_size(images: tf.Tensor, objects: dict[str, tf.Tensor]):
        fixed = {key: tf.ensure_shape(value, (share, *value.shape[1:])) for key, value in objects.items()}
        return tf.ensure_shape(images, (share, *images.shape[1:])), fixed

    def batches(groups: tf.data.Dataset) -> tf.data.Dataset:
        return guarded(groups, assemble, stored, RecordReader(index), pools, log, remote=bool(data_service))

    def of_block(block: tf.Tensor):
        steps = block * _BLOCK + tf.range(_BLOCK, dtype=tf.int64)
        rows = shard[0] * share + tf.range(share, dtype=tf.int64)
        records, tall = pools.draw_groups(steps, batch_size, seed, augmentation.partners)
        samples = steps[:, None] * batch_size + rows
        return tf.gather(records, rows, axis=1), samples, tf.repeat(tall[:, None], share, axis=1)

    if training:
        blocks = tf.data.Dataset.range(start_step // _BLOCK, np.iinfo(np.int64).max // (_BLOCK * batch_size))
        steps = blocks.map(of_block).unbatch().filter(lambda _, samples, __: samples[0] >= start_step * batch_size)
        dataset = batches(steps).map(with_static_size)
    else:
        whole = [
            batches(tf.data.Dataset.from_tensor_slices((pool[:, None], pool, np.full(len(pool), tall))).batch(share))
            for pool, tall in ((pools.wide, False), (pools.tall, True))
            if len(pool)
        ]
        dataset = whole[0] if len(whole) == 1 else whole[0].concatenate(whole[1])
        if on_bad_record == "stop":
            # Without it Keras 3 counts one batch more in the mean of each loss.
            count = sum(round_up(len(pool), share) // share for pool in (pools.wide, pools.tall))
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    if data_service:
        dataset = distributed(dataset, data_service)
    return dataset.prefetch(tf.data.AUTOTUNE)


def load_for_training(
    config: Config,
    pattern: str | os.PathLike,
    start_step: int = 0,
    damage_log: DamageLog | None = None,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """`load` with the arguments that a configuration has; skipped records go into `damage_log`."""
    if not isinstance(config, Config):
        raise InputError(f"config={config!r} must be a Config, such as presets['mini'].")
    options = {name: value for name, value in vars(config.data).items() if name != "mix_until"}
    options |= {"seed": config.train.seed, "mix_steps": round(config.data.mix_until * config.train.steps)}
    options |= {"start_step": start_step, "damage_log": damage_log, "shard": shard}
    return load(pattern, **canvas_arguments(config), **options)


def canvas_arguments(config: Config) -> dict[str, Any]:
    """The sizes and the padding of `load`."""
    return {
        "image_size": config.model.image_size,
        "max_size": config.model.max_size,
        "resize": config.model.resize,
        "size_multiple": 2**config.anchors.max_level,
        "pixel_mean": config.model.pixel_mean,
    }


def batch_shapes(config: Config, pattern: str | os.PathLike) -> list[tuple[int, int, int]]:
    """The (H, W, M) that batches of `load_for_training` can have: what a compiled step is compiled for."""
    index = _training_index(config, pattern)
    short, long = _training_canvas(config, index)
    pools = Pools.by_orientation(index.width, index.height, short == long)
    pictures = (4 if config.data.mosaic else 1) + (config.data.mixup > 0)
    shapes = []
    for pool, canvas in ((pools.wide, (short, long)), (pools.tall, (long, short))):
        if len(pool):
            longest = int(padded_length(tf.constant(pictures * index.boxes[pool].max(), tf.int32)))
            shapes += [(*canvas, 2**power) for power in range(3, longest.bit_length())]
    return shapes


def _training_index(config: Config, pattern: str | os.PathLike) -> ShardIndex:
    """The index of the records that `load_for_training` draws from."""
    return read_index(pattern, (lambda *_: None) if config.data.on_bad_record == "skip" else None)


def _longer_side(index: ShardIndex, image_size: int, max_size: int, crop: int) -> int:
    """`max_size` of training: `image_size` where crops of all images are squares, which then share one canvas."""
    return image_size if crop and min(index.width.min(), index.height.min()) >= crop else max_size


def _training_canvas(config: Config, index: ShardIndex) -> tuple[int, int]:
    """The shorter and the longer side of the canvas of `load_for_training`."""
    sizes = canvas_arguments(config)
    short, long = sizes["image_size"], _longer_side(index, sizes["image_size"], sizes["max_size"], config.data.crop)
    return round_up(short, sizes["size_multiple"]), round_up(long, sizes["size_multiple"])


def image_ids(config: Config, pattern: str | os.PathLike, step: int, shard: tuple[int, int] = (0, 1)) -> list[str]:
    """The data set's ids of the images that `load_for_training` gives at `step` (from 0), without decoding any.

    Of a mosaic or a mixup only the first image's.
    """
    index, _ = with_repeats(_training_index(config, pattern), config.data.repeat_threshold)
    batch_size, seed = config.data.batch_size, config.train.seed
    short, long = _training_canvas(config, index)
    if config.data.shard_by == "files":
        index, batch_size, seed, shard = share_of_files(index, batch_size, seed, shard)
    pools = Pools.by_orientation(index.width, index.height, short == long, index.repeat)
    reader = RecordReader(index)
    share = batch_size // shard[1]
    records = pools.draw(tf.constant([step], tf.int64), batch_size, seed)[0][0, shard[0] * share :][:share]
    return [_name(reader, record) for record in records]


def _name(reader: RecordReader, record: tf.Tensor) -> str:
    """A record's id, or else its file name; its place if it can't be read."""
    try:
        image = from_example(reader.bytes_of(record).numpy()).annotations
    except (tf.errors.OpError, ValueError):
        path, number = reader.position(record)
        return f"record {int(number)} of {path.numpy().decode()}"
    return str(image.image_id) or image.file_name


def objects_of(example: dict[str, tf.Tensor], label_map: LabelMap) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes `(N, 4)` and labels `(N,)` int32 of a parsed record, crowds left out; an unknown id is an error."""
    keep = tf.logical_not(example["iscrowd"])
    categories, ids = tf.boolean_mask(example["category_ids"], keep), tf.constant(label_map.ids, tf.int64)
    labels = tf.minimum(tf.searchsorted(ids, categories), label_map.num_classes - 1)
    same = tf.reduce_all(tf.equal(tf.gather(ids, labels), categories))
    with tf.control_dependencies([tf.debugging.Assert(same, ["an id isn't in labels.json", categories])]):
        return tf.boolean_mask(example["boxes"], keep), tf.identity(labels)


def _check(size_multiple: int, batch_size: int, start_step: int, shard: tuple[int, int]) -> None:
    if size_multiple < 1:
        raise InputError(f"size_multiple={size_multiple} must be above 0.")
    if start_step < 0:
        raise InputError(f"start_step={start_step} must be at least 0.")
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"shard={shard} must be (index, count) of a worker, with an index from 0 to count - 1.")
    if batch_size % shard[1]:
        raise InputError(f"batch_size={batch_size} must be a multiple of the {shard[1]} workers.")
