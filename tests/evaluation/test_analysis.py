"""Matching, confusion matrix, F1, kinds of errors: by hand, naive references, pycocotools on mended results."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.analysis import best_threshold
from retinanet_tf.evaluation.coco import coco_scores
from retinanet_tf.evaluation.error_kinds import precisions
from retinanet_tf.evaluation.matching import KINDS, NOT_COUNTED, RIGHT, outcomes
from retinanet_tf.evaluation.stored_threshold import stored_threshold
from tests.evaluation.splits import analysed, naive_confusion, naive_match, random_split, share_inside, split, xyxy
from tests.oracles import box_iou

SAMPLES = Path(__file__).parents[1] / "data" / "samples" / "evaluation"
BOX, FAR = (10, 10, 20, 20), (60, 60, 20, 20)
SEEDS = range(20)


def cells(analysis, level=None):
    """The cells of a confusion matrix that aren't 0."""
    counts = analysis.confusion if level is None else analysis.outcomes.confusion(level, len(analysis.names))
    return {(int(row), int(column)): int(counts[row, column]) for row, column in zip(*np.nonzero(counts), strict=True)}


# --- Confusion matrix -------------------------------------------------------------------------------------------------


def test_pictures_without_objects_and_without_detections_count():
    """A: object and detection apart; B: a detection alone; C: an object alone. Nothing is found: least score 0.3."""
    objects, detections = [("A", 0, BOX), ("C", 1, BOX)], [("A", 0, FAR, 0.9), ("B", 1, BOX, 0.5)]
    analysis = analysed(*split(objects, detections, "ABC", (1, 2)))
    assert analysis.best is None and analysis.threshold == 0.3
    assert cells(analysis) == {(0, 2): 1, (2, 0): 1, (2, 1): 1, (1, 2): 1}
    content = analysis.to_json()
    for row in (content, *content["classes"]):  # there are objects, of which none is found
        assert (row["F1"], row["recall"]) == (0.0, 0.0) and row["threshold"] is row["precision"] is None
    without = analysed(*split([], detections, "ABC", (1, 2))).to_json()
    for row in (without, *without["classes"]):
        assert row["F1"] is row["recall"] is None


def test_rows_are_true_and_columns_predicted():
    analysis = analysed(*split([("A", 0, BOX)], [("A", 1, BOX, 0.9)], "A", (1, 2)))
    assert cells(analysis) == {(0, 1): 1}
    written = analysis.to_json()["confusion_matrix"]
    assert written["counts"] == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert (written["rows"], written["columns"], written["classes"][-1]) == ("true", "predicted", "background")


def test_the_right_class_comes_first_and_then_the_iou():
    """The exact box of another class doesn't take an object from the right class; of two other classes IoU decides."""
    near, nearer = (10, 10, 20, 24), (10, 10, 20, 22)
    rows = [("A", 1, BOX, 0.9), ("A", 0, near, 0.5)]
    assert cells(analysed(*split([("A", 0, BOX)], rows, "A"))) == {(0, 0): 1, (3, 1): 1}
    rows = [("A", 1, near, 0.9), ("A", 2, nearer, 0.5), ("B", 0, BOX, 0.4)]
    objects = [("A", 0, BOX), ("B", 0, BOX)]
    assert cells(analysed(*split(objects, rows, "AB"))) == {(0, 0): 1, (0, 2): 1, (3, 1): 1}


def test_crowds_and_what_lies_in_them_are_left_out():
    objects = [("A", 0, (0, 0, 50, 50), True), ("A", 0, FAR)]
    rows = [("A", 0, BOX, 0.9), ("A", 0, (20, 20, 9, 9), 0.8), ("A", 1, BOX, 0.7), ("A", 0, FAR, 0.6)]
    assert cells(analysed(*split(objects, rows, "A"))) == {(0, 0): 1, (3, 1): 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_confusion_matrix_is_the_naive_one(seed):
    """At every score, and no object or detection is lost: rows are the objects, columns the detections."""
    truth, results = random_split(seed)
    analysis = analysed(truth, results)
    levels = np.arange(41) / 40
    states = outcomes(analysis.matching, levels)
    for level, least in enumerate(levels):
        np.testing.assert_array_equal(states.confusion(level, 3), naive_confusion(truth, results, least))
    per_image = states.errors_per_image(12, 4)
    wrong = states.confusion(12, 3) * ~np.eye(4, dtype=bool)
    assert per_image.sum() == wrong.sum()
    matching = analysis.matching
    np.testing.assert_array_equal(analysis.confusion[:-1].sum(axis=1), matching.objects_per_class)
    taken = (matching.scores >= analysis.threshold) & ~matching.ignored
    np.testing.assert_array_equal(
        analysis.confusion[:, :-1].sum(axis=0), np.bincount(matching.classes[taken], minlength=3)
    )


# --- F1 ---------------------------------------------------------------------------------------------------------------


def test_f1_counts_detections_of_classes_without_objects():
    """One right detection of .9, one of another class on an empty picture of .95: together 2·1 / (2 + 1)."""
    analysis = analysed(*split([("A", 0, BOX)], [("A", 0, BOX, 0.9), ("B", 1, BOX, 0.95)], "AB", (1, 2)))
    assert analysis.best == pytest.approx((0.9, 2 / 3, 0.5, 1.0))
    assert analysis.thresholds[0] == pytest.approx((0.9, 1.0, 1.0, 1.0)) and analysis.thresholds[1] is None
    written = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert written["threshold"] == 0.9 and written["F1"] == pytest.approx(2 / 3)
    row = written["classes"][1]
    assert row == {"id": 2, "name": "class 2", "objects": 0, "detections": 1} | dict.fromkeys(
        ("AP", "AP50", "threshold", "F1", "precision", "recall")
    )
    curves = written["F1_at_score"]
    at = curves["score"].index(0.9)
    assert curves["all"][at] == 0.6667 and curves["mean"][at] == 1.0 and curves["classes"]["class 2"] is None
    assert written["precision_at_recall"]["classes"]["class 2"] is None
    assert len(written["classes"]) == len(curves["classes"]) == 2


def test_mean_f1_is_the_mean_of_the_classes():
    """Class 0: 1 of 2 found, nothing wrong: 2/3. Class 1: 1 of 1 found, one wrong: 2/3. Class 2: nothing found: 0."""
    objects = [("A", 0, BOX), ("A", 0, FAR), ("B", 1, BOX), ("C", 2, BOX)]
    rows = [("A", 0, BOX, 0.9), ("B", 1, BOX, 0.9), ("B", 1, FAR, 0.9)]
    analysis = analysed(*split(objects, rows, "ABC"))
    assert analysis.f1["mean"][0] == pytest.approx(4 / 9) and analysis.f1["all"][0] == pytest.approx(4 / 7)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_threshold_is_the_naive_one(seed):
    truth, results = random_split(seed)
    analysis = analysed(truth, results)
    objects = sum(not row["iscrowd"] for row in truth["annotations"])
    best = (0.0, None)
    for least in sorted({row["score"] for row in results}, reverse=True):
        kept = [row for row in results if row["score"] >= least]
        found, ignored = naive_match(truth, kept)
        f1 = 2 * len(found) / max(1, len(kept) - len(ignored) + objects)
        best = max(best, (f1, least), key=lambda one: one[0])
    assert (analysis.best is None) == (best[1] is None)
    if analysis.best:
        assert (analysis.best.f1, analysis.best.score) == pytest.approx(best)
        assert analysis.f1["all"][analysis.level] == pytest.approx(best[0])
        assert analysis.levels[analysis.level] == best[1]


def test_a_threshold_takes_equal_scores_together():
    hits, scores = np.array([True, False, True]), np.array([0.9, 0.5, 0.5])
    assert best_threshold(hits, scores, 2) == pytest.approx((0.5, 0.8, 2 / 3, 1.0))
    assert best_threshold(np.zeros(3, bool), scores, 2) is None and best_threshold(hits, scores, 0) is None


# --- Kinds of errors --------------------------------------------------------------------------------------------------


def test_a_duplicate_before_the_last_hit_costs_what_it_should():
    """Hit .9, duplicate .8, hit .7 of two objects: precision 1 at 51 recalls and 2/3 at 50."""
    objects = [("A", 0, BOX), ("A", 0, FAR)]
    rows = [("A", 0, BOX, 0.9), ("A", 0, (10, 10, 20, 22), 0.8), ("A", 0, FAR, 0.7)]
    errors = analysed(*split(objects, rows, "A")).errors
    assert errors.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert errors.counts == {**dict.fromkeys(KINDS, 0), "duplicate": 1}
    assert errors.costs == pytest.approx({**dict.fromkeys(KINDS, 0.0), "duplicate": 50 / 3 / 101})
    late = [*rows[::2], (*rows[1][:3], 0.1)]  # a duplicate after the last hit is counted and costs nothing
    errors = analysed(*split(objects, late, "A")).errors
    assert errors.counts["duplicate"] == 1 and errors.costs["duplicate"] == 0.0


@pytest.mark.parametrize(
    ("detection", "kind", "cost"),
    [
        ((1, BOX), "classification", 1.0),
        ((0, (10, 10, 20, 50)), "localisation", 1.0),
        ((1, (10, 10, 20, 50)), "both", 0.0),
        ((0, FAR), "background", 0.0),
        ((0, (28, 28, 20, 20)), "background", 0.0),
    ],
)
def test_each_kind(detection, kind, cost):
    """One object and one detection: mended, the first two find it; the others go, and the object stays missed."""
    analysis = analysed(*split([("A", 0, BOX)], [("A", *detection, 0.9)], "A"))
    missed = int(cost == 0)
    assert analysis.errors.counts == {**dict.fromkeys(KINDS, 0), kind: 1, "missed": missed}
    assert analysis.errors.costs == pytest.approx({**dict.fromkeys(KINDS, 0.0), kind: cost, "missed": missed})


def test_the_larger_overlap_names_the_error():
    """IoU .4 with its own class and .8 with another: the place is right, the class isn't."""
    objects = [("A", 0, (10, 10, 20, 50)), ("A", 1, (10, 10, 20, 25))]
    assert analysed(*split(objects, [("A", 0, BOX, 0.9)], "A")).errors.counts["classification"] == 1


def test_objects_beyond_the_limit_are_no_errors():
    """150 objects in a picture, all found: AP50 is that of 100 detections, and no kind of errors costs anything."""
    boxes = [(20 * (i % 15), 20 * (i // 15), 10, 10) for i in range(150)]
    case = split([("A", 0, box) for box in boxes], [("A", 0, box, 1 - i / 1000) for i, box in enumerate(boxes)], "A")
    limited, whole = analysed(*case), analysed(*case, max_detections=150)
    assert limited.errors.ap50 == pytest.approx(67 / 101) and whole.errors.ap50 == pytest.approx(1.0)
    for analysis in (limited, whole):
        assert set(analysis.errors.counts.values()) == {0} and set(analysis.errors.costs.values()) == {0.0}
        assert cells(analysis) == {(0, 0): 150}, "the limit is AP's alone"
    assert (limited.errors.beyond_limit, whole.errors.beyond_limit) == (50, 0)
    assert limited.limit_note() in limited.text() and whole.limit_note() not in whole.text()


def test_the_limit_changes_nothing_of_equal_overlaps():
    """The eleventh detection overlaps two objects alike and takes the last, so that the twelfth finds the first."""
    others = [(30 * i, 60, 10, 10) for i in range(10)]
    objects = [("A", 0, box) for box in (*others, (10, 10, 20, 20), (16, 10, 20, 20))]
    boxes = [*others, (13, 10, 20, 20), (5, 10, 20, 20)]
    case = split(objects, [("A", 0, box, 0.9 - 0.01 * i) for i, box in enumerate(boxes)], "A")
    whole, limited = analysed(*case), analysed(*case, max_detections=10)
    assert cells(limited) == cells(whole) == {(0, 0): 12}


@pytest.mark.parametrize("objects", [[("A", 0, BOX)], []])
@pytest.mark.parametrize("detections", [[("A", 0, FAR, 0.2)], []])
def test_nothing_to_compare_is_null(objects, detections):
    """Neither an exception nor NaN; what is undetermined is null and is printed as a dash."""
    analysis = analysed(*split(objects, detections, "AB"))
    written = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert written["threshold"] is None and written["errors"]["AP50"] == (0.0 if objects else None)
    assert written["errors"]["kinds"]["missed"]["AP50_cost"] == (1.0 if objects else None)
    assert written["F1_at_score"]["all"] == ([0.0] * 101 if objects else None)
    assert "—" in analysis.text() and "nan" not in analysis.text().lower()


def test_the_base_is_evaluates_ap50():
    """A false alarm of a class without objects changes neither; nor do crowds and limits of published samples."""
    case = split([("A", 0, BOX)], [("A", 0, BOX, 0.5), ("A", 1, FAR, 0.9)], "A", (1, 2))
    assert analysed(*case).errors.ap50 == coco_scores(*case).metrics["AP50"] == pytest.approx(1.0)
    for path in sorted(SAMPLES.glob("*.json")):
        sample = json.loads(path.read_text())
        truth = sample["ground_truth"]
        rows = [{"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row} for row in truth["annotations"]]
        analysis = analysed({**truth, "annotations": rows}, sample["results"])
        assert analysis.errors.ap50 == analysis.metrics["AP50"]
        assert np.mean([one for one in analysis.ap50 if one is not None]) == pytest.approx(analysis.errors.ap50)


def naive_kinds(truth, results):
    """(kind, object) of each detection by the definitions; the larger overlap first, then the right class."""
    found, ignored = naive_match(truth, results)
    kinds = []
    for d, row in enumerate(results):
        best = {True: (0.0, None), False: (0.0, None)}
        for o, thing in enumerate(truth["annotations"]):
            if thing["image_id"] == row["image_id"] and not thing["iscrowd"]:
                overlap = box_iou(xyxy(row["bbox"]), xyxy(thing["bbox"]))
                same = thing["category_id"] == row["category_id"]
                best[same] = max(best[same], (overlap, o), key=lambda one: one[0])
        if d in found or d in ignored:
            kinds.append((RIGHT if d in found else NOT_COUNTED, None))
        elif best[True][0] >= 0.5:
            kinds.append(("duplicate", None))
        elif best[False][0] >= 0.5:
            kinds.append(("classification", best[False][1]))
        elif best[True][0] >= 0.1:
            kinds.append(("localisation", best[True][1]))
        else:
            kinds.append(("both" if best[False][0] >= 0.1 else "background", None))
    return found, kinds


def mended(truth, results, kind, found, kinds):
    """A split and results without the errors of one kind."""
    about = {target for _, target in kinds if target is not None}
    if kind == "missed":
        rows = enumerate(truth["annotations"])
        kept = [row for o, row in rows if row["iscrowd"] or o in found.values() or o in about]
        return {**truth, "annotations": kept}, results
    rows, served = {}, set(found.values())
    for d in sorted(range(len(results)), key=lambda d: -results[d]["score"]):
        row, (name, target) = results[d], kinds[d]
        if name != kind:
            rows[d] = row
        elif target is not None and target not in served:
            served.add(target)
            thing = truth["annotations"][target]
            rows[d] = {**row, "category_id": thing["category_id"], "bbox": thing["bbox"]}
    return truth, [rows[d] for d in sorted(rows)]


@pytest.mark.once
@pytest.mark.parametrize("seed", SEEDS)
def test_costs_are_what_pycocotools_finds_after_mending(seed):
    truth, results = random_split(seed)
    # Equal scores are ranked by their order, which a changed class would change: none here.
    results = [{**row, "score": row["score"] + 1e-6 * number} for number, row in enumerate(results)]
    analysis = analysed(truth, results)
    errors, (found, kinds) = analysis.errors, naive_kinds(truth, results)
    missed = len(truth["annotations"]) - sum(row["iscrowd"] for row in truth["annotations"])
    missed -= len(set(found.values()) | {target for _, target in kinds if target is not None})
    names = [name for name, _ in kinds]
    assert errors.counts == {**{kind: names.count(kind) for kind in KINDS}, "missed": missed}
    np.testing.assert_array_equal(analysis.error_counts[:, 0], list(errors.counts.values()))
    base = coco_scores(truth, results).metrics["AP50"]
    if base < 0:
        assert errors.ap50 is None and set(errors.costs.values()) == {None}
        return
    assert errors.ap50 == base == analysis.metrics["AP50"]
    for kind in KINDS:
        scores = coco_scores(*mended(truth, results, kind, found, kinds))
        curves = scores.precision[0].mean(axis=0)
        with_objects = analysis.matching.objects_per_class > 0
        curves[curves < 0] = 1.0  # no object is left
        assert errors.costs[kind] == pytest.approx(curves[with_objects].mean() - base, abs=1e-9), kind
        assert errors.costs[kind] >= -1e-12


def test_precision_is_interpolated_as_pycocotools_does():
    """Right, wrong, right of 4 objects: 1 up to recall .25 (26 recalls), 2/3 up to .5 (25), nothing beyond."""
    curve = precisions(np.array([True, False, True]), 4)
    np.testing.assert_allclose(curve, [1.0] * 26 + [2 / 3] * 25 + [0.0] * 50)


def test_the_naive_crowd_is_a_share_of_the_detection():
    assert share_inside((0, 0, 10, 10), (5, 0, 100, 100)) == pytest.approx(0.5)


def test_scores_outside_0_to_1():
    """Other programs' logits: levels span them, and the matrix has every detection at the lowest."""
    rows = [("A", 0, BOX, -3.5), ("A", 1, FAR, 12.0)]
    analysis = analysed(*split([("A", 0, BOX)], rows, "A"))
    assert analysis.levels[0] == -3.5 and analysis.levels[-1] == 12.0 and analysis.best.score == -3.5
    assert cells(analysis, 0) == {(0, 0): 1, (3, 1): 1}


def test_tables_of_many_classes_are_cut():
    ids = tuple(range(1, 131))
    rows = [("A", 0, BOX, 0.9), ("A", 2, FAR, 0.9)]
    text = analysed(*split([("A", 0, BOX), ("A", 1, FAR)], rows, "A", ids)).text()
    assert len(text.splitlines()) < 130 and "class 2 taken for class 3" in text


# --- The threshold that predict takes -------------------------------------------------------------------------------


def test_the_newest_evaluation_gives_the_threshold(tmp_path):
    contents = {"old": {"threshold": 0.2}, "val": {"threshold": 0.7}, "": {"AP": 0.5}}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.json").write_text('{"loss": 1}\n{"loss": 2}\n')
    for number, (place, content) in enumerate(contents.items()):
        (tmp_path / place).mkdir(exist_ok=True)
        path = tmp_path / place / "metrics.json"
        path.write_text(json.dumps(content))
        os.utime(path, (number, number))
    assert stored_threshold(tmp_path) == (0.7, tmp_path / "val" / "metrics.json")
    (tmp_path / "val" / "metrics.json").write_text('{"threshold": null}')
    with pytest.raises(InputError, match="no best score"):
        stored_threshold(tmp_path)


def test_a_threshold_belongs_to_sizes_augmentation_and_tiles(tmp_path):
    """Thresholds and counts of the detector don't change scores; training's own metrics.json is of the plain one."""
    plain = {"image_size": 64, "max_size": 96, "resize": "shorter_side", "nms_iou": 0.5}
    tiled = {**plain, "tiles": 400, "tile_overlap": 0.2}
    contents = {
        ".": {"threshold": 0.4},
        "plain": {"threshold": 0.5, "detector": {**plain, "nms_iou": 0.7}},
        "large": {"threshold": 0.6, "detector": {**plain, "image_size": 96}},
        "tiles": {"threshold": 0.7, "detector": tiled},
        "results": {"threshold": 0.8, "detector": {}},  # of finished detections, whose detector isn't known
    }
    for number, (place, content) in enumerate(contents.items()):
        (tmp_path / place).mkdir(exist_ok=True)
        path = tmp_path / place / "metrics.json"
        path.write_text(json.dumps(content))
        os.utime(path, (number, number))
    assert stored_threshold(tmp_path, plain)[0] == 0.5 and stored_threshold(tmp_path, tiled)[0] == 0.7
    assert stored_threshold(tmp_path)[0] == 0.7
    (tmp_path / "plain/metrics.json").unlink()
    assert stored_threshold(tmp_path, plain)[0] == 0.4
    with pytest.raises(InputError, match=r"no evaluation with this detector's .* \(3 with others\)"):
        stored_threshold(tmp_path, {**tiled, "tiles": 300})


def test_without_an_evaluation_one_sentence(tmp_path):
    with pytest.raises(InputError, match="finds no evaluation in .* or give a number"):
        stored_threshold(tmp_path)
    with pytest.raises(InputError, match="is none: give a number"):
        stored_threshold("torchvision/retinanet_resnet50_fpn")
