"""Images as a detector takes them: files, encoded bytes, Pillow images and arrays become RGB in 0–255."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from retinanet_tf.data.records.images import BadImage, picture_pixels, read_pixels
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_bytes
from retinanet_tf.models.fit_data import range_fault


def to_images(images: Any) -> Iterable[Any]:
    """A detector's input as images to iterate over: a single image becomes a list of one.

    Raises:
        InputError: it is neither an image nor several.
    """
    if isinstance(images, str | bytes | bytearray | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
        images = _read(lambda: np.asarray(images, np.float32), "images")  # numbers
    if hasattr(images, "shape") and hasattr(images, "dtype"):
        kind = getattr(images.dtype, "kind", "-")  # NumPy's alone
        is_text = kind in "OSU" or images.dtype == tf.string
        single, several = ((0,), 1) if is_text else ((2, 3), 4)
        if (rank := len(images.shape)) in single:
            return [images]
        if rank == several:
            return images
        raise InputError(
            f"images has shape {tuple(images.shape)}; an image is (H, W, 3) and a batch of images (B, H, W, 3)."
        )
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise InputError(f"images is of type {type(images).__name__}; give an image, a list of images or a batch.")
    return images


def to_image(image: Any, index: int) -> tf.Tensor:
    """One image of a detector's input, `images[index]`, as `(H, W, 3)` RGB in 0–255, uint8 or float32.

    Raises:
        InputError: it is no image, or its values aren't in 0–255; the index is named.
    """
    name = f"images[{index}]"
    if isinstance(image, str | os.PathLike):
        name = f"{name}, {os.fspath(image)},"
        return tf.constant(_read(lambda: read_pixels(read_bytes(image, "the image")), name))
    if isinstance(image, tf.Tensor) and image.dtype == tf.string:
        image = image.numpy()
    if isinstance(image, bytes | bytearray):
        return tf.constant(_read(lambda: read_pixels(bytes(image), upright=False), name))
    if isinstance(image, Image.Image):
        image = _read(lambda: picture_pixels(image), name)
    if not isinstance(image, tf.Tensor):
        image = _read(lambda: tf.convert_to_tensor(np.asarray(image)), name)
    if not (image.dtype.is_integer or image.dtype.is_floating):
        raise InputError(f"{name} is of type {image.dtype.name}; pixels are numbers in 0–255.")
    pixels = image[..., None] if image.shape.rank == 2 else image
    is_row = image.shape.rank == 2 and image.shape[1] in (3, 4)  # of pixels, not a grey image
    if is_row or pixels.shape.rank != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(f"{name} has shape {tuple(image.shape)}; an RGB image is (height, width, 3).")
    if pixels.dtype != tf.uint8:
        if fault := range_fault(pixels).numpy().decode():
            raise InputError(f"{name} {fault}")
        pixels = tf.cast(pixels, tf.float32)
    return tf.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def _read(read: Callable[[], Any], name: str) -> Any:
    """What `read` returns; its errors as an InputError about the image."""
    try:
        return read()
    except InputError:
        raise
    except BadImage as error:
        raise InputError(f"{name} {error}.") from None
    except (OSError, SyntaxError, TypeError, ValueError):
        raise InputError(f"{name} is neither a readable image nor an array of numbers.") from None
