"""CSV of boxes: columns known by their names, empty pictures, faults named by line."""

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from tests.datasets import picture


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


def test_a_name_may_begin_with_a_blank(tmp_path):
    """Where there is such a picture; else blanks around a cell are left out."""
    Image.fromarray(picture(40, 30)).save(tmp_path / " a.jpg")
    (tmp_path / "boxes.csv").write_text(" a.jpg,1,2,35,14,cat\n b.jpg ,1,2,35,14,cat\n")
    assert [i.file_name for i in read_csv(tmp_path / "boxes.csv", images=tmp_path).images] == [" a.jpg", "b.jpg"]


CSV_BAD = {
    "five cells": ("a.jpg,1,2,3,cat\n", "line 1 has 5 cells"),
    "no image": ("a.jpg,1,2,3,4,cat\n,1,2,3,4,cat\n", "line 2 names no image"),
    "a text": ("image,x1,y1,x2,y2,class\na.jpg,1,2,x,4,cat\n", "line 2 has the box 1,2,x,4"),
    "infinity": ("a.jpg,1,2,inf,4,cat\n", "line 1 has the box"),
    "no class": ("a.jpg,1,2,3,4,\n", "line 1 has class ''"),
    "nothing": ("image,x1,y1,x2,y2,class\n", "has no object"),
    "no object": ("a.jpg,,,,,\n", "has no object"),
}


@pytest.mark.parametrize("case", CSV_BAD)
def test_what_is_wrong_in_a_csv_is_named(tmp_path, case):
    text, message = CSV_BAD[case]
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=f"bad.csv.*{message}"):
        read_csv(tmp_path / "bad.csv")


BOX = {"image": "s/a.jpg", "x1": "1", "y1": "2", "x2": "30", "y2": "40", "class": "cup"}


@pytest.mark.parametrize(
    "header",
    [
        "class,y2,x2,y1,x1,image",
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        "image_path,xmin,ymin,xmax,ymax,label",
        "location,x1,y1,x2,y2,class_name",
        ",Image Name,X_Min,X_Max,Y_Min,Y_Max,Label Name,confidence",
        "label,left,top,right,bottom,image-width,image-height,file",
        '"path","xmin","ymin","xmax","ymax","category","iscrowd"',
    ],
)
def test_columns_are_known_by_their_names(tmp_path, header):
    kinds = {"x1": ("x1", "xmin", "left"), "y1": ("y1", "ymin", "top"), "x2": ("x2", "xmax", "right")}
    kinds |= {"y2": ("y2", "ymax", "bottom"), "class": ("label", "labelname", "class", "classname", "category")}
    kinds |= {"image": ("image", "filename", "imagepath", "location", "imagename", "file", "path")}
    values = {name: BOX[column] for column, names in kinds.items() for name in names}
    values |= dict.fromkeys(("width", "imagewidth"), "64") | dict.fromkeys(("height", "imageheight"), "48")
    values["iscrowd"] = "0"
    cells = [values.get("".join(filter(str.isalnum, name.lower())), "0.5") for name in header.split(",")]
    (tmp_path / "a.csv").write_text(f"{header}\n{','.join(cells)}\n")
    (image,) = read_csv(tmp_path / "a.csv").images
    assert image.file_name == "s/a.jpg" and image.boxes.tolist() == [[1, 2, 30, 40]]
    assert (image.width, image.height) == ((64, 48) if "idth" in header else (None, None))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,x1,y1,x2,y2\na.jpg,1,2,3,4\n", "line 1 has nothing for the column class"),
        ("filename,x,y,width,height,label\na.jpg,1,2,3,4,cup\n", "line 1 has nothing for the column x1"),
        ("image,xmin,ymin,x2,xmax,y2,class\n", "line 1 has x2 and xmax for the column x2"),
        ("file,path,x1,y1,x2,y2,class\n", "line 1 has file and path for the column image"),
        ("image,x1,y1,x2,y2,class\n\na.jpg,1,2,3\n", "line 3 has 4 cells"),
        ("a.jpg,1,2,3,4,cup,64,48\na.jpg,1,2,3,4,cup\n", "line 2 has 6 cells"),
        ("a.jpg,1,2,3,4,cup,64,48\na.jpg,1,2,3,4,cup,64,49\n", "line 2 has another size"),
        ("a.jpg,1,2,3,4,cup,64\n", "line 1 has 7 cells"),
        ("a.jpg;1;2;3;4;cup\n", "line 1 has semicolons between"),
        ("a.jpg;1,5;2,5;3;4;cup\n", "line 1 has semicolons between"),
        ("a.jpg|1|2|3|4|cup\n", "line 1 has bars between"),
        ("filename;class;xmin;ymin;xmax;ymax\n", "line 1 has semicolons between"),
        ("a.jpg\t1\t2\t3\t4\tcup\n", "line 1 has tabs between"),
        ('a.jpg,1,2,3,4,"cup\nb.jpg,1,2,3,4,cup\n', "can't be read as CSV"),
        (f"{'a' * 200000}.jpg,1,2,3,4,cup\n", "line 1 can't be read as CSV"),
        ("a.jpg,0,0,0,,cup\n", "line 1 has the box 0,0,0,"),
        ("a.jpg,0,0,1e30,5,cup\n", "line 1 has the box 0,0,1e30,5"),
        ("a.jpg,0,0,0,0,Tree\nb.jpg,,,,,\n", "has no object"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named_by_its_line(tmp_path, text, said):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=f"bad.csv.*{said}"):
        read_csv(tmp_path / "bad.csv")


@pytest.mark.parametrize("empty", ["0,0,0,0,Tree", "0.0,0,0.00,0,Tree", "0,0,0,0,", ",,,,", ",,,,Tree"])
@pytest.mark.parametrize("label_map", [None, LabelMap([4], ["cup"])])
def test_an_empty_box_is_an_image_without_objects(tmp_path, empty, label_map):
    (tmp_path / "a.csv").write_text(f"a.jpg,{empty}\nb.jpg,1,2,3,4,cup\nb.jpg,{empty}\n")
    read = read_csv(tmp_path / "a.csv", label_map)
    assert [len(image) for image in read.images] == [0, 1] and read.label_map.names == ("cup",)


def test_lines_of_one_image_in_several_spellings_are_one_image(tmp_path):
    lines = ["s/a.jpg", "s\\a.jpg", "./s/a.jpg", "b.jpg"]
    (tmp_path / "a.csv").write_text("".join(f"{name},{i},2,3,4,cup\n" for i, name in enumerate(lines)))
    assert [(image.file_name, len(image)) for image in read_csv(tmp_path / "a.csv").images] == [
        ("s/a.jpg", 3),
        ("b.jpg", 1),
    ]


def test_open_images_boxes_are_shares_under_ids_without_ending(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(100, 100)).save(tmp_path / "images" / "0a.jpg")
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction\n"
    lines = "0a,xclick,/m/1,1,.1,.4,.2,.8,0,0,0,0\n0a,xclick,/m/2,1,0,1,0,1.0004,0,0,1,0\n"
    (tmp_path / "boxes.csv").write_text(header + lines + lines)
    with pytest.raises(InputError, match="images=FOLDER"):
        read_csv(tmp_path / "boxes.csv")
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/1,Tortoise\n/m/2,Tea, green\n")
    read = read_csv(tmp_path / "boxes.csv", images=tmp_path / "images")
    (image,) = read.images
    assert (image.file_name, image.width, image.height, read.exif) == ("0a.jpg", 100, 100, "upright")
    np.testing.assert_allclose(image.boxes, [[10, 20, 40, 80], [0, 0, 100, 100.04]])
    assert image.iscrowd.tolist() == [False, True] and read.label_map.names == ("/m/2", "Tortoise")
    assert "objects that repeat another one exactly: 2" in read.warnings[0]
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/1,Cat\n/m/2,Cat\n")
    same_name = read_csv(tmp_path / "boxes.csv", images=tmp_path / "images")
    assert same_name.label_map.names == ("Cat (/m/1)", "Cat (/m/2)")
    (tmp_path / "boxes.csv").write_text(header + lines.replace(".4,.2", "40,.2"))
    with pytest.raises(InputError, match=r"line 2 has the box .*from 0 to 1"):
        read_csv(tmp_path / "boxes.csv", images=tmp_path / "images")


MARKS = dict.fromkeys(("1", "1.0", "true", "True", "TRUE"), True)
MARKS |= dict.fromkeys(("0", "0.0", "false", "False", "", "-1"), False)


@pytest.mark.parametrize("mark", [*MARKS, "2", "yes", "nan"])
@pytest.mark.parametrize(
    "header", ["image,x1,y1,x2,y2,class,iscrowd", "ImageID,XMin,YMin,XMax,YMax,LabelName,IsGroupOf"]
)
def test_crowds_are_marked_by_numbers_or_words(tmp_path, header, mark):
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text(f"{header}\na.png,0,0,1,1,cup,{mark}\n")
    if mark in MARKS:
        (image,) = read_csv(tmp_path / "a.csv", images=tmp_path).images
        assert image.iscrowd.tolist() == [MARKS[mark]]
    else:
        with pytest.raises(InputError, match=f"a.csv: line 2 marks a crowd by '{mark}'; it must be 1 or 0"):
            read_csv(tmp_path / "a.csv", images=tmp_path)


@pytest.mark.parametrize("path", ["boxes.csv", "instances.json", "voc"])
def test_names_of_classes_are_refused_where_nothing_reads_them(tmp_path, path):
    (tmp_path / "voc" / "Annotations").mkdir(parents=True)
    (tmp_path / "boxes.csv").write_text("a.jpg,1,2,3,4,0\n")
    with pytest.raises(InputError, match=f"names=names.csv goes with YOLO and Open Images; leave it out for .*{path}"):
        read_source(tmp_path / path, names="names.csv")


def test_an_image_id_with_boxes_in_pixels(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(100, 100)).save(tmp_path / "images" / "v1.2.png")
    (tmp_path / "boxes.csv").write_text("image_id,class_name,class_id,x_min,y_min,x_max,y_max\nv1.2,cup,3,1,2,30,40\n")
    (image,) = read_csv(tmp_path / "boxes.csv", images=tmp_path / "images").images
    assert image.file_name == "v1.2.png" and image.boxes.tolist() == [[1, 2, 30, 40]]


def test_corners_in_another_order_than_the_header_says_are_doubted(tmp_path):
    """xmin,ymin,xmax,ymax under a header that has x before y: most boxes have no size, and the summary says so."""
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(100, 100)).save(tmp_path / "images" / "a.jpg")
    lines = "".join(f"a.jpg,{x},{x // 2},{x + 9},{x // 2 + 8},cup\n" for x in range(20, 90, 10)) + "a.jpg,1,8,5,9,cup\n"
    (tmp_path / "boxes.csv").write_text("image,xmin,xmax,ymin,ymax,class\n" + lines)
    read = read_csv(tmp_path / "boxes.csv", images=tmp_path / "images")
    summary = prepare(read, tmp_path / "images", tmp_path / "out", progress=False)
    assert summary["counts"]["zero_size_boxes"] == 7 and "7 of 8 boxes" in summary["warnings"][0]
