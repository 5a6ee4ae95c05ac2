"""Readers of annotations: COCO JSON, Pascal VOC, YOLO, CSV and the paper's splits; none needs TensorFlow."""

import os

from retinanet_tf.data.sources import splits, voc
from retinanet_tf.data.sources.annotations import Annotations
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.image_files import SUFFIXES
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.sources.yolo import is_yolo, read_yolo
from retinanet_tf.errors import InputError


def read_source(
    path: str | os.PathLike,
    split: str | None = None,
    label_map: LabelMap | None = None,
    images: str | None = None,
    skip_bad: bool = False,
    names: str | None = None,
    exif: str = "stop",
) -> tuple[Annotations, str | None]:
    """Reads annotations of any format.

    Args:
        path: a COCO JSON, a `.csv` file, a Pascal VOC folder, a YOLO folder or its data.yaml, or COCO's folder if
            `split` is one of the paper's.
        split: trainval35k or minival of COCO's folder; for Pascal VOC a list of ImageSets/Main; for YOLO train, val or
            test.
        label_map: the categories, for all formats but COCO's.
        images: the image folder, if it isn't the one that `path` determines.
        skip_bad: see `read_coco`, `read_csv` and `read_yolo`.
        names: the file of the classes' names, see `read_yolo` and `read_csv`.
        exif: "stored" if boxes in shares (YOLO, Open Images) lie on the picture as it is stored, not upright.

    Returns:
        The annotations, and the image folder if it is given or `path` determines it.

    Raises:
        InputError: `path` is none of these, or `names` or `split` don't go with it.
    """
    path, upright = os.fspath(path), exif != "stored"
    if names and (split in splits.SPLITS or not (is_yolo(path) or path.lower().endswith(".csv"))):
        raise InputError(f"names={names} goes with YOLO and Open Images; leave it out for {path}.")
    if os.path.isdir(path) and split in splits.SPLITS:
        annotations, folder = splits.paper_split(path, split)
        return annotations, images or folder
    if path.lower().endswith(SUFFIXES):
        raise InputError(f"{path} is a picture; give the annotations, and the folder of the pictures as images.")
    if is_yolo(path):
        return read_yolo(path, split, label_map, images, names=names, upright=upright, skip_bad=skip_bad)
    if os.path.isdir(path):
        return voc.read_voc(path, split, label_map, images), images or voc.image_folder(path)
    if split:
        raise InputError(f"split={split} goes with a folder (Pascal VOC, YOLO or COCO), but {path} is a file.")
    if path.lower().endswith(".csv"):
        return read_csv(path, label_map, images, names=names, upright=upright, skip_bad=skip_bad), images
    return read_coco(path, skip_bad=skip_bad), images
