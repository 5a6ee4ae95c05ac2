"""Whatever a user has, COCO JSON, a Pascal VOC folder or CSV, recognised and read."""

import os

from retinanet_tf.data.sources import splits, voc
from retinanet_tf.data.sources.annotations import Annotations
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError


def read_source(
    path: str | os.PathLike, split: str | None = None, labels: LabelMap | None = None
) -> tuple[Annotations, str | None]:
    """(annotations, the image folder if `path` tells it) of any source.

    path: a COCO JSON; a `.csv` file; a Pascal VOC folder; or a COCO folder where `split` is one of the paper's
    (trainval35k, minival). split: for VOC a list of ImageSets/Main. labels: the categories of sources that number none
    themselves (VOC, CSV). Raises InputError if `path` is none of these.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        if split in splits.SPLITS:
            return splits.paper_split(path, split)
        return voc.read_voc(path, split, labels), voc.image_folder(path)
    if split:
        raise InputError(f"--split={split} goes with a folder (Pascal VOC or COCO), but {path} is a file.")
    if path.lower().endswith(".csv"):
        return read_csv(path, labels), None
    return read_coco(path), None
