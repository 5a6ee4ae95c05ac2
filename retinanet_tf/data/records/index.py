"""The index of a set of shards: offset, length, image size and object count of each record."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from retinanet_tf.data.records.example import from_example, split_shard_name
from retinanet_tf.data.records.shards import FOOTER, HEADER
from retinanet_tf.errors import InputError

VERSION = 3  # of NAME.index.npz; shards with an index of another version are scanned


@dataclass
class ShardIndex:
    """N records in the order of their files.

    files: paths. bytes: each file's size. shard, number: (N,) int64, a record's file and its place in that file.
    offset, length: (N,) int64, where its payload lies. width, height: (N,) int64 pixels.
    boxes: (N,) int64, objects that are no crowd.
    """

    files: list[str]
    bytes: np.ndarray
    shard: np.ndarray
    number: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    width: np.ndarray
    height: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        """N, the number of records."""
        return len(self.shard)

    def select(self, keep: np.ndarray) -> "ShardIndex":
        """The same files with only some records."""
        columns = ("shard", "number", "offset", "length", "width", "height", "boxes")
        return ShardIndex(self.files, self.bytes, *(getattr(self, column)[keep] for column in columns))


def find_shards(pattern: str | os.PathLike) -> list[str]:
    """The sorted files that a pattern, local or remote, matches. Raises InputError if there is none."""
    pattern = os.fspath(pattern)
    try:
        files = sorted(tf.io.gfile.glob(pattern))
    except tf.errors.OpError as error:
        raise InputError(f"the shards {pattern} can't be listed: {error.message}.") from None
    if not files:
        raise InputError(f"no file matches {pattern}; `retinanet prepare` writes NAME-00000-of-00001.tfrecord.")
    return files


def read_index(pattern: str | os.PathLike, on_damage: Callable[[str, int], object] | None = None) -> ShardIndex:
    """The index of the shards that `pattern` matches, from `NAME.index.npz` beside them or by scanning them.

    Raises InputError for no match, a shard that isn't of the size it was written with, and a damaged record; with
    `on_damage` the latter two are left out instead, and it is called with file and number of each.
    """
    files = find_shards(pattern)
    stored: dict[str, dict | None] = {}
    parts, sizes = [], []
    with tqdm(files, unit="shard", desc="reading shards' index", disable=None, leave=False, delay=2) as bar:
        for path in bar:
            size = tf.io.gfile.stat(path).length
            sizes.append(size)
            rows = _stored_rows(path, size, stored, on_damage)
            parts.append(rows if rows is not None else _scan(path, on_damage))
    rows = np.concatenate(parts)
    if not len(rows):
        raise InputError(f"the shards {os.fspath(pattern)} hold no record; prepare it again.")
    shard = np.repeat(np.arange(len(files)), [len(part) for part in parts])
    return ShardIndex(files, np.array(sizes), shard, *rows.T)


def _stored_rows(path: str, size: int, stored: dict[str, dict | None], on_damage) -> np.ndarray | None:
    """(n, 6) int64 rows (number in the file, then as in `ShardReport`) of an indexed shard, or None."""
    parsed = split_shard_name(path)
    if parsed is None:
        return None
    name, shard, shards = parsed
    index_path = os.path.join(os.path.dirname(path), f"{name}.index.npz")
    if index_path not in stored:
        stored[index_path] = None
        if tf.io.gfile.exists(index_path):
            with tf.io.gfile.GFile(index_path, "rb") as file, np.load(file) as arrays:
                stored[index_path] = dict(arrays)
    arrays = stored[index_path]
    if arrays is None or "version" not in arrays or arrays["version"] != VERSION or len(arrays["bytes"]) != shards:
        return None
    rows = arrays["rows"][arrays["shard"] == shard]
    rows = np.concatenate([np.arange(len(rows))[:, None], rows], axis=1)
    if size != arrays["bytes"][shard]:
        if on_damage is None:
            raise InputError(
                f"{path} has {size} bytes but was written with {arrays['bytes'][shard]}; it was cut off or replaced, "
                "run `retinanet prepare` again or go on without the lost records with on_bad_record=skip."
            )
        lost = rows[:, 1] + rows[:, 2] + FOOTER > size
        for number in rows[lost, 0]:
            on_damage(path, int(number))
        rows = rows[~lost]
    return rows


def _scan(path: str, on_damage) -> np.ndarray:
    """The rows of a shard without an index, by reading all of it up to a damaged record."""
    rows: list[list[int]] = []
    offset = HEADER
    try:
        for serialized in tf.data.TFRecordDataset(path):
            data = serialized.numpy()
            image = from_example(data).annotations
            objects = len(image) - int(image.iscrowd.sum())
            assert image.width and image.height, "records have their size"
            rows.append([len(rows), offset, len(data), image.width, image.height, objects])
            offset += len(data) + FOOTER + HEADER
    except (ValueError, tf.errors.OpError) as error:
        if on_damage is None:
            reason = getattr(error, "message", None) or str(error)
            raise InputError(
                f"record {len(rows)} of {path} is damaged ({reason}); run `retinanet prepare` again, or go on without "
                "it and the records after it with on_bad_record=skip."
            ) from None
        on_damage(path, len(rows))
    return np.array(rows, np.int64).reshape(-1, 6)
