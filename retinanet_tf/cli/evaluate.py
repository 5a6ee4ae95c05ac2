"""COCO's twelve numbers of a trained detector, or of a file of detections, and what explains them.

    retinanet evaluate --model=runs/mine --data='data/coco/val-*.tfrecord' --output=runs/mine/val
    retinanet evaluate --results=detections.json --annotations=instances_val2017.json

prints the numbers, AP and the best F1 by class, what kinds of errors cost how much AP50, and the confusion matrix. It
writes to OUTPUT evaluation.html (all of it on one page, with the pictures), metrics.json (the numbers), detections.json
(COCO's result format) and plots. With --results the page has pictures if --data, or --annotations and --images, are
given.
"""

from typing import Any

from absl import flags

from retinanet_tf.cli import detector_flags
from retinanet_tf.cli.model_flag import MODEL
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_json

_DATA = flags.DEFINE_string("data", None, "Pattern of the split's shards, as `retinanet prepare` wrote them.")
_ANNOTATIONS = flags.DEFINE_string("annotations", None, "COCO instances JSON, instead of --data.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of the images of --annotations.")
_RESULTS = flags.DEFINE_string("results", None, "Score this file of detections (COCO's result format) instead.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for page, numbers, detections and plots; none writes nothing.")
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "Also write detections_test-dev2017_NAME_results.json, as COCO's test-dev server wants it."
)
_MAX_DETECTIONS = flags.DEFINE_integer(
    "max_detections",
    None,
    "Detections per image that count; the detector finds as many (COCO: 100; with --tiles 1,000).",
    lower_bound=10,
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images that go through the network together.", lower_bound=1)


def main() -> None:
    """Evaluates and prints the numbers, in per cent."""
    from retinanet_tf.evaluation.coco import MAX_DETECTIONS
    from retinanet_tf.evaluation.evaluator import analyse, analyse_results, report

    if (_DATA.value is None) == (_ANNOTATIONS.value is None):
        raise InputError("give either --data or --annotations (with --images) to evaluate on.")
    if _ANNOTATIONS.value is not None and not _ANNOTATIONS.value.lower().endswith(".json"):
        raise InputError(
            f"--annotations={_ANNOTATIONS.value} must be a COCO instances JSON; `retinanet prepare` makes shards of "
            "other formats for --data."
        )
    if _IMAGES.value is not None and _DATA.value is not None:
        raise InputError("--images is for --annotations; the shards of --data hold their images.")
    if (MODEL.value is None) == (_RESULTS.value is None):
        raise InputError("give either --model to evaluate or --results to score.")
    source: Any = _DATA.value or _ANNOTATIONS.value
    options: dict[str, Any] = {"output": _OUTPUT.value, "submission": _SUBMISSION.value}
    if _SUBMISSION.value and not _OUTPUT.value:
        raise InputError("--submission needs --output, the folder that its file is written to.")
    if _RESULTS.value:
        for flag in (*detector_flags.FOR_TRAINED, _BATCH_SIZE):
            if flag.present:
                raise InputError(
                    f"--{flag.name} is for --model: --results={_RESULTS.value} has its detections already."
                )
        results = read_json(_RESULTS.value, "the file of detections")
        if not isinstance(results, list):
            raise InputError(f"{_RESULTS.value} holds no list; give detections in COCO's result format.")
        counted = _MAX_DETECTIONS.value or MAX_DETECTIONS
        analysis = analyse_results(source, results, _IMAGES.value, max_detections=counted, **options)
    else:
        detector = detector_flags.load(_MAX_DETECTIONS.value or 0)
        options.update(batch_size=_BATCH_SIZE.value, max_detections=_MAX_DETECTIONS.value)
        analysis = analyse(detector, source, _IMAGES.value, **options)
    print(f"{report(analysis.metrics)}\n\n{analysis.text()}")
    if _OUTPUT.value:
        print(f"\nwritten to {_OUTPUT.value}: evaluation.html, metrics.json, detections.json and plots (PNG)")
