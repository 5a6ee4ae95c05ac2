"""TFRecord files read with lengths checked first: TensorFlow allocates whatever a length field says."""

from collections.abc import Iterable, Iterator

import tensorflow as tf

from retinanet_tf.data.records.shards import FOOTER, HEADER


def payloads(path: str) -> Iterator[bytes]:
    """Yields the records of a file in order; raises ValueError with the reason at the first damaged one."""
    size = tf.io.gfile.stat(path).length
    whole = end = 0
    with _opened(path) as file:
        while end < size:
            end += HEADER + _length_field(file, end) + FOOTER
            whole += end <= size
    try:
        yield from tf.data.TFRecordDataset(path).take(whole).as_numpy_iterator()
    except tf.errors.DataLossError:
        raise ValueError("its checksum doesn't match its bytes") from None
    except tf.errors.OpError as error:
        raise ValueError(error.message) from None
    if end > size:
        raise ValueError("its length field leads beyond the end of the file")


def length_fields(path: str, offsets: Iterable[int]) -> list[int]:
    """The length fields of the records whose payloads begin at `offsets`."""
    with _opened(path) as file:
        return [_length_field(file, offset - HEADER) for offset in offsets]


def _length_field(file, start: int) -> int:
    file.seek(start)
    return int.from_bytes(file.read(8), "little")


def _opened(path: str):
    return tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb", buffering=0)
