"""Detections on images: annotated copies, detections.json and a contact sheet.

    retinanet predict --model=runs/mine --images=photos/ --output=found
    retinanet predict --model=runs/mine --images='a.jpg,more/*.png' --output=found
    retinanet predict --model=mine.onnx --images=photos/ --output=found
    retinanet predict --model=runs/mine --images=photos/ --output=found --save=yolo
    retinanet predict --model=runs/mine --images=clip.mp4 --output=found
    retinanet predict --model=runs/mine --images=photos/ --output=found --min_score=auto

The model may also be what `retinanet export` wrote: an ONNX or LiteRT file, which runs without TensorFlow, or the
folder of a SavedModel. Videos need PyAV (pip install 'retinanet_tf[video]').

Large pictures with small objects: --tiles=400 looks at squares of 400 pixels too.

--min_score=auto takes the score with the best F1 from the newest metrics.json that training or `retinanet evaluate`
wrote into the model's folder or a folder in it, as with --model=runs/mine --output=runs/mine/val.

Unreadable files are listed at the end and make the exit status 1; the others are processed. Output of former runs
inside a folder of images isn't read.
"""

import sys
from typing import TYPE_CHECKING

from absl import flags

from retinanet_tf.cli import detector_flags
from retinanet_tf.cli.before_tensorflow import import_tensorflow
from retinanet_tf.cli.model_flag import MODEL
from retinanet_tf.data.sources.annotations import as_number
from retinanet_tf.errors import InputError
from retinanet_tf.inference.results import MIN_SCORE
from retinanet_tf.patterns import split_list
from retinanet_tf.text import printable

if TYPE_CHECKING:
    from retinanet_tf.inference.predict import AnyDetector

_LISTED = 20  # categories that are counted in print
_IMAGES = flags.DEFINE_string(
    "images", None, "Pictures, videos, folders and glob patterns, separated by commas.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for pictures/, detections.json and the sheet.", required=True)
_MIN_SCORE = flags.DEFINE_string(
    "min_score",
    str(MIN_SCORE),
    "Detections below aren't drawn (detections.json has them all); auto: the score with the best F1 in the newest "
    "evaluation in the model's folder.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images that go through the network together.", lower_bound=1)
_SAVE = flags.DEFINE_list(
    "save",
    [],
    "Also write what is drawn as annotations that labelling tools and `retinanet prepare` read: coco "
    "(annotations.json), csv (annotations.csv), yolo (labels/), several with commas.",
)


def main() -> int:
    """Writes the detections; status 1 if a file couldn't be read."""
    from retinanet_tf.inference.predict import predict
    from retinanet_tf.inference.video import is_video

    given = _given_min_score()
    detector = _detector()
    min_score = _best_score(detector) if given is None else given
    predictions = predict(
        detector,
        split_list(_IMAGES.value),
        _OUTPUT.value,
        min_score=min_score,
        batch_size=_BATCH_SIZE.value,
        save=_SAVE.value,
    )
    for path, counts in predictions.counts.items():
        print(printable(f"{path}: ") + (_by_class(counts) or "nothing"))
    drawn, videos = predictions.drawn, sum(map(is_video, predictions.pictures))
    files = f"{len(predictions.pictures) - videos} images" + (f" and {videos} videos" if videos else "")
    by_class = f" ({_by_class(drawn)})" if drawn else ""
    print(f"{sum(drawn.values())} detections with a score of {min_score:g} or more{by_class} on {files}")
    sheet = ["contact_sheet.jpg", "pictures/"] if predictions.pictures else []
    print(f"{_OUTPUT.value}: {', '.join([*sheet, 'detections.json', *predictions.saved])}")
    for note in predictions.notes:
        print(printable(note))
    for path, reason in predictions.unreadable:
        print(printable(f"not read: {path} {reason}"), file=sys.stderr)
    return 1 if predictions.unreadable else 0


def _given_min_score() -> float | None:
    """The number of --min_score; None for auto, once there is an evaluation to take it from."""
    if _MIN_SCORE.value == "auto":
        from retinanet_tf.evaluation.stored_threshold import stored_threshold

        stored_threshold(MODEL.value or "")
        return None
    given = as_number(_MIN_SCORE.value)
    if given is None or not 0 <= given <= 1:
        raise InputError(f"--min_score={_MIN_SCORE.value} is neither a number from 0 to 1 nor auto.")
    return given


def _best_score(detector: "AnyDetector") -> float:
    """What --min_score=auto finds for a detector."""
    from retinanet_tf.evaluation.stored_threshold import stored_threshold

    settings = detector.describe() if hasattr(detector, "describe") else None
    score, path = stored_threshold(MODEL.value or "", settings)
    print(f"min_score=auto: {score:g}, with the best F1 in {path}")
    return score


def _by_class(counts: dict[str, int]) -> str:
    """The most frequent categories with their numbers."""
    classes = [f"{printable(name, 40)} {count}" for name, count in [*counts.items()][:_LISTED]]
    classes += [f"{len(counts) - _LISTED} more categories"] * (len(counts) > _LISTED)
    return ", ".join(classes)


def _detector() -> "AnyDetector":
    """The detector of --model: an exported one, or one that was trained."""
    path = MODEL.value or ""
    is_file = path.lower().endswith((".onnx", ".tflite"))
    if not is_file:
        import_tensorflow()
        from retinanet_tf.inference.checkpoint import newest_version

        version = newest_version(path)
        if version is None:
            return detector_flags.load()
        path = version
    for flag in detector_flags.FOR_TRAINED:
        if flag.present:
            raise InputError(f"--{flag.name} needs a trained detector, and {path} is an exported one.")
    if is_file:
        from retinanet_tf.runtime.exported import ExportedDetector

        return ExportedDetector(path)
    from retinanet_tf.inference.saved_model import SavedModelDetector

    return SavedModelDetector(path)
