"""Boxes and annotations that are odd: what `prepare` does with each, and what it says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.config.presets import presets
from retinanet_tf.data.inspect.report import inspect
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from tests.data.test_prepare import SIZES, quiet
from tests.datasets import annotation, picture, write_coco


def by_hand(**columns):
    image = ImageAnnotations(0, Path("000000.png"), **columns)
    return Annotations("by hand", [image], LabelMap([7], ["cup"]))


def test_annotations_by_hand_need_boxes_and_categories_alone(tmp_path):
    Image.fromarray(picture(48, 64)).save(tmp_path / "000000.png")
    quiet(by_hand(boxes=[[1, 2, 30, 40], [5, 5, 9, 9]], category_ids=[7, 7]), tmp_path, tmp_path / "out")
    (record,) = read_records(str(tmp_path / "out" / "train-*"))
    assert record.annotations.boxes.tolist() == [[1, 2, 30, 40], [5, 5, 9, 9]]
    assert record.annotations.area.tolist() == [29 * 38, 16] and not record.annotations.iscrowd.any()
    assert record.annotations.annotation_ids.tolist() == [1, 2]


def test_a_set_none_of_whose_boxes_can_be_used_is_refused(tmp_path):
    Image.fromarray(picture(48, 64)).save(tmp_path / "000000.png")
    boxes = [[30, 40, 1, 2], [5, 5, 5, 9], [100, 5, 120, 9]]  # swapped, without width, outside
    with pytest.raises(InputError, match="none of the 3 boxes of by hand can be used"):
        quiet(by_hand(boxes=boxes, category_ids=[7] * 3), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"boxes": [[1, 2, 3, 4.5]], "category_ids": [7, 7]},
            r"000000.png has 1 boxes, but category_ids of shape \(2,\)",
        ),
        ({"boxes": [[1, 2, np.nan, 4]], "category_ids": [7]}, "000000.png of by hand has a box that is NaN"),
        ({"boxes": [[1, 2, 30, 4]], "category_ids": [3]}, "000000.png of by hand has category id 3"),
    ],
)
def test_wrong_annotations_by_hand_are_refused(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        quiet(by_hand(**columns), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_boxes_are_treated_by_rule_and_named(tmp_path):
    path, images = write_coco(tmp_path, [(64, 48), (64, 48)], boxes_an_image=0)
    content = json.loads(path.read_text())
    content["annotations"] = [
        annotation(1, 1, [10, 10, 20, 20]),
        annotation(2, 1, [-5, 40, 20, 20]),  # overhangs: cut to [0, 40, 15, 48]
        annotation(3, 1, [10, 10, 0, 5]),  # no width
        annotation(4, 1, [10, 10, 5, -5]),  # negative height
        annotation(5, 1, [70, 10, 5, 5]),  # outside
        annotation(6, 1, [10, 10, 20, 20]),  # repeats 1
        annotation(7, 1, [10, 10, 20, 20], 3),  # same place, another category: fine
        annotation(8, 1, [-3, -3, 200, 200], iscrowd=1),
    ]
    path.write_text(json.dumps(content))
    summary = quiet(path, images, tmp_path / "out")
    named = {kind: [(f["image"], f["detail"][:12]) for f in found] for kind, found in summary["findings"].items()}
    assert named["clipped_boxes"] == [("000000.jpg", "annotation 2"), ("000000.jpg", "annotation 8")]
    assert named["zero_size_boxes"] == [("000000.jpg", "annotation 3"), ("000000.jpg", "annotation 4")]
    assert named["outside_boxes"] == [("000000.jpg", "annotation 5")]
    assert summary["findings"]["duplicate_boxes"] == [
        {"image": "000000.jpg", "detail": "annotation 6 repeats annotation 1"}
    ]
    first, second = read_records(str(tmp_path / "out" / "train-*"))
    assert first.annotations.annotation_ids.tolist() == [1, 2, 6, 7, 8]
    np.testing.assert_array_equal(first.annotations.boxes[[1, 4]], [[0, 40, 15, 48], [0, 0, 64, 48]])
    assert first.annotations.iscrowd.tolist() == [False] * 4 + [True]
    # The area of a box that was cut is the rest's, as it was its box's.
    assert first.annotations.area.tolist() == [400, 120, 400, 400, 64 * 48]
    assert sum(summary["categories"].values()) == 4, "a crowd is no object"
    assert len(second.annotations) == 0 and summary["images_without_objects"] == 1
    assert summary["counts"]["zero_size_boxes"] == 2 and summary["boxes"] == 5 and summary["crowds"] == 1


def test_the_dirty_boxes_of_bccd_are_dropped_and_named(test_data, tmp_path):
    raw = json.loads((test_data / "bccd" / "dirty" / "instances_dirty.json").read_text())
    zero = [a for a in raw["annotations"] if min(a["bbox"][2:]) <= 0]
    summary = quiet(test_data / "bccd" / "dirty" / "instances_dirty.json", test_data / "bccd" / "images", tmp_path)
    assert summary["counts"]["zero_size_boxes"] == len(zero) == 2
    assert summary["boxes"] == len(raw["annotations"]) - 2
    for box, finding in zip(zero, summary["findings"]["zero_size_boxes"], strict=True):
        assert finding["detail"].startswith(f"annotation {box['id']} ")
        assert finding["image"] in [i["file_name"] for i in raw["images"] if i["id"] == box["image_id"]]


@pytest.mark.parametrize(
    ("name", "crowds", "outcome"),
    [
        *[(name, None, "has no box at all") for name in ("val", "background", "test2017")],
        *[(name, all, "all 8 boxes of .* are crowds") for name in ("train", "val")],
        *[(name, None, InputError) for name in ("train", "trainval", "train2017")],
    ],
)
def test_a_split_without_an_object_to_learn(tmp_path, name, crowds, outcome):
    path, images = write_coco(tmp_path, SIZES)
    content = json.loads(path.read_text())
    content["annotations"] = [{**one, "iscrowd": 1} for one in content["annotations"]] if crowds else []
    path.write_text(json.dumps(content))
    if outcome is InputError:
        with pytest.raises(InputError, match="has no box at all"):
            quiet(path, images, tmp_path / "out", name)
        assert not (tmp_path / "out").exists()
    else:
        summary = quiet(path, images, tmp_path / "out", name)
        assert any(re.search(outcome, warning) for warning in summary["warnings"])
        assert len(list(read_records(str(tmp_path / "out" / f"{name}-*")))) == len(SIZES)


@pytest.mark.parametrize("kind", ["copy", "name", "crowds", "no bbox"])
def test_summary_and_data_report_say_what_is_odd(tmp_path, kind):
    path, images = write_coco(tmp_path, SIZES)
    content = json.loads(path.read_text())
    match kind:
        case "copy":
            content["images"].append({**content["images"][2], "id": 5})
            said = "images listed more than once: 1, such as 000002.jpg (2 times)"
        case "name":
            content["categories"].append({"id": 50, "name": "cup"})
            said = "several categories are named 'cup'"
        case "crowds":
            content["annotations"] = [{**one, "iscrowd": True} for one in content["annotations"]]
            said = "all 8 boxes"
        case "no bbox":
            content["annotations"][3]["bbox"] = [[1, 2], [3, 4]]
            said = "annotations left out for their bbox: 1, the first is annotation 4"
    path.write_text(json.dumps(content))
    read = read_coco(path, skip_bad=True)
    report = inspect(read, presets["mini"], str(images))
    for sentences in (quiet(read, images, tmp_path / "out")["warnings"], report.warnings + report.errors):
        assert any(said in sentence for sentence in sentences)
