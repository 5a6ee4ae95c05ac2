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

MAX_DETECTIONS = 100
"""COCO's limit of detections per image and category."""

LEAST_MAX_DETECTIONS = 10
"""AR10's limit, below which no other can be."""

MATCHING_IOU = 0.5
"""The IoU of `Matches`, AP50's."""

_CATEGORIES_AT_ONCE = 100
"""pycocotools keeps the overlaps and matches of every image and category: gigabytes for those of LVIS."""

_FIELDS = ("image_id", "category_id", "bbox", "score")


class Matches(NamedTuple):
    """What pycocotools found for AP50: N detections and M objects in the order in which they were given."""

    found: np.ndarray  # (N,) the annotation that a detection was matched with, by its index; −1 for none
    ignored: np.ndarray  # (N,) bool: neither right nor wrong, such as a detection in a crowd
    limited: np.ndarray  # (N,) bool: beyond max_detections of its image and category, so not looked at
    ignored_objects: np.ndarray  # (M,) bool: crowds
    order: np.ndarray  # (N,) the detections' indices by falling score, equal ones as AP takes them


class Scores(NamedTuple):
    """Results compared with ground truth."""

    metrics: dict[str, float]  # the twelve numbers by METRICS' names
    per_category: dict[int, float]  # AP by category id, −1 for categories without an object
    precision: np.ndarray  # (10 IoUs .5–.95, 101 recalls, categories in the order of per_category), −1 undetermined
    recalls: np.ndarray  # (101,)
    matches: Matches


def check_limit(max_detections: int) -> None:
    """Raises InputError for a limit below AR10's."""
    if max_detections < LEAST_MAX_DETECTIONS:
        raise InputError(f"max_detections={max_detections} must be at least {LEAST_MAX_DETECTIONS}, AR10's limit.")


def coco_scores(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_detections: int = MAX_DETECTIONS
) -> Scores:
    """Compares detections with ground truth as COCO does: crowds, areas and ignoring are pycocotools' own.

    Args:
        ground_truth: the content of an instances file: "images", "annotations", "categories". "area" and "iscrowd" of
            an annotation default to w·h and 0; an image's id is a number or a text. It isn't changed.
        results: detections {"image_id", "category_id", "bbox": [x, y, w, h], "score"}; may be empty. Images without
            any count as images without detections.
        max_detections: the best detections of a category that count on an image; all numbers but AR1 and AR10 follow
            it, AR100 too.

    Raises:
        InputError: ground truth without categories or images, or with a repeated image id; a detection with a field
            that is missing, of another type or not finite, or whose image or category the ground truth doesn't have.
    """
    check_limit(max_detections)
    truth, numbers = _numbered(ground_truth)
    check_results(results, numbers, {category["id"] for category in truth["categories"]})
    # No other field: pycocotools would take a caption or a mask for what is to be compared.
    fields = [{field: row[field] for field in _FIELDS} for row in results]
    rows = [{**row, "image_id": numbers[row["image_id"]], "bbox": list(row["bbox"])} for row in fields]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if rows:
            detections = coco.loadRes(rows)
        else:  # loadRes refuses an empty list
            detections = COCO()
            detections.dataset = {**truth, "annotations": []}
            detections.createIndex()
        matches, found = _unmatched(rows, len(truth["annotations"])), []
        categories = sorted(coco.cats)
        for start in range(0, len(categories), _CATEGORIES_AT_ONCE):
            evaluation = COCOeval(coco, detections, "bbox")
            evaluation.params.maxDets = [1, 10, max_detections]
            evaluation.params.catIds = categories[start : start + _CATEGORIES_AT_ONCE]
            evaluation.evaluate()
            evaluation.accumulate()
            found.append((evaluation.eval["precision"], evaluation.eval["recall"]))
            _note_matches(matches, evaluation)
    # COCOeval.summarize knows no limit but 100. Precision is (IoU, recall, category, area, limit), recall lacks the
    # second axis; the areas are all, small, medium, large.
    precision, recall = (
        np.concatenate(parts, axis) for parts, axis in zip(zip(*found, strict=True), (2, 1), strict=True)
    )
    all_areas = precision[:, :, :, 0, -1]
    parts = (
        *(all_areas, all_areas[0], all_areas[5], *(precision[..., area, -1] for area in (1, 2, 3))),
        *(recall[..., 0, limit] for limit in (0, 1, 2)),
        *(recall[..., area, -1] for area in (1, 2, 3)),
    )
    return Scores(
        metrics=dict(zip(METRICS, map(mean_of_determined, parts), strict=True)),
        per_category={int(c): mean_of_determined(all_areas[:, :, index]) for index, c in enumerate(categories)},
        precision=all_areas,
        recalls=evaluation.params.recThrs,
        matches=matches,
    )


def _unmatched(rows: Sequence[Mapping[str, Any]], num_objects: int) -> Matches:
    """The matches before any category has been looked at."""
    scores, numbers = np.array([row["score"] for row in rows], float), [row["image_id"] for row in rows]
    return Matches(
        found=np.full(len(rows), -1),
        ignored=np.zeros(len(rows), bool),
        limited=np.ones(len(rows), bool),
        ignored_objects=np.zeros(num_objects, bool),
        order=np.lexsort((numbers, -scores)),
    )


def _note_matches(matches: Matches, evaluation: COCOeval) -> None:
    """Writes those of the evaluated categories."""
    images = len(evaluation.params.imgIds)
    per_category = images * len(evaluation.params.areaRng)
    # evalImgs is (category, area, image); the first area is all. Ids of detections and objects count from 1.
    for start in range(0, len(evaluation.evalImgs), per_category):
        for one in filter(None, evaluation.evalImgs[start : start + images]):
            detections = np.array(one["dtIds"], int) - 1
            matches.found[detections] = one["dtMatches"][0].astype(int) - 1
            matches.ignored[detections], matches.limited[detections] = one["dtIgnore"][0], False
            matches.ignored_objects[np.array(one["gtIds"], int) - 1] = one["gtIgnore"]


def mean_of_determined(values: np.ndarray) -> float:
    """The mean of the values that aren't −1; −1 if all are."""
    determined = values[values > -1]
    return float(determined.mean()) if determined.size else -1.0


def _numbered(ground_truth: Mapping[str, Any]) -> tuple[dict[str, Any], dict]:
    """A copy with areas and crowds that pycocotools may write into, and its image numbers by the original ids.

    pycocotools can't sort a mixture of numbers and texts, so images are numbered from 1 in the order of their ids.
    Annotations are numbered from 1 too: it takes the id 0 of a matched object for "not matched".
    """
    for field in ("images", "annotations", "categories"):
        if not isinstance(ground_truth.get(field), list) or (field != "annotations" and not ground_truth[field]):
            raise InputError(f"the ground truth has no {field}; give an instances file in COCO's format.")
    ids = sorted((image["id"] for image in ground_truth["images"]), key=lambda one: (isinstance(one, str), one))
    numbers = {image_id: number for number, image_id in enumerate(ids, 1)}
    if len(numbers) < len(ids):
        raise InputError(f"{len(ids) - len(numbers)} images of the ground truth have the id of another image.")
    annotations = [
        {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row, "id": number}
        | {"image_id": numbers[row["image_id"]]}
        for number, row in enumerate(ground_truth["annotations"], 1)
    ]
    images = [{**image, "id": numbers[image["id"]]} for image in ground_truth["images"]]
    categories = [dict(category) for category in ground_truth["categories"]]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, numbers


def check_results(results: Sequence[Mapping[str, Any]], image_ids: Mapping, category_ids: set[int]) -> None:
    """Raises InputError for the first detection with a wrong field; its number and image are named."""
    for number, result in enumerate(results):
        if not isinstance(result, Mapping) or not all(field in result for field in _FIELDS):
            missing = [field for field in _FIELDS if not isinstance(result, Mapping) or field not in result]
            raise InputError(f"detection {number} has no {missing[0]!r}; results need COCO's results format.")
        image, category, box, score = (result[field] for field in _FIELDS)
        where = f"detection {number} (image {image!r})"
        for field, value, ids in (("image_id", image, image_ids), ("category_id", category, category_ids)):
            if isinstance(value, bool) or not isinstance(value, int | str | np.integer) or value not in ids:
                raise InputError(
                    f"detection {number} has {field} {value!r} ({_kind(value)}), which the ground truth doesn't have "
                    f"(an id there is {next(iter(ids))!r}, {_kind(next(iter(ids)))}); results and annotations must be "
                    "of the same split, with the dataset's own ids."
                )
        if not (isinstance(box, list | tuple | np.ndarray) and len(box) == 4 and all(map(_is_finite, box))):
            raise InputError(f"{where} has bbox {box!r}; it must be four finite numbers x, y, width, height.")
        if box[2] < 0 or box[3] < 0:
            raise InputError(f"{where} has bbox {box!r}, whose width or height is negative.")
        if not _is_finite(score):
            raise InputError(f"{where} has score {score!r} ({_kind(score)}); it must be a finite number.")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(-1e30 < value < 1e30)


def _kind(value: Any) -> str:
    names = {str: "a text", int: "a whole number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
