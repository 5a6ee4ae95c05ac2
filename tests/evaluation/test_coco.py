"""COCO metrics: the published numbers, and what a definition of AP says about cases worked out by hand."""

import json

import pytest

from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.coco import METRICS, coco_metrics, coco_scores

TRUTH = {
    "images": [{"id": 7, "width": 100, "height": 100}, {"id": 9, "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "a"}, {"id": 40, "name": "b"}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40]},
        {"id": 1, "image_id": 9, "category_id": 3, "bbox": [20, 20, 40, 40]},
    ],
}


def found(image, box, score, category=3):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


@pytest.mark.parametrize("name", ["cocoapi_val2014_100", "crowd_2299", "kerascv_samples"])
def test_published_numbers(name, test_data):
    folder = test_data / "eval_oracle"
    expected = json.loads((folder / "EXPECTED.json").read_text())[name]
    truth, results = (json.loads((folder / expected[key]).read_text()) for key in ("gt", "dt"))
    scores = coco_scores(truth, results)
    assert scores.metrics == pytest.approx(expected["published"], abs=1e-6)
    assert tuple(scores.metrics) == METRICS
    if "per_category_AP" in expected:
        assert {str(k): v for k, v in scores.per_category.items()} == pytest.approx(
            expected["per_category_AP"], abs=1e-6
        )


def test_perfect_none_and_half():
    perfect = [found(a["image_id"], a["bbox"], 0.9) for a in TRUTH["annotations"]]
    assert coco_metrics(TRUTH, perfect)["AP"] == pytest.approx(1.0)
    assert coco_metrics(TRUTH, []) == pytest.approx(
        {name: -1.0 if name in ("APs", "ARs", "APl", "ARl") else 0.0 for name in METRICS}
    )
    # One of two objects found: precision 1 up to recall 0.5, which is 51 of the 101 recall points.
    half = coco_scores(TRUTH, perfect[:1])
    assert half.metrics["AP"] == pytest.approx(51 / 101)
    assert half.per_category == {3: pytest.approx(51 / 101), 40: -1.0}
    assert half.metrics["AR100"] == pytest.approx(0.5)


def test_annotation_with_id_zero_counts():
    """pycocotools' own matching would take the object with id 0 for unmatched."""
    assert coco_metrics(TRUTH, [found(7, [10, 10, 40, 40], 0.9)])["AP"] == pytest.approx(51 / 101)


def test_iou_thresholds():
    """A box shifted by a sixth of its width: IoU = (5/6)/(7/6) = 0.714, right at .50–.70 and wrong from .75 on."""
    shifted = [found(a["image_id"], [a["bbox"][0] + 40 / 6, *a["bbox"][1:]], 0.9) for a in TRUTH["annotations"]]
    metrics = coco_metrics(TRUTH, shifted)
    assert (metrics["AP50"], metrics["AP75"]) == (pytest.approx(1.0), pytest.approx(0.0))
    assert metrics["AP"] == pytest.approx(0.5)


def test_areas_are_the_masks_where_given():
    """The same box is medium by its own area and small by its mask's."""
    annotations = [{**annotation, "area": 500.0} for annotation in TRUTH["annotations"]]
    perfect = [found(a["image_id"], a["bbox"], 0.9) for a in TRUTH["annotations"]]
    by_mask, by_box = coco_metrics({**TRUTH, "annotations": annotations}, perfect), coco_metrics(TRUTH, perfect)
    assert by_mask["APs"] == pytest.approx(1.0) and by_mask["APm"] == -1.0
    assert by_box["APm"] == pytest.approx(1.0) and by_box["APs"] == -1.0


def test_ground_truth_is_not_changed_and_nothing_is_printed(capsys):
    before = json.dumps(TRUTH)
    coco_metrics(TRUTH, [found(7, [1, 2, 30, 40], 0.4)])
    assert json.dumps(TRUTH) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([found(8, [0, 0, 1, 1], 0.5)], "image 8"),
        ([found(7, [0, 0, 1, 1], 0.5, category=4)], "category 4"),
        ([{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}], "no 'score'"),
    ],
)
def test_results_of_another_dataset_are_refused(results, message):
    with pytest.raises(InputError, match=message):
        coco_metrics(TRUTH, results)


@pytest.mark.parametrize("field", ["images", "annotations", "categories"])
def test_ground_truth_without_a_part_is_refused(field):
    with pytest.raises(InputError, match=field):
        coco_metrics({key: value for key, value in TRUTH.items() if key != field}, [])
