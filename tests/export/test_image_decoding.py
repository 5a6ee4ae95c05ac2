"""Decoding of untrusted images: the pixels, or an error that names the image."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_detectors import clutter, encode

from retinanet_tf.export import image_decoding as decoding


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def decode_last(encoded):
    """The last of some encoded images, as a served graph decodes it."""
    sizes = decoding.check_sizes(decoding.image_sizes(encoded))
    last = tf.size(encoded) - 1
    return decoding.check_decoded(decoding.decode(encoded[last]), sizes[last], last)


def png_header(width, height):
    """A PNG that ends after its header, whose checksum is right."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_images_are_decoded_as_by_pillow(form):
    encoded = encode(clutter(0), form)
    np.testing.assert_array_equal(decode_last([encoded]), Image.open(io.BytesIO(encoded)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "not a readable JPEG or PNG"),
        (b"text", "not a readable JPEG or PNG"),
        (b"\xff\xd8\xff", "not a readable JPEG or PNG"),
        (b"\x89PNG\r\n\x1a\n", "not a readable JPEG or PNG"),
        (encode(clutter(0), "BMP"), "not a readable JPEG or PNG"),
        (encode(clutter(0), "GIF"), "not a readable JPEG or PNG"),
        (png_header(0, 10), "not a readable JPEG or PNG"),
        (png_header(20_000, 20_000), "more than 50000000 pixels"),
        (png_header(2**31 - 1, 1), "more than 50000000 pixels"),
        (png_header(100, 100), "damaged"),
        (encode(clutter(0), "JPEG")[:-200], "damaged"),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_others_are_refused_by_index_and_bombs_from_the_header(encoded, reason, before):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"images\[{before}\] .*{reason}"):
        decode_last([encode(clutter(0))] * before + [encoded])


def test_no_images():
    assert decoding.check_sizes(decoding.image_sizes(tf.zeros([0], tf.string))).shape == (0, 2)


def mutations(seeds, count):
    """Files with bits flipped, bytes overwritten, pieces cut out or doubled; headers are hit most."""
    rng = np.random.default_rng(7)
    for _ in range(count):
        content = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 9)):
            kind, start = rng.integers(5), int(rng.integers(len(content)))
            if kind == 0:
                content[start] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                content[start : start + 4] = rng.bytes(4)
            elif kind == 2:
                del content[start : start + int(rng.integers(1, 200))]
            elif kind == 3:
                content[start:start] = content[start : start + int(rng.integers(1, 200))]
            else:
                content[int(rng.integers(min(40, len(content))))] = int(rng.integers(256))
            content = content or bytearray(b"\xff")
        yield bytes(content)


@pytest.mark.once
def test_a_thousand_mutated_images_without_a_crash():
    """Pixels, or an InvalidArgument that names the image."""
    photo = clutter(0, 32, 48)
    seeds = [encode(photo, "JPEG", quality=quality, progressive=quality == 60) for quality in (60, 90)]
    seeds += [encode(photo), encode(photo, optimize=True), encode(photo, "BMP")]
    decoded = refused = 0
    for encoded in mutations(seeds, 1_000):
        try:
            assert decode_last([encoded]).shape[2] == 3
            decoded += 1
        except tf.errors.InvalidArgumentError as error:
            assert "images[0]" in error.message
            refused += 1
    assert decoded > 50 and refused > 50
