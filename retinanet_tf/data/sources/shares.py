"""Boxes in shares of their picture's width and height, as YOLO and Open Images have them, become pixels."""

import os

import numpy as np

from retinanet_tf.data.sources.annotations import ImageAnnotations, NamedObject
from retinanet_tf.data.sources.image_files import BadImage, find_image
from retinanet_tf.data.sources.image_headers import picture_size
from retinanet_tf.errors import InputError

PLAINLY_PIXELS = 2.0
"""No share is that large, even where a box overhangs its picture."""
_ROUNDING = 0.01  # pixels


def to_pixels(
    images: list[tuple[ImageAnnotations, list[NamedObject]]],
    folder: str | os.PathLike,
    upright: bool = True,
    skip_bad: bool = False,
) -> None:
    """Scales boxes by the sizes of their files, and notes these sizes; edges that rounding put outside move to 0 or 1.

    Args:
        images: with boxes xyxy in shares.
        folder: that file names are relative to.
        upright: whether boxes lie on the picture as viewers show it, or as it is stored.
        skip_bad: leave images whose files can't be read without objects and size; `prepare` then skips them.

    Raises:
        InputError: names an image whose file can't be read.
    """
    from tqdm import tqdm  # here, since the runtime of exported files has none

    for image, objects in tqdm(images, unit="image", desc="reading sizes", disable=None, delay=2):
        try:
            image.width, image.height = picture_size(find_image(folder, image.file_name, True), upright)
        except BadImage as error:
            if not skip_bad:
                raise InputError(
                    f"image {os.path.join(folder, image.file_name)} {error}. Correct or remove it, or give "
                    "on_bad_image=skip to skip such images."
                ) from None
            objects.clear()
            continue
        size = np.tile([image.width, image.height], 2)
        boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4) * size
        inside = np.clip(boxes, 0, size)
        boxes = np.where(np.abs(boxes - inside) < _ROUNDING, inside, boxes)
        objects[:] = [item._replace(box=box) for item, box in zip(objects, boxes.tolist(), strict=True)]
