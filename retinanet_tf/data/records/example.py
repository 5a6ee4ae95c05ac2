"""tf.Example per image, with the keys of the TF Object Detection API; file names of shards."""

import hashlib
import os
import re
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from retinanet_tf.data.records.images import PreparedImage
from retinanet_tf.data.sources.annotations import ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap

# Boxes normalised to float32 lose a few 1e-5 pixels. This extra key keeps `(N, 5)` float64 x1, y1, x2, y2, area, so
# that an evaluation from shards equals the evaluation from the JSON. Other tools ignore it.
_EXACT = "image/object/exact"
_CORNERS = [f"image/object/bbox/{corner}" for corner in ("xmin", "ymin", "xmax", "ymax")]
# Ids that `str` gives back as they were: "0001" and "²" are texts.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_SHARD = re.compile(r"^(?P<name>.+)-(?P<shard>\d{5})-of-(?P<shards>\d{5})\.tfrecord$")


@dataclass(frozen=True)
class Record:
    """Contents of a record: the encoded image, its format ("jpeg" or "png"), and its annotations."""

    encoded: bytes
    format: str
    annotations: ImageAnnotations


def shard_name(name: str, shard: int, shards: int) -> str:
    """`train-00003-of-00064` and the ending .tfrecord."""
    return f"{name}-{shard:05d}-of-{shards:05d}.tfrecord"


def split_shard_name(path: str) -> tuple[str, int, int] | None:
    """(name, shard, shards) of such a file name, None for any other."""
    match = _SHARD.match(os.path.basename(path))
    return (match["name"], int(match["shard"]), int(match["shards"])) if match else None


def to_example(image: PreparedImage, annotations: ImageAnnotations, label_map: LabelMap) -> bytes:
    """The serialised tf.Example of one image.

    Keys as in the TF Object Detection API: boxes normalised to 0..1, `image/object/class/label` the dataset's category
    id, `class/text` its name. Serialised with sorted keys, so that equal input gives equal bytes.
    """
    width, height = image.width, image.height
    normalised = annotations.boxes / np.array([width, height, width, height], np.float64)
    name_of = dict(zip(label_map.ids, label_map.names, strict=True))
    exact = np.concatenate([annotations.boxes, annotations.area[:, None]], axis=1).astype("<f8")
    features = {
        "image/encoded": [image.encoded],
        "image/format": [image.format.encode()],
        "image/height": [height],
        "image/width": [width],
        "image/filename": [annotations.file_name.encode()],
        "image/source_id": [str(annotations.image_id).encode()],
        "image/key/sha256": [hashlib.sha256(image.encoded).hexdigest().encode()],
        **dict(zip(_CORNERS, normalised.T, strict=True)),
        "image/object/class/label": annotations.category_ids,
        "image/object/class/text": [name_of[int(i)].encode() for i in annotations.category_ids],
        "image/object/is_crowd": annotations.iscrowd.astype(np.int64),
        "image/object/area": annotations.area,
        "image/object/id": annotations.annotation_ids,
        _EXACT: [exact.tobytes()],
    }
    example = tf.train.Example(features=tf.train.Features(feature={key: _feature(v) for key, v in features.items()}))
    return example.SerializeToString(deterministic=True)


def from_example(serialized: bytes) -> Record:
    """Parses a record, exactly; boxes of other tools' records are float32 (pixels = normalised · size).

    Raises:
        ValueError: the bytes aren't such a tf.Example.
    """
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
    except Exception as error:
        # The protobuf runtimes of the two stacks raise classes of their own; none is public in both.
        raise ValueError(f"it isn't a tf.Example ({type(error).__name__})") from None

    def ints(key: str) -> np.ndarray:
        return np.array(feature[key].int64_list.value, np.int64)

    def first(key: str) -> bytes:
        values = feature[key].bytes_list.value
        return values[0] if values else b""

    size = [*ints("image/width"), *ints("image/height")]
    if not first("image/encoded") or len(size) != 2 or min(size) < 1:
        raise ValueError("it has no image/encoded, image/width and image/height")
    width, height = map(int, size)
    categories = ints("image/object/class/label")
    count = len(categories)
    if first(_EXACT):
        exact = np.frombuffer(first(_EXACT), "<f8").reshape(-1, 5)
        boxes, area = exact[:, :4].copy(), exact[:, 4].copy()
    else:
        corners = [feature[key].float_list.value for key in _CORNERS]
        boxes = np.array(corners, np.float64).reshape(4, -1).T * np.array([width, height, width, height], np.float64)
        area = np.array(feature["image/object/area"].float_list.value, np.float64)
        if len(area) != count:
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if len(boxes) != count or not np.isfinite(boxes).all():
        raise ValueError(f"it has {len(boxes)} boxes and {count} labels, or a box that isn't finite")
    crowd, ids = ints("image/object/is_crowd"), ints("image/object/id")
    source_id = first("image/source_id").decode(errors="backslashreplace") or "".join(map(str, ints("image/source_id")))
    annotations = ImageAnnotations(
        int(source_id) if _INTEGER.fullmatch(source_id) else source_id,
        first("image/filename").decode(errors="backslashreplace"),
        width,
        height,
        boxes,
        categories,
        area,
        crowd != 0 if len(crowd) == count else np.zeros(count, bool),
        ids if len(ids) == count else np.zeros(count, np.int64),
    )
    return Record(first("image/encoded"), first("image/format").decode(errors="replace"), annotations)


def parse_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses a record, a scalar string tensor, inside `tf.data`.

    Returns:
        A dict of `encoded` (string), `height`, `width` (int32), `boxes` `(N, 4)` float32 xyxy pixels, `category_ids`
        `(N,)` int64, `iscrowd` `(N,)` bool.
    """
    floats, ints = tf.io.VarLenFeature(tf.float32), tf.io.VarLenFeature(tf.int64)
    parsed = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": tf.io.FixedLenFeature((), tf.string),
            "image/height": tf.io.FixedLenFeature((), tf.int64),
            "image/width": tf.io.FixedLenFeature((), tf.int64),
            "image/object/class/label": ints,
            "image/object/is_crowd": ints,
            **dict.fromkeys(_CORNERS, floats),
        },
    )
    height, width = parsed["image/height"], parsed["image/width"]
    size = tf.cast(tf.stack([width, height, width, height]), tf.float32)
    categories = parsed["image/object/class/label"].values
    crowd = parsed["image/object/is_crowd"].values
    missing = tf.size(categories) - tf.size(crowd)  # other tools leave the key out
    crowd = tf.pad(crowd, [[0, tf.maximum(missing, 0)]])
    return {
        "encoded": parsed["image/encoded"],
        "height": tf.cast(height, tf.int32),
        "width": tf.cast(width, tf.int32),
        "boxes": tf.stack([parsed[key].values for key in _CORNERS], axis=-1) * size,
        "category_ids": categories,
        "iscrowd": tf.not_equal(crowd, 0),
    }


def _feature(values) -> tf.train.Feature:
    if not len(values):
        return tf.train.Feature()  # without a type, so that a reader may declare any
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.astype(np.float32).tolist()))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values.tolist()))
