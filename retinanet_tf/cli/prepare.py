"""TFRecord shards from COCO JSON, a Pascal VOC folder, YOLO's text files or CSV, and the images.

    retinanet prepare --annotations=instances_train2017.json --images=train2017 --output=data/coco
    retinanet prepare --annotations=VOCdevkit/VOC2012 --split=trainval --output=data/voc
    retinanet prepare --annotations=set/data.yaml --split=train --output=data/yolo
    retinanet prepare --annotations=boxes.csv --images=photos --output=data/mine --split_shares=0.8,0.2
    retinanet prepare --annotations=coco --split=trainval35k --output=data/coco

writes OUTPUT/NAME-00000-of-000NN.tfrecord …, OUTPUT/labels.json, OUTPUT/NAME.index.npz and OUTPUT/NAME.summary.json.
An interrupted run leaves nothing. A CSV line is image,x1,y1,x2,y2,class in pixels, with empty cells for an image
without objects; a header may name the columns in another order, as TensorFlow's tutorials, Roboflow and others do.
With --split_shares the pictures are divided at random into train and val (and test).
"""

import os
from dataclasses import replace

from absl import flags

from retinanet_tf.data.records.images import ImagePolicy
from retinanet_tf.data.sources.annotations import as_number
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_json
from retinanet_tf.text import printable

_ANNOTATIONS = flags.DEFINE_string(
    "annotations",
    None,
    "COCO instances JSON, Pascal VOC folder, YOLO's data.yaml or folder, CSV file, or COCO's folder with --split.",
    required=True,
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Folder that the annotations' file names are relative to; not needed for VOC, YOLO and COCO folders.",
)
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "A list of VOC's ImageSets/Main, train, val or test of YOLO's data.yaml, or the paper's trainval35k or minival "
    "(§4) of a COCO folder.",
)
_NAMES = flags.DEFINE_string(
    "names", None, "File with the names of the classes: a line each for YOLO, LABEL,NAME lines for Open Images."
)
_SPLIT_SHARES = flags.DEFINE_list(
    "split_shares",
    [],
    "Divide the pictures at random, by class: 0.8,0.2 for train and val, three shares for train, val and test. Copies "
    "and Roboflow's augmented versions of a picture stay together.",
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", 0, "Of --split_shares.")
_GROUP = flags.DEFINE_string(
    "group",
    None,
    "Regular expression searched in file names for --split_shares: pictures with the same match (of its parentheses, "
    "if it has any) stay together, such as 'video(\\d+)' for frames.",
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for shards, labels.json and summary; made if missing.", required=True
)
_NAME = flags.DEFINE_string("name", "train", "Name of the split, the shards' prefix.")
_SHARDS = flags.DEFINE_integer("shards", None, "Number of shards; by default one per 1,000 images.")
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first so many images.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("num_workers", None, "Processes; by default one per core.")
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image",
    "stop",
    ["stop", "skip"],
    "Stop at the first unusable image or COCO bbox, or skip and list them.",
)
_VERIFY = flags.DEFINE_enum("verify", "decode", ["decode", "header"], "Decode every image once, or read headers only.")
_EXIF = flags.DEFINE_enum(
    "exif",
    "stop",
    ["stop", "upright", "stored"],
    "Meaning of an EXIF orientation where the annotated size doesn't settle it: stop with an error, boxes were drawn "
    "on the upright image, or on the stored one.",
)
_MAX_PIXELS = flags.DEFINE_integer("max_pixels", ImagePolicy.max_pixels, "Larger images are refused before decoding.")
_ALLOW_OUTSIDE = flags.DEFINE_boolean(
    "allow_outside", False, "Also read images outside the image folder, which absolute names and `..` lead to."
)


def main() -> None:
    """Writes the shards and prints counts."""
    from retinanet_tf.data.records.prepare import prepare_splits, written_labels
    from retinanet_tf.data.sources import read_source
    from retinanet_tf.data.sources.random_split import random_split

    shares = _shares()
    annotations, folder = read_source(
        _ANNOTATIONS.value,
        _SPLIT.value,
        written_labels(_OUTPUT.value),
        _IMAGES.value,
        _ON_BAD_IMAGE.value == "skip",
        _NAMES.value,
        _EXIF.value,
    )
    if not folder:
        raise InputError(f"--images=FOLDER is needed: {_ANNOTATIONS.value} doesn't say where its images are.")
    annotations = replace(annotations, images=annotations.images[: _LIMIT.value])
    splits = {_NAME.value: annotations}
    if shares:
        splits = random_split(annotations, folder, shares, seed=_SPLIT_SEED.value, group=_GROUP.value)
        if "test" not in shares:
            _check_test_split(annotations.source)
    summaries = prepare_splits(
        splits,
        folder,
        _OUTPUT.value,
        shards=_SHARDS.value,
        num_workers=_WORKERS.value or os.cpu_count() or 1,
        on_bad_image=_ON_BAD_IMAGE.value,
        verify=_VERIFY.value,
        exif=_EXIF.value,
        max_pixels=_MAX_PIXELS.value,
        allow_outside=_ALLOW_OUTSIDE.value,
    )
    for name, summary in summaries.items():
        _print_summary(name, summary)


def _shares() -> dict[str, float]:
    """The shares of --split_shares by the names of their splits."""
    for flag in (_GROUP, _SPLIT_SEED) if not _SPLIT_SHARES.value else ():
        if flags.FLAGS[flag.name].present:
            raise InputError(f"{flag.name} goes with split_shares.")
    if not _SPLIT_SHARES.value:
        return {}
    if flags.FLAGS["name"].present:
        raise InputError(
            f"name={_NAME.value} doesn't go with split_shares, which names its splits train, val and test."
        )
    shares = [number for number in map(as_number, _SPLIT_SHARES.value) if number is not None]
    if not 2 <= len(shares) == len(_SPLIT_SHARES.value) <= 3:
        raise InputError(f"split_shares={','.join(_SPLIT_SHARES.value)} must be two or three numbers, such as 0.8,0.2.")
    return dict(zip(("train", "val", "test"), shares, strict=False))


def _check_test_split(source: str) -> None:
    """Refuses to divide pictures again beside the test split of an earlier division, which has some of them."""
    path = os.path.join(_OUTPUT.value, "test.summary.json")
    summary = read_json(path, "the summary") if os.path.exists(path) else {}
    if isinstance(summary, dict) and str(summary.get("source")).startswith(f"{source} (test "):
        raise InputError(
            f"{path} is of an earlier division of {source}, some of whose pictures would now be in train or val: "
            "delete the files of test, or choose another output folder."
        )


def _print_summary(name: str, summary: dict) -> None:
    shards = len(summary["bytes"])
    print(
        f"{summary['images']} images ({summary['images_without_objects']} without objects), {summary['boxes']} boxes "
        f"({summary['crowds']} crowds) in {shards} shards: {os.path.join(_OUTPUT.value, name)}-*.tfrecord"
    )
    for kind, count in summary["counts"].items():
        if count:
            print(f"  {count} {kind.replace('_', ' ')} {summary['meaning'][kind]}")
    for warning in summary["warnings"]:
        print(printable(f"warning: {warning}"))
    if any(summary["counts"].values()):
        print(f"All of them by name: {os.path.join(_OUTPUT.value, name)}.summary.json")
