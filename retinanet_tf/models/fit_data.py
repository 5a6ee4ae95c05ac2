"""Checks of what `RetinaNet.fit` gets: a wrong array, data set or batch is one sentence before it reaches a step."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.compat import KERAS_3
from retinanet_tf.data.batching import padded_length
from retinanet_tf.errors import InputError
from retinanet_tf.map_ahead import map_ahead

ROW = {"boxes": (4,), "labels": ()}
"""Shape of one object's row in each target."""

_EMPTY = {"boxes": 0.0, "labels": -1}
_STRIDE = 8
"""Pixels' range is looked at in every eighth row and column: what is wrong with it is wrong everywhere."""
NOT_FINITE = "has values that are NaN or infinite."


def checked(
    x: Any, y: Any = None, sample_weight: Any = None, *, num_classes: int, shuffle: bool = False, replicas: int = 1
) -> tuple[Any, Any]:
    """Data in any form that `fit` takes, checked; arrays at once, the batches of a data set or generator as they come.

    Ragged boxes and labels, also as lists with an array per image, are padded with label −1.

    Args:
        x: images, or a data set or generator of (images, targets) or (images, targets, sample weights).
        y: targets, if x is images.
        sample_weight: `(B,)`, if x is images.
        num_classes: K.
        shuffle: whether to take the batches of a Sequence in random order. (With Keras 2, Keras does.)
        replicas: of the model's strategy.

    Returns:
        x and y. Sample weights become `y["sample_weight"]`, since Keras 3 takes none beside a dictionary.

    Raises:
        InputError: what can't be trained on.
    """
    batches = y is None and not hasattr(x, "dtype")
    if batches and sample_weight is not None:
        raise InputError("sample_weight is for arrays; a data set's or generator's are the third part of its elements.")
    if isinstance(x, tf.data.Dataset):
        return _checked_dataset(x, num_classes), y
    if isinstance(x, Iterator) and not isinstance(x, tf.distribute.DistributedIterator):
        if KERAS_3 and replicas > 1:
            raise InputError(
                "x is a generator, whose first batches Keras 3 would drop on several devices; give a Sequence, or a "
                "data set that can be read again, such as tf.data.Dataset.from_generator's of the function."
            )
        found = (_checked_batch(batch, num_classes) for batch in x)
        return (_open_dataset(found) if KERAS_3 else found), y
    if isinstance(x, keras.utils.Sequence):
        return (_sequence_dataset(x, num_classes, shuffle) if KERAS_3 else _CheckedSequence(x, num_classes)), y
    if batches and (isinstance(x, str | bytes | Sequence | Mapping) or not isinstance(x, Iterable)):
        raise InputError(
            f"x is of type {type(x).__name__}; give arrays x and y, a data set, such as data.load's, a generator or a "
            "Sequence."
        )
    if batches:  # distributed data sets, and what else Keras knows
        return x, y
    return _checked_arrays(x, y, sample_weight, num_classes=num_classes)


@contextmanager
def readable_faults() -> Iterator[None]:
    """Turns the failed check of a batch, which TensorFlow reports in its own way, into an InputError."""
    try:
        yield
    except tf.errors.OpError as error:
        # Of a data set, see `_refuse`; of a generator, as Python prints it.
        sentence = re.search(r"<<(.*?)>>|InputError: (.*)", str(error))
        if not sentence:
            raise
        raise InputError(sentence[1] or sentence[2]) from None


def check_structure(images: Any, y: Any) -> None:
    """Raises InputError unless images and targets (tensors, arrays or specs) have the right keys, shapes and types."""
    if not isinstance(y, Mapping) or not {"boxes", "labels"} <= set(y):
        given = f"a dictionary of {', '.join(map(repr, y))}" if isinstance(y, Mapping) else f"a {type(y).__name__}"
        raise InputError(f"y is {given}; targets are {{'boxes': (B, M, 4) xyxy pixels, 'labels': (B, M) from 0}}.")
    for name, value, rank, last in (("x", images, 4, 3), ("boxes", y["boxes"], 3, 4), ("labels", y["labels"], 2, None)):
        if not hasattr(value, "shape") or isinstance(value, tf.SparseTensor | tf.SparseTensorSpec):
            raise InputError(f"{name} is of type {type(value).__name__}; it must be one array or tensor.")
        shape, wanted = tf.TensorShape(value.shape), {"x": "(B, height, width, 3)", "boxes": "(B, M, 4)"}
        if shape.rank not in (rank, None) or (shape.rank and last and shape[-1] not in (last, None)):
            raise InputError(f"{name} has shape {shape}; it must be {wanted.get(name, '(B, M)')}.")
        dtype = tf.as_dtype(value.dtype)
        if not (dtype.is_integer or dtype.is_floating):
            raise InputError(f"{name} is of type {dtype.name}; it must be numbers.")
    counts = [tf.TensorShape(value.shape)[:1] for value in (images, y["boxes"], y["labels"])]
    if not all(count.is_compatible_with(counts[0]) for count in counts):
        raise InputError(f"x, boxes and labels are of {', '.join(str(count[0]) for count in counts)} images.")
    if isinstance(images, tf.RaggedTensor | tf.RaggedTensorSpec):
        raise InputError("x is ragged; the images of a batch must have one size: resize or pad them.")
    ragged = {isinstance(y[name], tf.RaggedTensor | tf.RaggedTensorSpec) for name in ROW}
    shapes = [tf.TensorShape(y[name].shape)[:2] for name in ROW]
    if len(ragged) > 1 or not shapes[0].is_compatible_with(shapes[1]):
        raise InputError(f"boxes have shape {y['boxes'].shape} and labels {y['labels'].shape}; M must be the same.")


def dense(y: Mapping[str, Any]) -> dict[str, Any]:
    """Targets with ragged boxes and labels padded, boxes as float32 and labels as int32."""
    types_of = {"boxes": tf.float32, "labels": tf.int32}
    return {**y, **{name: tf.cast(_padded(y[name], name), dtype) for name, dtype in types_of.items()}}


def valid_images(boxes: tf.Tensor, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """`(B,)` bool: labels are 0…K−1 or −1, and boxes with a label are finite and not inverted. For compiled steps."""
    boxes_right = tf.reduce_all(tf.math.is_finite(boxes), -1) & tf.reduce_all(boxes[..., 2:] >= boxes[..., :2], -1)
    return tf.reduce_all((labels == -1) | ((labels >= 0) & (labels < num_classes) & boxes_right), axis=1)


def range_fault(pixels: tf.Tensor) -> tf.Tensor:
    """'' for pixels `(...)` that may be RGB in 0–255, else what is wrong, as a scalar string.

    Below the range and above it a resampled image may overshoot; 0–1, and what a change of brightness makes of it, is
    told from a black image by its fractions.
    """
    low, high = (-64.0, 320.0) if pixels.dtype.is_floating else (0.0, 255.0)
    pixels = tf.cast(pixels, tf.float32)
    smallest, largest = tf.reduce_min(pixels), tf.reduce_max(pixels)
    normalised = tf.reduce_any(pixels != tf.floor(pixels)) & ((largest <= 2.0) | ((smallest < 0.0) & (largest <= 16.0)))
    wrong = normalised | (smallest < low) | (largest > high)
    ends = [tf.strings.as_string(end, shortest=True) for end in (smallest, largest)]
    sentence = tf.strings.join(
        ["has values from ", ends[0], " to ", ends[1], "; scale them to RGB in 0 to 255, which the model normalises."]
    )
    finite = tf.reduce_all(tf.math.is_finite(pixels))
    return tf.where(finite, tf.where(wrong, sentence, ""), NOT_FINITE)


def _fault(images: Any, y: Mapping[str, Any], num_classes: int) -> tf.Tensor:
    """'' or the first thing wrong with images (all pixels for NaN, some for their range) and targets."""
    if isinstance(y["labels"], tf.RaggedTensor):
        unequal = tf.reduce_any(y["boxes"].row_lengths() != y["labels"].row_lengths())
    else:
        unequal = tf.reduce_any(tf.shape(y["boxes"])[:2] != tf.shape(y["labels"]))
    sentence = tf.where(unequal, "an image has other numbers of boxes and of labels.", "")
    with tf.control_dependencies([_refuse(sentence)]):
        labels = tf.cast(_padded(y["labels"], "labels"), tf.float32)
    boxes = tf.cast(_padded(y["boxes"], "boxes"), tf.float32)
    objects = labels >= 0.0
    corners = tf.where(objects[..., None], boxes, 0.0)
    inverted = tf.reduce_any(corners[..., 2:] < corners[..., :2], axis=-1)
    size = tf.cast(tf.shape(images[:1])[2:0:-1], tf.float32)
    outside = tf.reduce_any((corners[..., :2] >= size) | (corners[..., 2:] <= 0.0), axis=-1)
    outside &= tf.reduce_all(corners[..., 2:] > corners[..., :2], axis=-1)
    largest = tf.reduce_max(corners)
    factors = tf.reshape(tf.cast(y.get("sample_weight", 1.0), tf.float32), (-1, 1))
    allowed = f"; labels are 0 to {num_classes - 1} (num_classes={num_classes}), and -1 for padding."
    checks = [
        (labels != tf.floor(labels), "has a label that is no whole number" + allowed),
        (labels >= num_classes, "has a label beyond the last class" + allowed),
        (labels < -1.0, "has a negative label" + allowed),
        (~tf.reduce_all(tf.math.is_finite(corners), axis=-1), "has a box that is NaN or infinite."),
        (
            objects & (largest > 0.0) & (largest <= 1.5),  # a share may be a little above 1
            "has boxes in 0 to 1; they must be in pixels: multiply x by the width of the images and y by their height.",
        ),
        (inverted, "has a box with x2 < x1 or y2 < y1; boxes are x1, y1, x2, y2, not x, y, width, height."),
        (
            outside,
            "has a box outside of the image; boxes are x1, y1, x2, y2 in pixels of the images in x.",
        ),
        # Not ~(factors >= 0), of which TensorFlow's optimizer makes factors < 0.
        ((factors < 0.0) | ~tf.math.is_finite(factors), "has a sample_weight that is negative, NaN or infinite."),
    ]
    faults = [_named(tf.reduce_any(wrong, axis=1), sentence) for wrong, sentence in checks]
    if tf.as_dtype(images.dtype) != tf.uint8:
        # Without an object, a dark picture is no reason to stop.
        pixels = tf.convert_to_tensor(images[:, ::_STRIDE, ::_STRIDE])
        said = tf.where(tf.reduce_any(objects), range_fault(pixels), "")
        said = tf.where(_all_finite(images), said, NOT_FINITE)
        faults.append(tf.where(said == "", "", tf.strings.join(["x ", said])))
    answer = tf.constant("")
    for fault in faults[::-1]:
        answer = tf.where(fault == "", answer, fault)
    return answer


def _all_finite(images: Any) -> tf.Tensor:
    """Whether no pixel is NaN or infinite; their sum would be, too. An array goes through memory in parts."""
    parts = [images[start : start + 64] for start in range(0, images.shape[0], 64)] if images.shape[0] else [images]
    return tf.reduce_all([tf.math.is_finite(tf.reduce_sum(tf.cast(part, tf.float32))) for part in parts])


def _named(wrong: tf.Tensor, sentence: str) -> tf.Tensor:
    """'' or the sentence about the first wrong image."""
    first = tf.strings.as_string(tf.reduce_sum(tf.math.cumprod(1 - tf.cast(wrong, tf.int32))))
    return tf.where(tf.reduce_any(wrong), tf.strings.join(["y: image ", first, " ", sentence]), "")


def _refuse(sentence: tf.Tensor) -> tf.Operation:
    """Stops a data set if there is a sentence; `readable_faults` finds it between the brackets."""
    return tf.debugging.Assert(sentence == "", [tf.strings.join(["<<", sentence, ">>"])])


def _padded(values: Any, name: str) -> tf.Tensor:
    """A target with rows of padding where it is ragged: as many as make M a length of `data.load`."""
    if not isinstance(values, tf.RaggedTensor):
        return values
    longest = tf.cast(tf.reduce_max(values.row_lengths()), tf.int32)
    shape = tf.stack([-1, padded_length(longest), *ROW[name]])
    return tf.ensure_shape(values.to_tensor(_EMPTY[name], shape=shape), (None, None, *ROW[name]))


def _lengthened(y: Mapping[str, Any]) -> dict[str, Any]:
    """Targets whose M differs by batch with more padding, so that few lengths occur: a step is compiled for each."""
    objects = tf.shape(y["labels"])[1]
    more = [0, padded_length(objects) - objects]
    boxes = tf.pad(y["boxes"], [[0, 0], more, [0, 0]])
    return {**y, "boxes": boxes, "labels": tf.pad(y["labels"], [[0, 0], more], constant_values=_EMPTY["labels"])}


def _checked_dataset(dataset: tf.data.Dataset, num_classes: int) -> tf.data.Dataset:
    images, y, *factors = _parts(dataset.element_spec)
    check_structure(images, y)
    for spec in factors:
        column = isinstance(spec, tf.TensorSpec) and spec.dtype != tf.string and spec.shape[1:] in ([], [1])
        if not column or spec.shape.rank == 0:
            raise InputError(f"a data set's third part is {spec}; sample weights are numbers (B,), one per image.")

    def check(images, y, *weights):
        y = {name: y[name] for name in (*ROW, "sample_weight") if name in y}
        weighted = {**y, **({"sample_weight": weights[0]} if weights else {})}
        fault = _fault(images, weighted, num_classes)
        with tf.control_dependencies([_refuse(fault)]):
            return (tf.identity(images), _lengthened(dense(y)), *weights)

    return dataset.map(check, num_parallel_calls=1)


def _checked_arrays(x: Any, y: Any, sample_weight: Any = None, *, num_classes: int) -> tuple[Any, dict[str, Any]]:
    x = _array(x, "x")
    if isinstance(y, Mapping) and set(ROW) <= set(y):
        y = {name: _array(y[name], name) for name in (*ROW, "sample_weight") if name in y}
    check_structure(x, y)
    if 0 in x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}; there is no image in it.")
    if sample_weight is not None:
        factors = np.asarray(_array(sample_weight, "sample_weight"))
        numeric = factors.dtype.kind in "biuf" and factors.shape == (x.shape[0],)
        if not numeric or not (np.isfinite(factors) & (factors >= 0.0)).all():
            raise InputError(f"sample_weight must be {x.shape[0]} finite numbers of at least 0, one per image.")
        y["sample_weight"] = tf.cast(factors, tf.float32)
    with tf.device("/CPU:0"), readable_faults():
        _refuse(_fault(x, y, num_classes))
        return x, dense(y)


def _checked_batch(batch: Any, num_classes: int) -> tuple[Any, dict[str, Any]]:
    x, y = _checked_arrays(*_parts(batch), num_classes=num_classes)
    return x, _lengthened(y)


def _open_dataset(batches: Iterator[tuple[Any, dict]]) -> tf.data.Dataset:
    """Checked batches as a data set of open shapes; Keras 3 would hold all batches to the first two's M and size."""
    first = next(batches, None)
    if first is None:
        raise InputError("x gives no batch.")
    every = itertools.chain([first], batches)
    return tf.data.Dataset.from_generator(lambda: every, output_signature=_signature(*first)).prefetch(2)


def _signature(images: Any, y: Mapping[str, Any]) -> tuple[tf.TensorSpec, dict[str, tf.TensorSpec]]:
    shapes = {"boxes": (None, None, 4), "labels": (None, None), "sample_weight": (None,)}
    targets = {name: tf.TensorSpec(shapes[name], value.dtype) for name, value in y.items()}
    return tf.TensorSpec((None, None, None, 3), images.dtype), targets


def _sequence_dataset(sequence: Any, num_classes: int, shuffle: bool) -> tf.data.Dataset:
    """A Sequence of Keras 3 as a data set of open shapes; its `workers` are threads."""
    count, first = sequence.num_batches, _checked_batch(sequence[0], num_classes)

    def epoch():
        if hasattr(sequence, "on_epoch_begin"):  # not in Keras' first versions
            sequence.on_epoch_begin()
        order = itertools.count() if count is None else random.sample(range(count), count) if shuffle else range(count)
        threads, ahead = max(1, sequence.workers), sequence.max_queue_size
        made = map_ahead(lambda index: _checked_batch(sequence[index], num_classes), order, threads, ahead)
        for number, batch in enumerate(made, 1):
            if number == count:
                sequence.on_epoch_end()
            yield batch

    dataset = tf.data.Dataset.from_generator(epoch, output_signature=_signature(*first)).prefetch(2)
    size = tf.data.INFINITE_CARDINALITY if count is None else count
    return dataset.apply(tf.data.experimental.assert_cardinality(size))


class _CheckedSequence(keras.utils.Sequence):
    """A Sequence of Keras 2 with checked batches; the first is checked at once."""

    def __init__(self, sequence: Any, num_classes: int):
        super().__init__()
        self._sequence, self._num_classes = sequence, num_classes
        self[0]

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        return _checked_batch(self._sequence[index], self._num_classes)

    def on_epoch_end(self) -> None:
        self._sequence.on_epoch_end()


def _array(value: Any, name: str) -> Any:
    """An array, or a ragged tensor of a list with an array per image."""
    if isinstance(value, tf.Tensor | tf.RaggedTensor):
        return value
    with suppress(ValueError):  # of arrays of several shapes
        array = np.asarray(value)
        if array.dtype != object:
            return array.reshape(*array.shape, 4) if name == "boxes" and array.shape[1:] == (0,) else array
    try:
        rows = [np.reshape(np.asarray(row, np.float32), (-1, *ROW[name])) for row in value]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{name} is no array of numbers of one shape.") from None
    return tf.RaggedTensor.from_row_lengths(np.concatenate(rows), [len(row) for row in rows])


def _parts(batch: Any) -> tuple:
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise InputError(
            "a data set's elements must be (images, {'boxes', 'labels'}), or these and sample weights, as a tuple."
        )
    return batch
