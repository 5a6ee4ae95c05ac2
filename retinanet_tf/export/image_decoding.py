"""Decoding of untrusted encoded images inside a graph: sizes from headers, errors that name the image.

TensorFlow's own decoders raise an error that doesn't say which image of a batch it was, and allocate whatever a header
asks for. Here every image is read by itself, its header first.

JPEG and PNG are read. GIF is not: its decoder stores all frames, whose sizes no header tells. An EXIF orientation is
not applied: boxes are in the pixels as they are stored.
"""

import tensorflow as tf

from retinanet_tf.data.decoding import decode_image

MAX_PIXELS = 50_000_000
"""Images with more pixels are refused before they are decoded (150 MB as uint8 RGB)."""

FORMATS = "JPEG or PNG"


def image_sizes(encoded: tf.Tensor) -> tf.Tensor:
    """Height and width `(B, 2)` int32 of encoded images `(B,)`, read from their headers; (0, 0) where unreadable."""
    return tf.map_fn(
        lambda one: _attempt(_header_size, one, tf.zeros([2], tf.int32)),
        encoded,
        fn_output_signature=tf.TensorSpec([2], tf.int32),
    )


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """The uint8 RGB pixels `(H, W, 3)` of one encoded image, a scalar; `(0, 0, 3)` if it doesn't decode."""
    return _attempt(decode_image, encoded, tf.zeros([0, 0, 3], tf.uint8))


def check_sizes(sizes: tf.Tensor, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """The sizes `(B, 2)` unchanged; InvalidArgument that names the first unreadable or too large image."""
    pixels = tf.cast(sizes[:, 0], tf.int64) * tf.cast(sizes[:, 1], tf.int64)
    unreadable = tf.reduce_any(sizes < 1, axis=1)
    too_large = tf.logical_or(pixels > max_pixels, tf.reduce_any(sizes > 65_535, axis=1))
    with tf.control_dependencies(
        [
            _refuse(unreadable, f"is not a readable {FORMATS} image"),
            _refuse(too_large, f"has more than {max_pixels} pixels"),
        ]
    ):
        return tf.identity(sizes)


def check_decoded(image: tf.Tensor, size: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The image unchanged; InvalidArgument naming `index` if its shape isn't the (height, width) of its header."""
    same = tf.reduce_all(tf.shape(image)[:2] == size)
    message = tf.strings.format("images[{}] is damaged: its pixels can not be decoded.", index)
    with tf.control_dependencies([tf.debugging.Assert(same, [message], summarize=1)]):
        return tf.identity(image)


def _refuse(bad: tf.Tensor, why: str) -> tf.Operation:
    # How many good ones come before the first bad one; argmax would not have an empty batch.
    first = tf.reduce_sum(tf.math.cumprod(1 - tf.cast(bad, tf.int32)))
    message = tf.strings.format("images[{}] " + why + ".", first)
    return tf.debugging.Assert(tf.logical_not(tf.reduce_any(bad)), [message], summarize=1)


def _attempt(function, value: tf.Tensor, otherwise: tf.Tensor) -> tf.Tensor:
    """`function(value)`, or `otherwise` where that raises: a dataset of one element that leaves out errors."""
    tried = tf.data.Dataset.from_tensors(value).map(function).ignore_errors()
    return tried.concatenate(tf.data.Dataset.from_tensors(otherwise)).take(1).get_single_element()


def _header_size(encoded: tf.Tensor) -> tf.Tensor:
    def starts_with(magic: bytes) -> tf.Tensor:
        return tf.strings.substr(encoded, 0, len(magic)) == magic

    def png_size() -> tf.Tensor:  # width and height as 32-bit numbers
        size = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
        return tf.reverse(size, [0])

    size = tf.case(
        [
            (starts_with(b"\xff\xd8\xff"), lambda: tf.io.extract_jpeg_shape(encoded)[:2]),
            (starts_with(b"\x89PNG\r\n\x1a\n"), png_size),
        ],
        default=lambda: tf.zeros([2], tf.int32),
    )
    return tf.ensure_shape(size, [2])
