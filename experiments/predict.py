"""Detections on pictures: annotated copies, detections.json and a contact sheet.

    python -m experiments.predict --checkpoint=runs/mine --images=photos/ --output=found
    python -m experiments.predict --checkpoint=runs/mine --images='a.jpg,more/*.png' --output=found

Files that can't be read are listed at the end; the others are done, and the exit status is 1.
"""

import sys

from absl import flags

from experiments import cli, detector_flags
from retinanet_tf.errors import InputError
from retinanet_tf.inference.predict import predict

_IMAGES = flags.DEFINE_list("images", None, "Files, folders and glob patterns, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for pictures/, detections.json and the sheet.", required=True)
_MIN_SCORE = flags.DEFINE_float("min_score", 0.3, "Detections below aren't drawn (detections.json has them all).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images that go through the network together.", lower_bound=1)


def main() -> int:
    """Predicts; status 1 if a file couldn't be read."""
    if detector_flags.CHECKPOINT.value is None:
        raise InputError("give --checkpoint, the run directory of a training job.")
    images, unreadable = predict(
        detector_flags.load(),
        _IMAGES.value,
        _OUTPUT.value,
        min_score=_MIN_SCORE.value,
        batch_size=_BATCH_SIZE.value,
    )
    objects = sum(len(entry["detections"]) for entry in images)
    print(
        f"{objects} detections on {len(images)} images: {_OUTPUT.value}/contact_sheet.jpg, pictures/, detections.json"
    )
    for path, reason in unreadable:
        print(f"not read: {path}: {reason}", file=sys.stderr)
    return 1 if unreadable else 0


if __name__ == "__main__":
    cli.run(main)
