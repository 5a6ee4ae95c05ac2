"""Opening image files with Pillow: which formats, the size and the orientation that their headers give."""

import os
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from PIL import Image

from retinanet_tf.data.sources.image_files import BadImage

_EXIF_TAG = 0x0112
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # MPO, several JPEGs in a file, is opened as JPEG
_BEGINNINGS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8"}
TURNED = (5, 6, 7, 8)
"""Orientations that exchange width and height; 2 to 4 keep them."""
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)
"""Pillow's exceptions for damaged files; OSError includes UnidentifiedImageError."""


def picture_size(path: str | os.PathLike, upright: bool = True) -> tuple[int, int]:
    """(width, height) of an image file, as viewers show it or as it is stored; reads the header. Raises BadImage."""
    try:
        with open(path, "rb") as file, quiet_pillow(), open_image(file, sys.maxsize) as image:
            width, height = stored_size(image)
            return (height, width) if upright and orientation_of(image) in TURNED else (width, height)
    except OSError as error:
        raise BadImage(f"can't be read: {error.strerror or error}") from None


def open_image(file: BinaryIO, max_pixels: int) -> Image.Image:
    """The image of a file, not decoded yet; raises BadImage if it is none or larger than `max_pixels`."""
    start = file.read(12)
    if not start:
        raise BadImage("is empty")
    try:
        image = Image.open(file, formats=_FORMATS)
    except DAMAGE:
        if known := next((kind for kind, letters in _BEGINNINGS.items() if start.startswith(letters)), None):
            raise BadImage(f"is no image that can be read, but a damaged {known} file") from None
        kinds = "JPEG, PNG, GIF, BMP, TIFF and WebP are"
        raise BadImage(f"is no image that can be read (it begins with {start!r}); {kinds}") from None
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise BadImage(f"has {size} pixels, more than max_pixels={max_pixels}; cut it into parts")
    return image


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none."""
    try:
        value = image.getexif().get(_EXIF_TAG, 1)
    except DAMAGE:
        return 1  # a broken EXIF block says nothing about orientation, and the pixels are fine
    return value if value in range(1, 9) else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as stored, where Pillow has that of the upright picture for a TIFF, which it turns by itself."""
    if image.format == "TIFF":
        return image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    return image.size


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Turns off Pillow's own limit, which would refuse what max_pixels allows, and its warnings, which name no file.

    Both belong to the process, so of several threads the first turns them off, and the last one on again.
    """
    global _users
    with _LOCK:
        if not _users:
            _RESTORE.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            _RESTORE.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = None
        _users += 1
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            if not _users:
                _RESTORE.close()


_LOCK, _RESTORE = threading.Lock(), ExitStack()
_users = 0  # threads that are in `quiet_pillow`
