"""Decoding of image files: one function for training, evaluation, prediction and exports, eagerly and in graphs."""

import tensorflow as tf


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """The RGB pixels `(H, W, 3)` uint8 of an encoded JPEG, PNG, BMP or GIF (first frame), a string scalar.

    JPEG is decoded with the accurate DCT, so that RGB and grey pixels are Pillow's to the bit; TensorFlow's default is
    the fast one.
    """
    image = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff",
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))
