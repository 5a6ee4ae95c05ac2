"""COCO metrics: published numbers, and cases worked out by hand from the definition of AP."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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


@pytest.mark.once
def test_many_categories_are_what_pycocotools_has_for_all_together():
    """They are looked at in parts. Ids and order of the categories are arbitrary, scores tie, some are crowds."""
    rng = np.random.default_rng(4)
    ids = (3 * rng.permutation(250) + 1).tolist()

    def row(image, category, corner, size):
        box = [*corner.tolist(), *size.tolist()]
        return {"image_id": int(image), "category_id": int(category), "bbox": box}

    objects = [
        {
            **row(rng.integers(1, 40), rng.choice(ids), rng.uniform(0, 200, 2), size := rng.uniform(1, 150, 2)),
            "id": number,
        }
        | {"area": size.prod(), "iscrowd": int(rng.uniform() < 0.1)}
        for number in range(1, 401)
    ]
    results = [
        {**row(*(one[key] for key in ("image_id", "category_id")), *shifted), "score": rng.integers(20) / 20}
        for one in objects
        if rng.uniform() < 0.7
        for shifted in [(np.array(one["bbox"][:2]) + rng.normal(0, 3, 2), np.array(one["bbox"][2:]))]
    ]
    truth = {"info": {}, "images": [{"id": image} for image in range(1, 40)], "annotations": objects}
    truth["categories"] = [{"id": number, "name": str(number)} for number in ids]
    scores, whole = coco_scores(truth, results), COCO()
    whole.dataset = copy.deepcopy(truth)
    whole.createIndex()
    evaluation = COCOeval(whole, whole.loadRes(copy.deepcopy(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert list(scores.metrics.values()) == evaluation.stats.tolist() and 0.2 < scores.metrics["AP"] < 0.9
    assert list(scores.per_category) == sorted(ids)
    np.testing.assert_array_equal(scores.precision, evaluation.eval["precision"][:, :, :, 0, -1])


def test_perfect_none_and_half():
    assert coco_metrics(TRUTH, PERFECT)["AP"] == pytest.approx(1.0)
    # A caption would make pycocotools' loadRes leave out the areas.
    assert coco_metrics(TRUTH, [{**row, "caption": "a cup"} for row in PERFECT])["AP"] == pytest.approx(1.0)
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
    ("ids", "order"),
    [
        (("0001", "0002_flip"), None),
        ((5, "5"), None),
        ((-3, 2**62), None),
        (("b", "a"), ("a", "b")),
        (("é", "e"), None),
    ],
)
def test_ids_of_any_kind_name_images(ids, order):
    """Textual, mixed, negative and huge ids: the numbers are those of the same images with ids 7 and 9."""
    of = dict(zip((7, 9), ids, strict=True))
    truth = {
        **TRUTH,
        "images": [{"id": one} for one in order or ids],
        "annotations": [{**row, "image_id": of[row["image_id"]]} for row in TRUTH["annotations"]],
    }
    results = [{**row, "image_id": of[row["image_id"]]} for row in PERFECT]
    assert coco_metrics(truth, results) == coco_metrics(TRUTH, PERFECT)
    # A box on the other picture is wrong there: one of two detections is right, up to a recall of one half.
    swapped = [results[0], {**results[1], "image_id": ids[0], "score": 0.5}]
    assert coco_metrics(truth, swapped)["AP"] == pytest.approx(51 / 101)


def test_repeated_ids_are_refused():
    with pytest.raises(InputError, match="1 images"):
        coco_metrics({**TRUTH, "images": [*TRUTH["images"], {"id": 9}]}, [])


def test_the_limit_counts_per_image_and_category():
    """12 objects of one category and one of another on an image, all found: with 10 detections 10 of the 12 are."""
    boxes = [[20 * i, 0, 10, 10] for i in range(12)]
    rows = [(3, box) for box in boxes] + [(40, [0, 50, 10, 10])]
    annotations = [
        {"id": i, "image_id": 7, "category_id": category, "bbox": box} for i, (category, box) in enumerate(rows)
    ]
    truth = {**TRUTH, "annotations": annotations}
    results = [result(7, box, 0.9 - 0.01 * i, category) for i, (category, box) in enumerate(rows)]
    scores = coco_scores(truth, results, max_detections=10)
    # Precision is 1 up to recall 10/12, which 84 of the 101 recall points reach.
    assert scores.per_category == {3: pytest.approx(84 / 101), 40: pytest.approx(1.0)}
    assert scores.metrics["AR100"] == scores.metrics["AR10"] == pytest.approx((10 / 12 + 1) / 2)
    assert scores.metrics["AR1"] == pytest.approx((1 / 12 + 1) / 2)
    assert coco_scores(truth, results, max_detections=12).metrics["AP"] == pytest.approx(1.0)
    assert coco_metrics(truth, results) == coco_scores(truth, results, max_detections=12).metrics
    with pytest.raises(InputError, match="max_detections=9"):
        coco_scores(truth, results, max_detections=9)


GOOD = result(7, [0, 0, 1, 1], 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 8}, ("image_id 8",)),
        ({"image_id": "7"}, ("image_id '7'", "text", "whole number")),
        ({"image_id": 7.0}, ("image_id 7.0", "float")),
        ({"image_id": True}, ("image_id True", "bool")),
        ({"image_id": {"id": 7}}, ("image_id {", "dict")),
        ({"category_id": 4}, ("category_id 4",)),
        ({"category_id": "3"}, ("category_id '3'", "text")),
        ({"category_id": None}, ("category_id None", "null")),
        ({"bbox": "0 0 1 1"}, ("image 7", "bbox '0 0 1 1'")),
        ({"bbox": [0, 0, 1, 1, 1]}, ("image 7", "four finite numbers")),
        ({"bbox": {"x": 0, "y": 0, "w": 1, "h": 1}}, ("image 7", "four finite numbers")),
        ({"bbox": [[0], [0], [1], [1]]}, ("image 7", "four finite numbers")),
        ({"bbox": [False, False, True, True]}, ("image 7", "four finite numbers")),
        ({"bbox": [0, 0, float("nan"), 1]}, ("image 7", "four finite numbers")),
        ({"bbox": [0, 0, 10**400, 1]}, ("image 7", "four finite numbers")),
        ({"bbox": [5, 5, -1, 1]}, ("image 7", "negative")),
        ({"score": float("inf")}, ("image 7", "score inf")),
        ({"score": True}, ("image 7", "score True")),
        ({"score": [0.5]}, ("image 7", "score [0.5]")),
    ],
)
def test_wrong_detections_are_refused_by_number(change, words):
    with pytest.raises(InputError) as caught:
        coco_metrics(TRUTH, [*PERFECT, {**GOOD, **change}])
    assert all(word in str(caught.value) for word in ("detection 2", *words))


@pytest.mark.parametrize("wrong", [7, None, [7, 3, [0, 0, 1, 1], 0.5], {k: v for k, v in GOOD.items() if k != "score"}])
def test_what_lacks_fields_is_refused_by_number(wrong):
    with pytest.raises(InputError, match="detection 2 has no"):
        coco_metrics(TRUTH, [*PERFECT, wrong])


def test_numbers_of_numpy_are_numbers():
    rows = [
        {
            "image_id": np.int64(row["image_id"]),
            "category_id": np.int32(row["category_id"]),
            "bbox": np.array(row["bbox"], np.float32),
            "score": np.float32(row["score"]),
        }
        for row in PERFECT
    ]
    assert coco_metrics(TRUTH, rows) == coco_metrics(TRUTH, PERFECT)


@pytest.mark.parametrize("field", ["images", "annotations", "categories"])
def test_incomplete_ground_truth_is_refused(field):
    with pytest.raises(InputError, match=field):
        coco_metrics({key: value for key, value in TRUTH.items() if key != field}, [])
