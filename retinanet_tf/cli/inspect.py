"""Report on a data set: its classes and sizes, errors in it, and the objects that no anchor reaches.

    retinanet inspect --data=instances.json --images=photos --output=runs/inspection
    retinanet inspect --data='shards/train-*.tfrecord' --preset=mini --output=runs/inspection

writes OUTPUT/report.html, report.txt (also printed), report.json and samples.jpg. Exit status 1 if there are errors.
--preset and the flags after it are the configuration that the data set is checked against.
"""

import os

from absl import flags

from retinanet_tf.cli import flags as config_flags

_DATA = flags.DEFINE_string(
    "data",
    None,
    "Pattern of shards, COCO instances JSON, Pascal VOC folder, YOLO's data.yaml or folder, or CSV file.",
    required=True,
)
_IMAGES = flags.DEFINE_string("images", None, "Image folder of a JSON or CSV; without it the report has no samples.")
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "A list of VOC's ImageSets/Main, train, val or test of YOLO's data.yaml, or trainval35k or minival of COCO.",
)
_OUTPUT = flags.DEFINE_string("output", "runs/inspection", "Folder for the report.")
config_flags.define()


def main() -> int:
    """Prints the report; status 1 if there are errors."""
    from retinanet_tf.data.inspect.inspect_dataset import inspect_dataset
    from retinanet_tf.data.inspect.page import text_page

    config = config_flags.read()
    found = inspect_dataset(_DATA.value, config, _OUTPUT.value, images=_IMAGES.value, split=_SPLIT.value)
    print(text_page(found))
    print(f"With pictures: {os.path.join(_OUTPUT.value, 'report.html')}")
    return 1 if found.errors else 0
