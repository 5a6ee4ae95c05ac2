"""COCO metrics by pycocotools, from ground truth and results in COCO's formats."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_tf.errors import InputError

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers in pycocotools' order. A number that nothing in the ground truth determines is −1."""


class Scores(NamedTuple):
    """Results compared with ground truth."""

    metrics: dict[str, float]  # the twelve numbers by METRICS' names
    per_category: dict[int, float]  # AP by category id, −1 for categories without an object
    precision: np.ndarray  # (10 IoUs .5–.95, 101 recalls, categories in the order of per_category), −1 undetermined
    recalls: np.ndarray  # (101,)


def coco_scores(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Scores:
    """Compares detections with ground truth as COCO does: crowds, areas and ignoring are pycocotools' own.

    Args:
        ground_truth: the content of an instances file: "images", "annotations", "categories". "area" and "iscrowd" of
            an annotation default to w·h and 0. It isn't changed.
        results: detections {"image_id", "category_id", "bbox": [x, y, w, h], "score"}; may be empty. Images without
            any count as images without detections.

    Raises:
        InputError: ground truth without categories or images; a detection that lacks a field, or whose image or
            category the ground truth doesn't have.
    """
    truth = _complete(ground_truth)
    _check(results, {image["id"] for image in truth["images"]}, {c["id"] for c in truth["categories"]})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if results:
            detections = coco.loadRes([dict(result) for result in results])
        else:  # loadRes refuses an empty list
            detections = COCO()
            detections.dataset = {**truth, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(coco, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return Scores(
        metrics=dict(zip(METRICS, map(float, evaluation.stats), strict=True)),
        per_category={int(c): _mean(precision[:, :, index]) for index, c in enumerate(evaluation.params.catIds)},
        precision=precision,
        recalls=evaluation.params.recThrs,
    )


def _mean(values: np.ndarray) -> float:
    determined = values[values > -1]
    return float(determined.mean()) if determined.size else -1.0


def _complete(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that pycocotools may write into, with areas and crowds.

    Annotations are numbered from 1: pycocotools takes the id 0 of a matched object for "not matched".
    """
    for field in ("images", "annotations", "categories"):
        if not isinstance(ground_truth.get(field), list) or (field != "annotations" and not ground_truth[field]):
            raise InputError(f"the ground truth has no {field}; give an instances file in COCO's format.")
    annotations = [
        {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row, "id": number}
        for number, row in enumerate(ground_truth["annotations"], 1)
    ]
    copies = {field: [dict(entry) for entry in ground_truth[field]] for field in ("images", "categories")}
    return {"info": {}, **copies, "annotations": annotations}


def _check(results: Sequence[Mapping[str, Any]], images: set, categories: set) -> None:
    for number, result in enumerate(results):
        missing = {"image_id", "category_id", "bbox", "score"} - set(result)
        if missing:
            raise InputError(f"detection {number} has no {min(missing)!r}; results need COCO's results format.")
        for field, ids in (("image_id", images), ("category_id", categories)):
            if result[field] not in ids:
                raise InputError(
                    f"detection {number} has {field} {result[field]}, which the ground truth doesn't have; results "
                    "and annotations must be of the same split, with the dataset's own ids."
                )
