"""Pictures to canvases of a fixed size in numpy: the resizing of TensorFlow, padding, and the way back for boxes."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from retinanet_tf.data.records.images import BadImage, picture_pixels, read_pixels
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_bytes


class Canvas(NamedTuple):
    """A picture as an exported file takes it."""

    canvas: np.ndarray  # `(H, W, 3)` uint8 RGB, the resized picture at the top left
    scale: np.ndarray  # `(2,)` float32, resized over original side, y then x
    size: np.ndarray  # `(2,)` float32, height and width of the picture's part of the canvas


def to_pixels(image: Any, index: int = 0) -> np.ndarray:
    """One image as `(H, W, 3)` uint8 RGB.

    Args:
        image: the path of a file or a Pillow image, which are turned upright as their EXIF data say, or a uint8 array
            of RGB, grey or RGBA pixels, `(H, W, 3)`, `(H, W)`, `(H, W, 1)` or `(H, W, 4)`; alpha is dropped.
        index: for messages, which name the image "images[INDEX]".

    Raises:
        InputError: it is no image.
    """
    name = f"images[{index}]"
    try:
        if isinstance(image, str | os.PathLike):
            name = f"{name}, {os.fspath(image)},"
            return read_pixels(read_bytes(image, "the image"))
        pixels = picture_pixels(image) if isinstance(image, Image.Image) else np.asarray(image)
    except InputError:
        raise
    except BadImage as error:
        raise InputError(f"{name} {error}.") from None
    except (OSError, SyntaxError, TypeError, ValueError):
        raise InputError(f"{name} is neither a readable image nor an array.") from None
    if pixels.dtype != np.uint8:
        raise InputError(f"{name} is of type {pixels.dtype}; give RGB pixels in 0–255 as uint8.")
    is_row = pixels.ndim == 2 and pixels.shape[1] in (3, 4)  # of pixels, not a grey image
    if pixels.ndim == 2 and not is_row:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(f"{name} has shape {pixels.shape}; an RGB image is (height, width, 3).")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def fitted_shape(height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """The largest (height, width) of a picture's proportions that fits a canvas; rounded half to even, at least 1.

    >>> fitted_shape(480, 640, 512, 512)
    (384, 512)
    """
    scale = min(canvas_height / height, canvas_width / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes `(h, w, C)` to `(height, width, C)` float32, bilinear with half-pixel centres and no antialiasing.

    This is `tf.image.resize` to thousandths; Pillow's own filters differ, since they antialias when they shrink.
    """
    first, second, fraction = _neighbours(image.shape[0], height)
    columns = _neighbours(image.shape[1], width)
    top, bottom = (_across(image.take(rows, axis=0), *columns) for rows in (first, second))
    bottom -= top
    bottom *= fraction[:, None, None]
    bottom += top
    return bottom


def fit(image: np.ndarray, height: int, width: int, padding: Sequence[int], stretch: bool = False) -> Canvas:
    """Resizes a picture `(h, w, 3)` to the top left of a canvas of the colour `padding`.

    Its proportions are kept, unless `stretch` makes it fill the canvas.
    """
    new = (height, width) if stretch else fitted_shape(image.shape[0], image.shape[1], height, width)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = padding
    canvas[: new[0], : new[1]] = np.rint(resize(image, *new))
    scale = np.divide(new, image.shape[:2], dtype=np.float64)
    return Canvas(canvas, scale.astype(np.float32), np.array(new, np.float32))


def own_pixels(boxes: np.ndarray, scale: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes `(N, 4)` of a canvas in the pixels of the picture that was resized by `scale` (y, x), clipped to it."""
    y, x = scale
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes / np.array([x, y, x, y], np.float32), 0, limits)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel the two old ones that it lies between, and how far from the first; float32 as TensorFlow."""
    position = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    below = np.floor(position)
    first = np.maximum(below.astype(np.int64), 0)
    second = np.minimum(np.ceil(position).astype(np.int64), old - 1)
    return first, second, position - below


def _across(rows: np.ndarray, first: np.ndarray, second: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    left, right = (rows.take(columns, axis=1).astype(np.float32) for columns in (first, second))
    right -= left
    right *= fraction[:, None]
    right += left
    return right
