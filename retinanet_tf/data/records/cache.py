"""Shards decoded once: the same records with raw pixels in place of JPEG, in memory or on a fast disk."""

import hashlib
import os
import secrets
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from retinanet_tf.data.records.example import decode_image, parse_example
from retinanet_tf.data.records.index import ShardIndex
from retinanet_tf.data.records.reader import RecordReader
from retinanet_tf.data.records.shards import FOOTER, HEADER
from retinanet_tf.errors import InputError

# TensorFlow's file system in memory: files that its own readers and writers know, gone with the process.
_MEMORY = "ram://retinanet_tf"


def decoded(
    index: ShardIndex, where: str, folder: str | None = None, on_damage: Callable[[str, int], object] | None = None
) -> ShardIndex:
    """An index of the same records with decoded images ("image/format" is "raw": `height · width · 3` bytes).

    where: "ram" or "disk". folder: of the disk cache, by default `cache` beside the shards; what an earlier run left
    there for the same records is used again. Raises InputError if memory or disk doesn't suffice, and for a damaged
    record, unless `on_damage` is there to be told of it.
    """
    needed = int((index.width * index.height * 3 + index.length // 4).sum())
    if where == "ram":
        folder = _MEMORY
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > 0.7 * memory:
            raise InputError(
                f"--cache=ram needs {needed / 2**30:.1f} GiB for the decoded images and this machine has "
                f"{memory / 2**30:.1f}; use --cache=disk or none."
            )
    else:
        folder = folder or os.path.join(os.path.dirname(index.files[0]), "cache")
    try:
        tf.io.gfile.makedirs(folder)
        parts = []
        with tqdm(total=len(index), unit="image", desc=f"decoding to {where}", disable=None) as bar:
            for shard in range(len(index.files)):
                parts.append(_decode_shard(index, shard, folder, bar, on_damage))
    except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError, tf.errors.FailedPreconditionError) as e:
        raise InputError(f"the cache {folder} can't be written: {e.message}.") from None
    files, sizes, rows = zip(*parts, strict=True)
    shards = np.repeat(np.arange(len(files)), [len(part) for part in rows])
    return ShardIndex(list(files), np.array(sizes), shards, *np.concatenate(rows).T)


def pixels(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """(H, W, 3) uint8 of a parsed record of the cache."""
    shape = tf.stack([example["height"], example["width"], 3])
    return tf.reshape(tf.io.decode_raw(example["encoded"], tf.uint8), shape)


def _decode_shard(index: ShardIndex, shard: int, folder: str, bar: tqdm, on_damage) -> tuple[str, int, np.ndarray]:
    """Path, size and rows of one decoded shard, written if it isn't there."""
    records = np.flatnonzero(index.shard == shard)
    part = index.select(records)
    key = hashlib.sha256(repr((index.files[shard], index.bytes[shard])).encode() + part.number.tobytes()).hexdigest()[
        :20
    ]
    path = f"{folder}/{key}.tfrecord"
    if not tf.io.gfile.exists(f"{path}.npy"):
        rows, offset = [], HEADER
        aside = f"{path}.{secrets.token_hex(6)}"
        try:
            with tf.io.TFRecordWriter(aside) as writer:
                for number, data in _decoded_examples(index, records, on_damage):
                    writer.write(data)
                    old = [index.width[number], index.height[number], index.boxes[number]]
                    rows.append([index.number[number], offset, len(data), *old])
                    offset += len(data) + FOOTER + HEADER
                    bar.update()
        except BaseException:
            tf.io.gfile.remove(aside)
            raise
        tf.io.gfile.rename(aside, path, overwrite=True)
        with tf.io.gfile.GFile(f"{aside}.npy", "wb") as file:
            file.write(np.array(rows, np.int64).reshape(-1, 6).tobytes())
        tf.io.gfile.rename(f"{aside}.npy", f"{path}.npy", overwrite=True)
    else:
        bar.update(len(records))
    with tf.io.gfile.GFile(f"{path}.npy", "rb") as file:
        stored = np.frombuffer(file.read(), np.int64).reshape(-1, 6)
    return path, tf.io.gfile.stat(path).length, stored


def _decoded_examples(index: ShardIndex, records: np.ndarray, on_damage):
    """Yields (record, serialised example with raw pixels) in order."""
    reader = RecordReader(index)

    def process(data: tf.Tensor):
        return data, decode_image(parse_example(data)["encoded"])

    def one(record: tf.Tensor) -> tf.data.Dataset:
        if on_damage is None:
            found = reader.used_by(process, record)
        else:
            nothing = tf.data.Dataset.from_tensors((b"", np.zeros((0, 0, 3), np.uint8)))
            found = reader.if_usable(process, record).concatenate(nothing).take(1)
        return found.map(lambda data, image: (record, data, image))

    dataset = tf.data.Dataset.from_tensor_slices(records).interleave(
        one, cycle_length=2 * (os.cpu_count() or 1), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    for record, data, image in dataset.as_numpy_iterator():
        if not data:
            on_damage(index.files[index.shard[record]], int(index.number[record]))
            continue
        example = tf.train.Example.FromString(data)
        feature = example.features.feature
        feature["image/encoded"].bytes_list.value[:] = [image.tobytes()]
        feature["image/format"].bytes_list.value[:] = [b"raw"]
        yield record, example.SerializeToString(deterministic=True)
