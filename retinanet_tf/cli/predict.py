"""Detections on images: annotated copies, detections.json and a contact sheet.

    retinanet predict --model=runs/mine --images=photos/ --output=found
    retinanet predict --model=runs/mine --images='a.jpg,more/*.png' --output=found
    retinanet predict --model=mine.onnx --images=photos/ --output=found

The model may also be what `retinanet export` wrote: an ONNX or LiteRT file, which runs without TensorFlow, or the
folder of a SavedModel.

Unreadable files are listed at the end and make the exit status 1; the others are processed. Output of former runs
inside a folder of images isn't read.
"""

import os
import sys
from typing import TYPE_CHECKING

from absl import flags

from retinanet_tf.cli import detector_flags
from retinanet_tf.cli.before_tensorflow import import_tensorflow
from retinanet_tf.cli.model_flag import MODEL
from retinanet_tf.errors import InputError
from retinanet_tf.patterns import split_list
from retinanet_tf.text import printable

if TYPE_CHECKING:
    from retinanet_tf.inference.detector import DetectorLike
    from retinanet_tf.inference.predict import ImageDetector

_LISTED = 20  # categories that are counted in print
_IMAGES = flags.DEFINE_string("images", None, "Files, folders and glob patterns, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for pictures/, detections.json and the sheet.", required=True)
_MIN_SCORE = flags.DEFINE_float("min_score", 0.3, "Detections below aren't drawn (detections.json has them all).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images that go through the network together.", lower_bound=1)


def main() -> int:
    """Writes the detections; status 1 if a file couldn't be read."""
    from retinanet_tf.inference.predict import predict

    predictions = predict(
        _detector(),
        split_list(_IMAGES.value),
        _OUTPUT.value,
        min_score=_MIN_SCORE.value,
        batch_size=_BATCH_SIZE.value,
    )
    drawn, images = predictions.drawn, len(predictions.pictures)
    classes = [f"{printable(name, 40)} {count}" for name, count in [*drawn.items()][:_LISTED]]
    classes += [f"{len(drawn) - _LISTED} more categories"] * (len(drawn) > _LISTED)
    by_class = f" ({', '.join(classes)})" if classes else ""
    print(f"{sum(drawn.values())} detections with a score of {_MIN_SCORE.value:g} or more{by_class} on {images} images")
    print(f"{_OUTPUT.value}: contact_sheet.jpg, pictures/, detections.json")
    for path, reason in predictions.unreadable:
        print(printable(f"not read: {path}: {reason}"), file=sys.stderr)
    return 1 if predictions.unreadable else 0


def _detector() -> "DetectorLike | ImageDetector":
    """The detector of --model: an exported one, or one that was trained."""
    path = MODEL.value or ""
    is_file = path.lower().endswith((".onnx", ".tflite"))
    if not is_file:
        import_tensorflow()
        if not os.path.isfile(os.path.join(path, "saved_model.pb")):
            return detector_flags.load()
    if detector_flags.TEST_SIZES.value or detector_flags.TEST_FLIP.value:
        raise InputError(f"--test_sizes and --test_flip need a trained detector, and {path} is an exported one.")
    if is_file:
        from retinanet_tf.runtime.exported import ExportedDetector

        return ExportedDetector(path)
    from retinanet_tf.inference.saved_model import SavedModelDetector

    return SavedModelDetector(path)
