"""COCO metrics: published numbers, and cases worked out by hand from the definition of AP."""

import copy
import json
from pathlib import Path

import pytest

from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.coco import METRICS, coco_scores

SAMPLES = Path(__file__).parents[1] / "data" / "samples" / "evaluation"
TRUTH = {
    "images": [{"id": 7, "width": 100, "height": 100}, {"id": 9, "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "a"}, {"id": 40, "name": "b"}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40]},
        {"id": 1, "image_id": 9, "category_id": 3, "bbox": [20, 20, 40, 40]},
    ],
}


def coco_metrics(truth, results):
    return coco_scores(truth, results).metrics


def result(image, box, score, category=3):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


PERFECT = [result(a["image_id"], a["bbox"], 0.9) for a in TRUTH["annotations"]]


@pytest.mark.parametrize("name", ["cocoapi_val2014_100", "crowd_2299", "kerascv_samples"])
def test_published_numbers(name):
    case = json.loads((SAMPLES / f"{name}.json").read_text())
    scores = coco_scores(case["ground_truth"], case["results"])
    assert scores.metrics == pytest.approx(case["published"], abs=1e-6)
    assert tuple(scores.metrics) == METRICS
    per_category = {str(category): value for category, value in scores.per_category.items()}
    assert per_category == pytest.approx(case.get("per_category_AP", per_category), abs=1e-6)


def test_perfect_none_and_half():
    assert coco_metrics(TRUTH, PERFECT)["AP"] == pytest.approx(1.0)
    undetermined = ("APs", "ARs", "APl", "ARl")
    assert coco_metrics(TRUTH, []) == {name: -1.0 if name in undetermined else 0.0 for name in METRICS}
    # One of two objects found: precision 1 up to recall 0.5, which is 51 of the 101 recall points. It is the one with
    # id 0, which pycocotools' own matching would take for unmatched.
    half = coco_scores(TRUTH, PERFECT[:1])
    assert half.metrics["AP"] == pytest.approx(51 / 101)
    assert half.per_category == {3: pytest.approx(51 / 101), 40: -1.0}
    assert half.metrics["AR100"] == pytest.approx(0.5)


def test_iou_thresholds():
    """A box shifted by a sixth of its width: IoU = (5/6)/(7/6) = 0.714, right at .50–.70 and wrong from .75 on."""
    shifted = [result(a["image_id"], [a["bbox"][0] + 40 / 6, *a["bbox"][1:]], 0.9) for a in TRUTH["annotations"]]
    metrics = coco_metrics(TRUTH, shifted)
    assert (metrics["AP50"], metrics["AP75"]) == (pytest.approx(1.0), pytest.approx(0.0))
    assert metrics["AP"] == pytest.approx(0.5)


def test_areas_are_the_masks_where_given():
    """The same box is medium by its own area and small by its mask's."""
    masks = {**TRUTH, "annotations": [{**annotation, "area": 500.0} for annotation in TRUTH["annotations"]]}
    by_mask, by_box = coco_metrics(masks, PERFECT), coco_metrics(TRUTH, PERFECT)
    assert by_mask["APs"] == pytest.approx(1.0) and by_mask["APm"] == -1.0
    assert by_box["APm"] == pytest.approx(1.0) and by_box["APs"] == -1.0


def test_input_is_not_changed_and_nothing_is_printed(capsys):
    truth, results = copy.deepcopy(TRUTH), copy.deepcopy(PERFECT)
    coco_metrics(truth, results)
    assert (truth, results) == (TRUTH, PERFECT)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (result(8, [0, 0, 1, 1], 0.5), "image_id 8"),
        (result(7, [0, 0, 1, 1], 0.5, category=4), "category_id 4"),
        ({"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}, "no 'score'"),
    ],
)
def test_results_of_another_dataset_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        coco_metrics(TRUTH, [*PERFECT, wrong])


@pytest.mark.parametrize("field", ["images", "annotations", "categories"])
def test_incomplete_ground_truth_is_refused(field):
    with pytest.raises(InputError, match=field):
        coco_metrics({key: value for key, value in TRUTH.items() if key != field}, [])
