"""Decoded pixels are Pillow's to the bit, wherever an image file is read."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.data.decoding import decode_image
from retinanet_tf.export import image_decoding
from retinanet_tf.inference.detector import to_image
from tests.small_detectors import clutter

READERS = {
    "eager": decode_image,
    "graph": tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)]),
    "detector": lambda encoded: to_image(encoded.numpy(), 0),
    "export": tf.function(image_decoding.decode, input_signature=[tf.TensorSpec([], tf.string)]),
}


def encoded(pixels, form="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


@pytest.mark.once
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [(64, 64), (37, 53), (1, 1), (3, 170)])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2", "quality": 30},
        {"subsampling": "4:4:4", "quality": 95},
        {"subsampling": "4:2:0", "progressive": True},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"form": "PNG"},
        {"form": "PNG", "mode": "L"},
        {"form": "BMP"},
    ],
)
def test_the_pixels_are_those_of_pillow(options, size, reader):
    content = encoded(clutter(3, *size), **options)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(READERS[reader](tf.constant(content)), expected)


def test_real_photos(test_data):
    photos = sorted((test_data / "photos").rglob("*.jpg"))[:4]
    assert photos
    for path in photos:
        np.testing.assert_array_equal(decode_image(tf.constant(path.read_bytes())), Image.open(path).convert("RGB"))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0 no JPEG", b"GIF89a", b"text"])
def test_what_is_no_image_is_an_error(content):
    for reader in ("eager", "graph"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            READERS[reader](tf.constant(content))
