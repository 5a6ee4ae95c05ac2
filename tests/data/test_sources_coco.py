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
    copied = {**bare, "file_name": "a.jpg"}  # as some converters repeat it
    assert len(read_coco(write(tmp_path / "c.json", annotations=[copied])).images[0]) == 1
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
    "no bbox": ({"annotations": [{"id": 1, "image_id": 1, "category_id": 3}]}, "annotation 1 has bbox None"),
    "a text as id": ({"images": [{"id": "x", "file_name": "a"}]}, r"images\[0\] has no integer id"),
    "no file name": ({"images": [{"id": 3}]}, "image 3 has the file_name None"),
    "no size": ({"images": [{"id": 3, "file_name": "a", "width": 0, "height": 4}]}, "image 3 has width 0"),
    "no list": ({"annotations": {}}, "has no list 'annotations'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        read_coco(write(tmp_path / "bad.json", **change))
    assert "bad.json" in str(caught.value) and "\n" not in str(caught.value)


# --- Odd fields -------------------------------------------------------------------------------------------------------


ANNOTATION = annotation(4, 1, [1, 2, 3, 4])
BEYOND = [2**63, -(2**63) - 1, 10**25, 10**350, 1e300, float("inf"), float("nan")]
NO_NUMBER = [True, "7", None, [7], {"x": 7}]


@pytest.mark.parametrize("value", [*BEYOND, *NO_NUMBER])
@pytest.mark.parametrize("place", range(4))
def test_a_bbox_is_four_finite_numbers(tmp_path, value, place):
    bbox = [1, 2, 3, 4]
    bbox[place] = value
    path = write(tmp_path / "bad.json", annotations=[ANNOTATION | {"id": 3}, ANNOTATION | {"bbox": bbox}])
    with pytest.raises(InputError, match=r"bad.json: annotation 4 has bbox .*\[") as caught:
        read_coco(path)
    assert len(str(caught.value)) < 400
    read = read_coco(path, skip_bad=True)
    assert read.images[0].annotation_ids.tolist() == [3] and "annotation 4" in read.warnings[0]


@pytest.mark.parametrize("bbox", [None, [], [[1, 2], [3, 4]], [[1], [2], [3], [4]], {"x": 1}, "1 2 3 4", 5, [1] * 8])
def test_a_bbox_of_another_shape_is_named_or_skipped(tmp_path, bbox):
    path = write(tmp_path / "bad.json", annotations=[ANNOTATION | {"bbox": bbox, "id": None}] * 2)
    with pytest.raises(InputError, match=r"annotations\[0\] has bbox"):
        read_coco(path)
    assert not len(read_coco(path, skip_bad=True).images[0])


@pytest.mark.parametrize("key", ["id", "image_id", "category_id"])
@pytest.mark.parametrize("value", [2**63, -(10**30), 1.0, "1", True, [1]])
def test_ids_are_integers_of_64_bits(tmp_path, key, value):
    with pytest.raises(InputError, match=rf"bad.json: annotation.* has {key} "):
        read_coco(write(tmp_path / "bad.json", annotations=[ANNOTATION | {key: value}]))
    if key == "image_id":
        with pytest.raises(InputError, match=r"images\[0\] has no integer id"):
            read_coco(write(tmp_path / "bad.json", images=[{"id": value, "file_name": "a.jpg"}], annotations=[]))


@pytest.mark.parametrize("value, crowd", [(None, False), (0, False), (False, False), (1, True), (True, True)])
def test_iscrowd(tmp_path, value, crowd):
    read = read_coco(write(tmp_path / "a.json", annotations=[ANNOTATION | {"iscrowd": value}]))
    assert read.images[0].iscrowd.tolist() == [crowd]


@pytest.mark.parametrize("field", [{"iscrowd": "0"}, {"iscrowd": 2}, {"iscrowd": []}, {"area": "9"}, {"area": 10**30}])
def test_no_flag_and_no_area(tmp_path, field):
    with pytest.raises(InputError, match=f"annotation 4 has {next(iter(field))}"):
        read_coco(write(tmp_path / "bad.json", annotations=[ANNOTATION | field]))


@pytest.mark.parametrize("area", [None, -1, -1457.5])
def test_an_area_that_none_can_be_is_the_box(tmp_path, area):
    read = read_coco(write(tmp_path / "a.json", annotations=[ANNOTATION | {"area": area}]))
    assert read.images[0].area.tolist() == [12.0]


@pytest.mark.parametrize("ids", [[None, None, None], [2, None, None], [None, 1, None], [None, 2**63 - 1, 1]])
def test_missing_annotation_ids_are_numbered(tmp_path, ids):
    rows = [
        {key: value for key, value in (ANNOTATION | {"id": i}).items() if i is not None or key != "id"} for i in ids
    ]
    found = read_coco(write(tmp_path / "a.json", annotations=rows)).images[0].annotation_ids.tolist()
    assert len(set(found)) == 3 and all(given in (None, one) for given, one in zip(ids, found, strict=True))


NO_NAMES = [None, 7, "", ["cup"], {"en": "cup"}, "a\0b", "\ud83d", "x\udcff"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_are_texts(tmp_path, name):
    with pytest.raises(InputError, match="bad.json: categories: a category has id 5 and name"):
        read_coco(write(tmp_path / "bad.json", annotations=[], categories=[{"id": 5, "name": name}]))
    with pytest.raises(InputError, match="bad.json: image 1 has the file_name"):
        read_coco(write(tmp_path / "bad.json", annotations=[], images=[{"id": 1, "file_name": name}]))


@pytest.mark.parametrize("images", [[], [{"id": 2, "file_name": "a.jpg"}]])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_annotations_of_images_that_are_not_there(tmp_path, images, count):
    rows = [annotation(i, 1, [1, 1, 1, 1]) for i in range(7, 7 + count)]
    with pytest.raises(InputError, match=rf"annotation 7 belongs to image id 1, .* \({count} such"):
        read_coco(write(tmp_path / "bad.json", images=images, annotations=rows))


# --- One image, several entries; one name, several categories ---------------------------------------------------------


@pytest.mark.parametrize("other", ["s/a.jpg", "./s/a.jpg", "s//a.jpg", "s/../s/a.jpg", "s\\a.jpg", ".\\s\\a.jpg"])
def test_an_image_that_is_listed_again_is_one_image(tmp_path, other):
    size = {"width": 40, "height": 30}
    images = [{"id": 5, "file_name": "s/a.jpg"}, {"id": 2, "file_name": "a.jpg"}, {"id": 9, "file_name": other, **size}]
    rows = [annotation(k, i, [x, 1, 5, 5]) for k, i, x in ((1, 9, 1), (2, 2, 1), (3, 5, 1), (4, 5, 7), (5, 9, 9))]
    read = read_coco(write(tmp_path / "a.json", images, rows))
    first, second = read.images
    # Objects 1 and 3 are the same; the entry that comes first has its id and its objects first.
    assert (first.image_id, first.file_name, first.width, first.height) == (5, "s/a.jpg", 40, 30)
    assert first.annotation_ids.tolist() == [3, 4, 5] and first.boxes[:, 0].tolist() == [1, 7, 9]
    assert second.image_id == 2 and second.annotation_ids.tolist() == [2]
    assert len(read.warnings) == 1 and "s/a.jpg (2 times)" in read.warnings[0]


@pytest.mark.parametrize("key", ["width", "height"])
def test_entries_of_one_image_agree_on_its_size(tmp_path, key):
    images = [{"id": i, "file_name": "a.jpg", "width": 40, "height": 30} for i in (1, 2, 3)]
    images[2][key] = 41
    with pytest.raises(InputError, match=f"images 1, 2, 3 are all a.jpg, but differ in {key}"):
        read_coco(write(tmp_path / "bad.json", images))


@pytest.mark.parametrize("ids", [(0, 1), (9, 4, 1), (-1, 2**40)])
def test_categories_of_one_name_are_kept_apart(tmp_path, ids):
    categories = [{"id": i, "name": "fish"} for i in ids] + [{"id": 50, "name": "cup"}]
    rows = [annotation(i, 1, [1, 1, i, 1], ids[i % len(ids)]) for i in range(1, 5)]
    read = read_coco(write(tmp_path / "a.json", annotations=rows, categories=categories))
    assert read.images[0].category_ids.tolist() == [row["category_id"] for row in rows]
    assert set(read.label_map.unique_names) == {f"fish ({i})" for i in ids} | {"cup"}
    assert "'fish'" in read.warnings[0]


# --- Files that are no JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5,
        '{"a":' * 10**5,
        "9" * 5000,
        "-" + "1" * 4301,
        '{"images": [' + "7" * 9999 + "]}",
        "{'a': 1}",
        "{} {}",
    ],
)
def test_json_that_python_cannot_read(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="annotation file .*x.json"):
        read_coco(tmp_path / "x.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark(tmp_path, encoding):
    path = write(tmp_path / "a.json", categories=[{"id": 7, "name": "żółw"}])
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding=encoding)
    assert read_coco(path).label_map.names == ("żółw",)


@pytest.mark.parametrize("encoding", ["cp1250", "iso8859-2", "utf-16-le", "utf-32"])
def test_json_of_another_encoding_is_an_error(tmp_path, encoding):
    path = write(tmp_path / "a.json", categories=[{"id": 7, "name": "żółw"}])
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding=encoding)
    with pytest.raises(InputError, match=r"a\.json isn't text in UTF-.*: line 1 has .*; save it as UTF-8"):
        read_coco(path)


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


@pytest.mark.parametrize("name", NO_NAMES)
def test_categories_have_names(name):
    with pytest.raises(InputError, match="a category has id 2 and name"):
        LabelMap([1, 2], ["a", name])


@pytest.mark.parametrize("category", [True, 1.7, "1", None, 2**63, np.uint64(2**63)])
def test_ids_of_a_label_map_are_integers_of_64_bits(category):
    assert LabelMap(np.array([7, 5], np.int16), ["cup", "cat"]).ids == (5, 7)
    with pytest.raises(InputError, match="a category has id .* and name 'cup'"):
        LabelMap([category], ["cup"])
    with pytest.raises(InputError, match="2 ids and 1 names"):
        LabelMap([1, 2], ["cup"])


@pytest.mark.parametrize("text", ["{}", "[]", '[{"name": "x"}]', "nonsense", '[{"id": "1"}]'])
def test_a_file_that_is_no_label_map(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match="bad.json"):
        LabelMap.load(tmp_path / "bad.json")
