"""The index of a set of shards: offset, length, image size and object count of each record."""

import functools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from retinanet_tf.data.records.example import from_example, split_shard_name
from retinanet_tf.data.records.shards import FOOTER, HEADER
from retinanet_tf.data.records.tfrecord import length_fields, payloads
from retinanet_tf.errors import InputError
from retinanet_tf.files import path_text
from retinanet_tf.patterns import matching
from retinanet_tf.text import printable

VERSION = 3  # of NAME.index.npz; shards with an index of another version are scanned


@dataclass
class ShardIndex:
    """N records in the order of their files.

    files: paths. shard, number: (N,) int64, a record's file and its place in that file.
    offset, length: (N,) int64, where its payload lies. width, height: (N,) int64 pixels.
    boxes: (N,) int64, objects that are no crowd.
    present: (N,) objects: int64 arrays, the ids of the categories that a record has an object of, crowds left out.
    repeat: (N,) float64, how many times an epoch of training has the record, at least 1.
    """

    files: list[str]
    shard: np.ndarray
    number: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    width: np.ndarray
    height: np.ndarray
    boxes: np.ndarray
    present: np.ndarray
    repeat: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def select(self, keep: np.ndarray) -> "ShardIndex":
        """The same files with only some records."""
        return replace(self, **{name: column[keep] for name, column in vars(self).items() if name != "files"})


def find_shards(pattern: str | os.PathLike) -> list[str]:
    """The sorted files, local or remote, that a pattern matches (`matching` has its rules).

    Raises InputError if there is none, or one that can't be read as a file.
    """
    pattern = path_text(pattern, "pattern")
    files = matching(pattern)
    if not files:
        raise InputError(f"no file matches {pattern}; `retinanet prepare` writes NAME-00000-of-00001.tfrecord.")
    for path in files:
        if "://" not in path and not os.path.isfile(path):
            example = f", such as '{os.path.join(path, 'train-*.tfrecord')}'" if os.path.isdir(path) else ""
            raise InputError(f"{path} isn't a regular file; give a pattern of TFRecord files alone{example}.")
        if path != path.encode(errors="replace").decode():
            raise InputError(f"{printable(path)}: TensorFlow can't open paths that aren't UTF-8; rename it.")
    _check_sets(files)
    return files


def _check_sets(files: list[str]) -> None:
    """Refuses shards of two sets of one name, and warns of one whose other files don't exist."""
    totals: dict[tuple[str, str], Counter[int]] = {}
    for path in files:
        if shard := split_shard_name(path):
            totals.setdefault((os.path.dirname(path), shard[0]), Counter())[shard[2]] += 1
    for (folder, name), found in totals.items():
        if len(found) > 1:
            raise InputError(
                f"{folder or '.'} has shards {name} of {' and of '.join(map(str, sorted(found)))}: several sets of one "
                "name, whose images would count twice; delete all but one, or narrow the pattern."
            )
        [(total, count)] = found.items()
        if count < total:
            there = len(matching(os.path.join(folder, f"{name}-?????-of-{total:05d}.tfrecord")))
            if there < total:
                _warn(
                    f"{os.path.join(folder, name)} has {there} of its {total} shards: the others' images are missing."
                )


@functools.cache
def _warn(sentence: str) -> None:
    """Once for each sentence: the shards of a job are listed several times."""
    logging.warning("%s", sentence)


def read_index(pattern: str | os.PathLike, on_damage: Callable[[str, int], object] | None = None) -> ShardIndex:
    """The index of the shards that `pattern` matches, from `NAME.index.npz` beside them or by scanning them.

    A stored index is compared with the length fields of local shards; of remote ones each would be a request.

    Raises InputError for no match, a shard that isn't of the size it was written with, and a damaged record; with
    `on_damage` the latter two are left out instead, and it is called with file and number of each.
    """
    files = find_shards(pattern)
    load = functools.cache(_load)
    parts = []
    with tqdm(files, unit="shard", desc="reading shards' index", disable=None, leave=False, delay=2) as bar:
        for path in bar:
            size = tf.io.gfile.stat(path).length
            stored = _stored_rows(path, load)
            if stored is None:
                rows, present, reason = _scan(path)
                damaged, lost = [len(rows)] * bool(reason), "it and the records after it"
            else:
                rows, present, written = stored
                if size != written and on_damage is None:
                    raise InputError(
                        f"{path} has {size} bytes but was written with {written}; it was cut off or replaced, run "
                        "`retinanet prepare` again or go on without the lost records with on_bad_record=skip."
                    )
                whole = _whole(path, size, rows)
                damaged, rows, present = rows[~whole, 0].tolist(), rows[whole], present[whole]
                reason, lost = "its length isn't that of the index", "it"
            for number in damaged:
                if on_damage is None:
                    raise InputError(
                        f"record {number} of {path} is damaged ({reason}); run `retinanet prepare` again, or go on "
                        f"without {lost} with on_bad_record=skip."
                    )
                on_damage(path, number)
            parts.append((rows, present))
    rows, present = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(rows):
        raise InputError(f"the shards {os.fspath(pattern)} hold no record; prepare it again.")
    shard = np.repeat(np.arange(len(files)), [len(part) for part, _ in parts])
    number, offset, length, width, height, boxes = rows.T
    ones = np.ones(len(rows))
    return ShardIndex(files, shard, number, offset, length, width, height, boxes, present, ones)


def _stored_rows(path: str, load: Callable[[str], dict | None]) -> tuple[np.ndarray, np.ndarray, int] | None:
    """What the index says of a shard, or None.

    (n, 6) int64 rows (number in the file, then as in `ShardReport`), `present` (n,) as in `ShardIndex`, bytes.
    """
    name, shard, shards = split_shard_name(path) or ("", 0, 0)
    index = load(os.path.join(os.path.dirname(path), f"{name}.index.npz"))
    if index is None or len(index["bytes"]) != shards:
        return None
    own = index["shard"] == shard
    rows = index["rows"][own]
    numbered = np.concatenate([np.arange(len(rows))[:, None], rows], axis=1)
    return numbered, index["present"][own], int(index["bytes"][shard])


def _load(path: str) -> dict[str, np.ndarray] | None:
    """An index file, its `present` as in `ShardIndex`; None if there is none of this version with all arrays."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file, np.load(file) as arrays:
            index = {name: arrays[name] for name in ("version", "bytes", "shard", "rows", "present", "categories")}
    except Exception:  # not found, or one of the many that numpy, zipfile and zlib have for a damaged file
        return None
    rows = index["rows"]
    fits = rows.ndim == 2 and rows.shape[1] == 5 and rows.dtype == np.int64 and index["shard"].shape == rows.shape[:1]
    fits = fits and index["bytes"].ndim == 1 and len(index["present"]) == len(rows)
    if not fits or not np.array_equal(index["version"], VERSION):
        return None
    by_record = np.split(index["categories"], np.cumsum(index["present"])[:-1])
    return {**index, "present": np.fromiter(by_record[: len(rows)], object)}  # without rows it has one part still


def _whole(path: str, size: int, rows: np.ndarray) -> np.ndarray:
    """Which rows (n,) bool lie within the file and have the length that the file says."""
    offset, length = rows[:, 1], rows[:, 2]
    whole = (offset >= HEADER) & (offset <= size) & (length >= 0) & (length <= size - FOOTER - offset)
    if "://" not in path:
        whole[whole] = np.array(length_fields(path, offset[whole].tolist()), object) == length[whole]
    return whole


def _scan(path: str) -> tuple[np.ndarray, np.ndarray, str]:
    """The same rows and `present` by reading a shard up to a damaged record, and what is wrong with that or ""."""
    rows: list[list[int]] = []
    present: list[np.ndarray] = []
    offset, reason = HEADER, ""
    try:
        for data in payloads(path):
            image = from_example(data).annotations
            objects = len(image) - int(image.iscrowd.sum())
            rows.append([len(rows), offset, len(data), image.width or 0, image.height or 0, objects])
            present.append(image.present)
            offset += len(data) + FOOTER + HEADER
    except ValueError as error:
        reason = str(error)
    return np.array(rows, np.int64).reshape(-1, 6), np.fromiter(present, object), reason
