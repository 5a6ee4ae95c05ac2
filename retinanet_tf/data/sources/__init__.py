"""Readers of annotations: COCO JSON, Pascal VOC, CSV and the paper's splits; none needs TensorFlow."""

import os

from retinanet_tf.data.sources import splits, voc
from retinanet_tf.data.sources.annotations import Annotations
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError


def read_source(
    path: str | os.PathLike,
    split: str | None = None,
    label_map: LabelMap | None = None,
    images: str | None = None,
    skip_bad: bool = False,
) -> tuple[Annotations, str | None]:
    """Reads annotations of any format.

    Args:
        path: a COCO JSON, a `.csv` file, a Pascal VOC folder, or COCO's folder if `split` is one of the paper's.
        split: trainval35k or minival of COCO's folder; for Pascal VOC a list of ImageSets/Main.
        label_map: the categories for formats that number none (Pascal VOC, CSV).
        images: the image folder, if it isn't the one that `path` determines.
        skip_bad: see `read_coco`.

    Returns:
        The annotations, and the image folder if it is given or `path` determines it.

    Raises:
        InputError: `path` is none of these.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        if split in splits.SPLITS:
            annotations, folder = splits.paper_split(path, split)
            return annotations, images or folder
        return voc.read_voc(path, split, label_map, images), images or voc.image_folder(path)
    if split:
        raise InputError(f"split={split} goes with a folder (Pascal VOC or COCO), but {path} is a file.")
    if path.lower().endswith(".csv"):
        return read_csv(path, label_map), images
    return read_coco(path, skip_bad=skip_bad), images
