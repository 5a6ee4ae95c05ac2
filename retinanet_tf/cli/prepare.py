"""TFRecord shards from COCO JSON, a Pascal VOC folder or CSV, and its images.

    retinanet prepare --annotations=instances_train2017.json --images=train2017 --output=data/coco
    retinanet prepare --annotations=VOCdevkit/VOC2012 --split=trainval --output=data/voc
    retinanet prepare --annotations=boxes.csv --images=photos --output=data/mine
    retinanet prepare --annotations=coco --split=trainval35k --output=data/coco

writes OUTPUT/NAME-00000-of-000NN.tfrecord …, OUTPUT/labels.json, OUTPUT/NAME.index.npz and OUTPUT/NAME.summary.json.
An interrupted run leaves nothing. A CSV line is image,x1,y1,x2,y2,class in pixels, with empty cells for an image
without objects; a header may name the columns in another order, as TensorFlow's tutorials, Roboflow and others do.
"""

import os

from absl import flags

from retinanet_tf.data.records.images import ImagePolicy
from retinanet_tf.errors import InputError
from retinanet_tf.text import printable

_ANNOTATIONS = flags.DEFINE_string(
    "annotations",
    None,
    "COCO instances JSON, Pascal VOC folder, CSV file, or COCO's folder with --split.",
    required=True,
)
_IMAGES = flags.DEFINE_string(
    "images", None, "Folder that the annotations' file names are relative to; not needed for VOC and COCO folders."
)
_SPLIT = flags.DEFINE_string(
    "split", None, "A list of VOC's ImageSets/Main, or the paper's trainval35k or minival (§4) of a COCO folder."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for shards, labels.json and summary; made if missing.", required=True
)
_NAME = flags.DEFINE_string("name", "train", "Name of the split, the shards' prefix.")
_SHARDS = flags.DEFINE_integer("shards", None, "Number of shards; by default one per 1,000 images.")
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first so many images.")
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
    from retinanet_tf.data.records.prepare import prepare
    from retinanet_tf.data.sources import read_source
    from retinanet_tf.data.sources.labels import LabelMap

    # Splits of one folder share the label map of the first.
    path = os.path.join(_OUTPUT.value, "labels.json")
    label_map = LabelMap.load(path) if os.path.exists(path) else None
    skip_bad = _ON_BAD_IMAGE.value == "skip"
    annotations, folder = read_source(_ANNOTATIONS.value, _SPLIT.value, label_map, _IMAGES.value, skip_bad)
    if not folder:
        raise InputError(f"--images=FOLDER is needed: {_ANNOTATIONS.value} doesn't say where its images are.")
    summary = prepare(
        annotations,
        folder,
        _OUTPUT.value,
        _NAME.value,
        shards=_SHARDS.value,
        limit=_LIMIT.value,
        num_workers=_WORKERS.value or os.cpu_count() or 1,
        on_bad_image=_ON_BAD_IMAGE.value,
        verify=_VERIFY.value,
        exif=_EXIF.value,
        max_pixels=_MAX_PIXELS.value,
        allow_outside=_ALLOW_OUTSIDE.value,
    )
    shards = len(summary["bytes"])
    print(
        f"{summary['images']} images ({summary['images_without_objects']} without objects), {summary['boxes']} boxes "
        f"({summary['crowds']} crowds) in {shards} shards: {os.path.join(_OUTPUT.value, _NAME.value)}-*.tfrecord"
    )
    for kind, count in summary["counts"].items():
        if count:
            print(f"  {count} {kind.replace('_', ' ')} {summary['meaning'][kind]}")
    for warning in summary["warnings"]:
        print(printable(f"warning: {warning}"))
    print(f"All of them by name: {os.path.join(_OUTPUT.value, _NAME.value)}.summary.json")
