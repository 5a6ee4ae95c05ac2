"""The paper's splits of COCO (§4): trainval35k to train on, minival to compare, from the 2014 or the 2017 files."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from retinanet_tf.data.sources.annotations import Annotations
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.errors import InputError

SPLITS = ("trainval35k", "minival")
# The 5,000 images of minival are those of val2017; either file tells which of val2014 they are.
_MINIVAL = ("instances_val2017.json", "instances_minival2014.json")


def paper_split(folder: str | os.PathLike, split: str) -> tuple[Annotations, str]:
    """(annotations, image folder) of "trainval35k" or "minival" from COCO's folder.

    FOLDER/annotations (or FOLDER) has the JSON files; FOLDER/train2017, val2017, train2014 and val2014 have the images.
    With the 2017 files the splits are train2017 and val2017, the same two sets of images. With 2014's, trainval35k is
    train2014 and val2014 without minival, which instances_val2017.json or instances_minival2014.json must list.
    """
    if split not in SPLITS:
        raise InputError(f"split={split} must be one of {', '.join(SPLITS)}.")
    root = Path(folder)
    annotations = root / "annotations" if (root / "annotations").is_dir() else root
    year17 = "train2017" if split == "trainval35k" else "val2017"
    if (annotations / f"instances_{year17}.json").is_file() and (root / year17).is_dir():
        return read_coco(annotations / f"instances_{year17}.json"), str(root / year17)
    listed = next((annotations / name for name in _MINIVAL if (annotations / name).is_file()), None)
    if listed is None:
        raise InputError(
            f"{annotations} has neither instances_{year17}.json with images in {root / year17}, nor a file that lists "
            f"minival ({' or '.join(_MINIVAL)}) to divide val2014 by."
        )
    minival = {image.image_id for image in read_coco(listed).images}
    val = _in_folder(read_coco(annotations / "instances_val2014.json"), "val2014")
    if missing := len(minival - {image.image_id for image in val.images}):
        raise InputError(f"{val.source} lacks {missing} of the {len(minival)} images of minival.")
    if split == "minival":
        images = [image for image in val.images if image.image_id in minival]
        return replace(val, images=images, source=f"{val.source} (minival)"), str(root)
    train = _in_folder(read_coco(annotations / "instances_train2014.json"), "train2014")
    if train.label_map != val.label_map:
        raise InputError(f"{train.source} and {val.source} have different categories; both must be COCO's.")
    name = f"{train.source} and {val.source} without minival"
    images = [*train.images, *(image for image in val.images if image.image_id not in minival)]
    for kind, ids in (
        ("image", [image.image_id for image in images]),
        ("annotation", np.concatenate([image.annotation_ids for image in images]).tolist()),
    ):
        if len(set(ids)) != len(ids):
            raise InputError(f"{name}: an {kind} id occurs in both files; they can't be joined.")
    return Annotations(name, images, train.label_map, [*train.warnings, *val.warnings]), str(root)


def _in_folder(annotations: Annotations, folder: str) -> Annotations:
    # COCO's archives of 2014 unpack to a folder each, and the JSON names the file only.
    images = [replace(image, file_name=f"{folder}/{image.file_name}") for image in annotations.images]
    return replace(annotations, images=images)
