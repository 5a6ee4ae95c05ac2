"""COCO JSON: contents are read unchanged, and every fault is one sentence that names it. Label maps."""

import json

import numpy as np
import pytest

from retinanet_tf.data.sources.coco import coco_to_xyxy, read_coco, xyxy_to_coco
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from tests.datasets import CATEGORIES, annotation


def write(path, images=None, annotations=None, categories=None):
    content = {
        "images": images if images is not None else [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}],
        "annotations": annotations if annotations is not None else [annotation(1, 1, [1, 2, 3, 4])],
        "categories": categories if categories is not None else CATEGORIES,
    }
    path.write_text(json.dumps(content))
    return path


def test_box_formats_are_inverse_and_continuous():
    boxes = np.random.default_rng(0).uniform(0, 100, (20, 4))
    np.testing.assert_allclose(xyxy_to_coco(coco_to_xyxy(boxes)), boxes, rtol=1e-13)
    np.testing.assert_array_equal(coco_to_xyxy([[10, 20, 5, 7]]), [[10, 20, 15, 27]])  # no +1
    assert coco_to_xyxy(np.zeros((0, 4))).shape == (0, 4)


def test_real_annotations_come_out_as_they_stand(test_data):
    path = test_data / "coco_ccby" / "instances_train.json"
    raw, read = json.loads(path.read_text()), read_coco(path)
    assert [i.image_id for i in read.images] == [i["id"] for i in raw["images"]]
    assert read.label_map.to_json() == [{"id": c["id"], "name": c["name"]} for c in raw["categories"]]
    assert read.label_map.num_classes == 80 and read.label_map.ids[-1] == 90
    for image in read.images:
        its = [a for a in raw["annotations"] if a["image_id"] == image.image_id]
        np.testing.assert_allclose(xyxy_to_coco(image.boxes), np.reshape([a["bbox"] for a in its], (-1, 4)), atol=1e-12)
        assert image.annotation_ids.tolist() == [a["id"] for a in its]
        assert image.category_ids.tolist() == [a["category_id"] for a in its]
        assert image.area.tolist() == [a["area"] for a in its]
        assert image.iscrowd.tolist() == [bool(a["iscrowd"]) for a in its]
    assert any(image.iscrowd.any() for image in read.images) and any(not len(image) for image in read.images)


def test_the_order_of_annotations_does_not_matter(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in (5, 2, 9)]
    rows = [annotation(k, i, [k, 1, 1, 1]) for k, i in enumerate((9, 5, 9, 2, 5), 1)]
    read = read_coco(write(tmp_path / "a.json", images, rows))
    assert [i.image_id for i in read.images] == [5, 2, 9]
    assert [i.annotation_ids.tolist() for i in read.images] == [[2, 5], [4], [1, 3]]


def test_masks_and_missing_optional_fields_are_no_obstacle(tmp_path):
    bare = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 5], "segmentation": [[0.0, 1.0] * 50]}
    read = read_coco(write(tmp_path / "a.json", annotations=[bare]))
    assert read.images[0].area.tolist() == [20.0] and not read.images[0].iscrowd.any()
    sizeless = read_coco(write(tmp_path / "b.json", images=[{"id": 1, "file_name": "a.jpg"}]))
    assert sizeless.images[0].width is None


BAD = {
    "an image id twice": ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "image id 1 is used"),
    "an annotation id twice": ({"annotations": [annotation(4, 1, [1, 1, 1, 1])] * 2}, "annotation id 4 is used 2"),
    "an unknown image": ({"annotations": [annotation(4, 8, [1, 1, 1, 1])]}, "annotation 4 belongs to image id 8"),
    "an unknown category": ({"annotations": [annotation(4, 1, [1, 1, 1, 1], 5)]}, "annotation 4 has category id 5"),
    "no categories": ({"categories": []}, "defines no categories"),
    "a category twice": ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1 is defined"),
    "three numbers": ({"annotations": [annotation(4, 1, [1, 1, 1, 1]) | {"bbox": [1, 2, 3]}]}, "annotation 4 has bbox"),
    "a text": ({"annotations": [annotation(4, 1, [1, 1, 1, 1]) | {"bbox": [1, 2, 3, "4"]}]}, "annotation 4 has bbox"),
    "not a number": ({"annotations": [annotation(4, 1, [1, 1, 1, float("nan")])]}, "annotation 4 has bbox"),
    "infinity": ({"annotations": [annotation(4, 1, [1, 1, float("inf"), 1])]}, "annotation 4 has bbox"),
    "no bbox": ({"annotations": [{"id": 1, "image_id": 1, "category_id": 3}]}, r"annotations\[0\] has no bbox"),
    "a text as id": ({"images": [{"id": "x", "file_name": "a"}]}, r"images\[0\] has no integer id"),
    "no file name": ({"images": [{"id": 3}]}, "image 3 has no file_name"),
    "no size": ({"images": [{"id": 3, "file_name": "a", "width": 0, "height": 4}]}, "image 3 has width 0"),
    "no list": ({"annotations": {}}, "has no list 'annotations'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        read_coco(write(tmp_path / "bad.json", **change))
    assert "bad.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\xff", '"text"'])
def test_a_file_that_is_no_annotation_file(tmp_path, content):
    (tmp_path / "x.json").write_text(content, encoding="latin1")
    with pytest.raises(InputError, match="x.json"):
        read_coco(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(InputError, match=f"annotation file {tmp_path / name} can't be read"):
        read_coco(tmp_path / name)


def test_labels_are_indices_in_the_order_of_ids(tmp_path):
    label_map = LabelMap([90, 3, 7], ["cup", "dog", "cat"])
    assert label_map.ids == (3, 7, 90) and label_map.names == ("dog", "cat", "cup") and label_map.num_classes == 3
    assert [label_map.to_index(i) for i in (3, 7, 90)] == [0, 1, 2]
    np.testing.assert_array_equal(label_map.to_index(np.array([[90, 3]])), [[2, 0]])
    with pytest.raises(InputError, match="category id 4"):
        label_map.to_index(4)
    label_map.save(tmp_path / "labels.json")
    assert json.loads((tmp_path / "labels.json").read_text())[0] == {"id": 3, "name": "dog"}
    assert LabelMap.load(tmp_path / "labels.json") == label_map


@pytest.mark.parametrize("text", ["{}", "[]", '[{"name": "x"}]', "nonsense", '[{"id": "1"}]'])
def test_a_file_that_is_no_label_map(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match="bad.json"):
        LabelMap.load(tmp_path / "bad.json")
