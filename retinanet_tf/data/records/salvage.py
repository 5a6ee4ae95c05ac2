"""What can still be read of a damaged TFRecord file that has no index."""

import struct
from collections.abc import Iterator

import numpy as np
import tensorflow as tf


def _table() -> np.ndarray:
    entries = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        entries = np.where(entries & 1, (entries >> 1) ^ np.uint32(0x82F63B78), entries >> 1)
    return entries


_TABLE = _table().tolist()


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C (Castagnoli), rotated and offset. Slow: only damaged files are read with it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def whole_records(path: str) -> Iterator[tuple[int, int, bytes | None]]:
    """Yields (number, offset of the payload, payload) of each record, payload None if it is damaged.

    A record whose length is damaged, or that the file's end cuts, is the last: nothing tells where the next begins.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        offset, number = 0, 0
        while head := file.read(12):
            if len(head) < 12 or masked_crc(head[:8]) != struct.unpack("<I", head[8:])[0]:
                yield number, offset + 12, None
                return
            length = struct.unpack("<Q", head[:8])[0]
            data = file.read(length + 4)
            if len(data) < length + 4:
                yield number, offset + 12, None
                return
            whole = masked_crc(data[:length]) == struct.unpack("<I", data[length:])[0]
            yield number, offset + 12, data[:length] if whole else None
            offset, number = offset + 16 + length, number + 1
