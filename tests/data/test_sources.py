"""Pascal VOC, CSV and the paper's splits: read as defined, and faults are named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.sources.voc import read_voc
from retinanet_tf.errors import InputError
from tests.datasets import CATEGORIES, annotation, picture

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


def voc_xml(file_name, objects, size=(40, 30)):
    parts = [f"<filename>{file_name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"]
    for name, box, difficult in objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        parts.append(OBJECT.format(name, difficult, "".join(f"<{k}>{v}</{k}>" for k, v in corners)))
    return f"<annotation>{''.join(parts)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "VOC2012"
    for inner in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / inner).mkdir(parents=True)
    for number, objects in enumerate(
        ([("dog", (1, 1, 40, 30), 0), ("cat", (3, 4, 10, 9), 1)], [], [("cat", (5.5, 6, 20, 21), 0)])
    ):
        (folder / "Annotations" / f"00{number}.xml").write_text(voc_xml(f"00{number}.jpg", objects))
        Image.fromarray(picture(40, 30, number)).save(folder / "JPEGImages" / f"00{number}.jpg")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("002\n000  1\n")
    return folder


def test_voc_boxes_are_one_based_and_include_their_last_pixel(voc):
    read = read_voc(voc)
    assert read.label_map == LabelMap([1, 2], ["cat", "dog"])
    assert [i.file_name for i in read.images] == ["000.jpg", "001.jpg", "002.jpg"]
    # A box from pixel 1 to pixel 40 of 40 is the whole width.
    np.testing.assert_array_equal(read.images[0].boxes, [[0, 0, 40, 30], [2, 3, 10, 9]])
    assert read.images[0].iscrowd.tolist() == [False, True] and read.images[0].category_ids.tolist() == [2, 1]
    assert (read.images[0].width, read.images[0].height) == (40, 30) and len(read.images[1]) == 0
    assert np.concatenate([i.annotation_ids for i in read.images]).tolist() == [1, 2, 3]


def test_voc_splits_keep_their_order_and_share_categories(voc, tmp_path):
    annotations, folder = read_source(voc, "train")
    assert [i.file_name for i in annotations.images] == ["002.jpg", "000.jpg"] and folder.endswith("JPEGImages")
    summary = prepare(annotations, folder, tmp_path / "out", progress=False)
    assert (summary["images"], summary["boxes"], summary["crowds"]) == (2, 3, 1)
    (voc / "ImageSets" / "Main" / "val.txt").write_text("002\n")
    labels = LabelMap.load(tmp_path / "out" / "labels.json")
    val, _ = read_source(voc, "val", labels)  # has cats only, and still dog is class 2
    assert val.label_map == labels
    prepare(val, folder, tmp_path / "out", "val", progress=False)
    with pytest.raises(InputError, match="'cat', which the label map lacks"):
        read_voc(voc, "val", LabelMap([1], ["dog"]))


def test_the_dirty_xml_of_bccd(test_data, tmp_path):
    # Two files as their project has them, with a zero-size box each.
    folder = tmp_path / "voc"
    shutil.copytree(test_data / "bccd" / "dirty", folder)
    for name in ("BloodImage_00338.jpg", "BloodImage_00343.jpg"):
        shutil.copy(test_data / "bccd" / "images" / name, folder / name)
    annotations, images = read_source(folder)
    assert images == str(folder)
    summary = prepare(annotations, images, tmp_path / "out", progress=False)
    assert summary["counts"]["zero_size_boxes"] == 2
    assert {f["image"] for f in summary["findings"]["zero_size_boxes"]} == {
        "BloodImage_00338.jpg",
        "BloodImage_00343.jpg",
    }
    json_boxes = json.loads((test_data / "bccd" / "dirty" / "instances_dirty.json").read_text())["annotations"]
    assert summary["boxes"] == len(json_boxes) - 2


VOC_BAD = {
    "no XML": ("<annotation>", "001.xml is not XML"),
    "no name": (voc_xml("1.jpg", [("", (1, 2, 3, 4), 0)]), "001.xml: object 1 has no name"),
    "no number": (voc_xml("1.jpg", [("cat", (1, 2, 3, "x"), 0)]), "001.xml: object 1 .cat. has bndbox"),
    "not finite": (voc_xml("1.jpg", [("cat", (1, 2, 3, "nan"), 0)]), "001.xml: object 1 .cat. has bndbox"),
    "one image twice": (voc_xml("000.jpg", []), "001.xml and 000.xml .* both about 000.jpg"),
}


@pytest.mark.parametrize("case", VOC_BAD)
def test_what_is_wrong_in_a_voc_folder_is_named(voc, case):
    content, message = VOC_BAD[case]
    (voc / "Annotations" / "001.xml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_voc(voc)


def test_missing_voc_files_are_named(voc, tmp_path):
    with pytest.raises(InputError, match="nowhere doesn't exist"):
        read_voc(tmp_path / "nowhere")
    with pytest.raises(InputError, match="Main/none.txt can't be read"):
        read_voc(voc, "none")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("077\n")
    with pytest.raises(InputError, match="077.xml can't be read"):
        read_voc(voc, "train")


@pytest.mark.parametrize("header", ["", "image,x1,y1,x2,y2,class\n", "\ufeffimage,x1,y1,x2,y2,class\r\n"])
def test_csv_lines_become_objects(tmp_path, header):
    body = 'a.jpg,1,2,3.5,4,cat\n"b, c.jpg",0,0,5,5,dog\na.jpg, 5 ,6,7,8,dog\nempty.jpg,,,,,\n\n'
    (tmp_path / "boxes.csv").write_text(header + body, encoding="utf-8")
    read = read_csv(tmp_path / "boxes.csv")
    assert read.label_map == LabelMap([1, 2], ["cat", "dog"])
    assert [i.file_name for i in read.images] == ["a.jpg", "b, c.jpg", "empty.jpg"]
    np.testing.assert_array_equal(read.images[0].boxes, [[1, 2, 3.5, 4], [5, 6, 7, 8]])
    assert read.images[0].category_ids.tolist() == [1, 2] and read.images[0].annotation_ids.tolist() == [1, 2]
    assert read.images[0].area.tolist() == [5.0, 4.0] and len(read.images[2]) == 0


def test_csv_goes_through_with_sizes_from_the_files(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(40, 30)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "boxes.csv").write_text("a.jpg,1,2,35,44,cat\n")
    prepare(read_csv(tmp_path / "boxes.csv"), tmp_path / "images", tmp_path / "out", progress=False)
    (record,) = read_records(str(tmp_path / "out" / "train-*"))
    assert (record.annotations.width, record.annotations.height) == (40, 30)
    np.testing.assert_array_equal(record.annotations.boxes, [[1, 2, 35, 30]])  # cut at the image's edge


CSV_BAD = {
    "five cells": ("a.jpg,1,2,3,cat\n", "line 1 has 5 cells"),
    "no image": ("a.jpg,1,2,3,4,cat\n,1,2,3,4,cat\n", "line 2 has 6 cells"),
    "a text": ("image,x1,y1,x2,y2,class\na.jpg,1,2,x,4,cat\n", "line 2 has the box 1,2,x,4"),
    "infinity": ("a.jpg,1,2,inf,4,cat\n", "line 1 has the box"),
    "no class": ("a.jpg,1,2,3,4,\n", "line 1 has class ''"),
    "nothing": ("image,x1,y1,x2,y2,class\n", "holds no line"),
    "no object": ("a.jpg,,,,,\n", "has no object"),
}


@pytest.mark.parametrize("case", CSV_BAD)
def test_what_is_wrong_in_a_csv_is_named(tmp_path, case):
    text, message = CSV_BAD[case]
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=f"bad.csv.*{message}"):
        read_csv(tmp_path / "bad.csv")


# --- The paper's splits -----------------------------------------------------------------------------------------------


def coco_file(path, ids, first_annotation):
    images = [{"id": i, "file_name": f"COCO_{i:012d}.jpg", "width": 40, "height": 30} for i in ids]
    rows = [annotation(first_annotation + k, i, [1, 1, 5, 5]) for k, i in enumerate(ids)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": CATEGORIES}))


@pytest.mark.parametrize("listed", ["instances_val2017.json", "instances_minival2014.json"])
def test_trainval35k_is_train_and_what_minival_leaves_of_val(tmp_path, listed):
    annotations = tmp_path / "annotations"
    coco_file(annotations / "instances_train2014.json", [9, 25, 30], 1)
    coco_file(annotations / "instances_val2014.json", [42, 73, 74, 133], 100)
    coco_file(annotations / listed, [73, 133], 100)
    train, folder = read_source(tmp_path, "trainval35k")
    assert [i.file_name for i in train.images] == [
        "train2014/COCO_000000000009.jpg",
        "train2014/COCO_000000000025.jpg",
        "train2014/COCO_000000000030.jpg",
        "val2014/COCO_000000000042.jpg",
        "val2014/COCO_000000000074.jpg",
    ]
    minival, _ = read_source(tmp_path, "minival")
    assert [i.image_id for i in minival.images] == [73, 133] and folder == str(tmp_path)
    for image in train.images:
        (tmp_path / image.file_name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(40, 30)).save(tmp_path / image.file_name)
    assert prepare(train, folder, tmp_path / "out", progress=False)["images"] == 5


def test_the_files_of_2017_are_the_same_splits(tmp_path):
    coco_file(tmp_path / "annotations" / "instances_train2017.json", [9, 42], 1)
    (tmp_path / "train2017").mkdir()
    train, folder = read_source(tmp_path, "trainval35k")
    assert [i.image_id for i in train.images] == [9, 42] and folder == str(tmp_path / "train2017")
    assert train.source == read_coco(tmp_path / "annotations" / "instances_train2017.json").source


def test_a_split_that_cannot_be_made_says_what_is_missing(tmp_path):
    coco_file(tmp_path / "annotations" / "instances_val2014.json", [42, 73], 1)
    with pytest.raises(InputError, match="nor a file that lists minival"):
        read_source(tmp_path, "minival")
    coco_file(tmp_path / "annotations" / "instances_val2017.json", [42, 99], 1)
    with pytest.raises(InputError, match="lacks 1 of the 2 images of minival"):
        read_source(tmp_path, "minival")
    with pytest.raises(InputError, match="instances_train2014.json can't be read"):
        read_source(tmp_path, "trainval35k")
    with pytest.raises(InputError, match="split=train goes with a folder"):
        read_source(tmp_path / "x.json", "train")
