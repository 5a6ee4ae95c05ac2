"""Detections on images: annotated copies, detections.json and a contact sheet.

    retinanet predict --checkpoint=runs/mine --images=photos/ --output=found
    retinanet predict --checkpoint=runs/mine --images='a.jpg,more/*.png' --output=found

Unreadable files are listed at the end and make the exit status 1; the others are processed.
"""

import sys

from absl import flags

from retinanet_tf.cli import detector_flags

_IMAGES = flags.DEFINE_list("images", None, "Files, folders and glob patterns, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for pictures/, detections.json and the sheet.", required=True)
_MIN_SCORE = flags.DEFINE_float("min_score", 0.3, "Detections below aren't drawn (detections.json has them all).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images that go through the network together.", lower_bound=1)


def main() -> int:
    """Writes the detections; status 1 if a file couldn't be read."""
    from retinanet_tf.inference.predict import predict

    predictions = predict(
        detector_flags.load(),
        _IMAGES.value,
        _OUTPUT.value,
        min_score=_MIN_SCORE.value,
        batch_size=_BATCH_SIZE.value,
    )
    counts = f"{len(predictions.detections)} detections on {len(predictions.pictures)} images"
    print(f"{counts}: {_OUTPUT.value}/contact_sheet.jpg, pictures/, detections.json")
    for path, reason in predictions.unreadable:
        print(f"not read: {path}: {reason}", file=sys.stderr)
    return 1 if predictions.unreadable else 0
