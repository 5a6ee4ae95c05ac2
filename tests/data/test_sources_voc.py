"""Pascal VOC: read as defined, the picture that an annotation means, encodings; faults are named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.sources.voc import read_voc
from retinanet_tf.errors import InputError
from tests.datasets import picture

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


@pytest.mark.parametrize(("mark", "crowd"), [("True", True), (" 1 ", True), ("Unspecified", False), ("", False)])
def test_difficult_is_marked_by_numbers_or_words(tmp_path, mark, crowd):
    (tmp_path / "a.xml").write_text(voc_xml("a.jpg", [("cat", (1, 1, 5, 5), mark)]))
    assert read_voc(tmp_path).images[0].iscrowd.tolist() == [crowd]
    (tmp_path / "a.xml").write_text(voc_xml("a.jpg", [("cat", (1, 1, 5, 5), "maybe")]))
    with pytest.raises(InputError, match=r"a.xml: object 1 \(cat\) has difficult 'maybe'; it must be 1 or 0"):
        read_voc(tmp_path)


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
    "another image": (voc_xml("000.jpg", []), "001.xml may be about 001.jpg or 000.jpg"),
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


def voc_folder(folder, pictures, annotations, lines=None):
    """A VOC folder with empty pictures; annotations are (name of the XML, <filename>), of one box, its place wide."""
    for inner in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / inner).mkdir(parents=True)
    for name in pictures:
        (folder / "JPEGImages" / name).parent.mkdir(exist_ok=True)
        (folder / "JPEGImages" / name).write_bytes(b"")
    for place, (name, file_name) in enumerate(annotations, 1):
        (folder / "Annotations" / name).write_text(voc_xml(file_name, [("cat", (1, 1, place, 9), 0)]))
    if lines is not None:
        (folder / "ImageSets" / "Main" / "train.txt").write_text(lines)
    return folder


def test_a_line_takes_no_other_picture_whose_xml_is_missing(tmp_path):
    """The line "photo 1" means a picture without annotation here, not the picture "photo" in a list with columns."""
    pictures = ("street.jpg", "photo.jpg", "photo 1.jpg")
    annotations = [("street.xml", "street.jpg"), ("photo.xml", "photo.jpg")]
    folder = voc_folder(tmp_path / "voc", pictures, annotations, "street\nphoto 1\n")
    with pytest.raises(InputError, match="photo 1.xml can't be read"):
        read_voc(folder, "train")


def voc_found(folder, split=None):
    """(file name, place of the XML) of what is read."""
    return [(image.file_name, int(image.boxes[0, 2])) for image in read_voc(folder, split).images]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("plain", 1),
        ("a b", 2),
        ("a b 7", 3),
        (" a  b ", 4),
        ("plain 1", 1),
        ("plain  -1", 1),
        ("a b\t0", 2),
        ("a b 7   1", 3),
        ("a b 7.jpg", 3),
        ("a b.JPEG", 2),
        ("JPEGImages/a b 7.png", 3),
        ("JPEGImages\\a b 7.png  1", 3),
        ("VOC2012/Annotations/plain.xml", 1),
        ("C:\\data\\plain.bmp", 1),
        ("/somewhere/else/a b.tif", 2),
        ("v1.2", 5),
        ("v1.2.jpg", 5),
        ("upper", 6),
        ("deep/er", 7),
        ("deep/er.jpg", 7),
        ("JPEGImages/er 1", 8),
    ],
)
def test_a_line_of_a_list_means_one_xml(tmp_path, line, place):
    names = ["plain.xml", "a b.xml", "a b 7.xml", "a  b.xml", "v1.2.xml", "upper.XML", "deep/er.xml", "er.xml"]
    (tmp_path / "v" / "Annotations" / "deep").mkdir(parents=True)
    folder = tmp_path / "v" / "Annotations"
    for number, name in enumerate(names, 1):
        (folder / name).write_text(voc_xml("", [("cat", (1, 1, number, 9), 0)]))
    (tmp_path / "v" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "v" / "ImageSets" / "Main" / "train.txt").write_text(f"\n{line}\r\n")
    assert [found for _, found in voc_found(tmp_path / "v", "train")] == [place]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a 1\n", "'a 1' may mean a 1.xml or a.xml"),
        ("b -1\na 1\n", "'a 1' may mean a 1.xml or a.xml"),
        ("b  1\nb -1\n", "names b.xml twice, as 'b  1' and as 'b -1'"),
        ("a\nb\na\n", "names a.xml twice"),
        ("a\nJPEGImages/a.jpg\n", "names a.xml twice"),
        ("a 1.jpg\nb\na 1\n", "names a 1.xml twice"),
        ("c 1\n", "c.xml can't be read"),
        ("c d.jpg\n", "c d.*xml can't be read"),
        (" \n\n", "lists no image"),
    ],
)
def test_a_list_that_may_mean_two_things_is_an_error(tmp_path, lines, said):
    folder = voc_folder(tmp_path / "v", [], [("a.xml", ""), ("a 1.xml", ""), ("b.xml", "")], lines)
    with pytest.raises(InputError, match=said):
        read_voc(folder, "train")


def test_a_number_at_the_end_of_some_lines_belongs_to_the_name(tmp_path):
    folder = voc_folder(tmp_path / "v", [], [("a.xml", ""), ("a 1.xml", ""), ("a 0.xml", "")], "a 1\na\na 0\n")
    assert [place for _, place in voc_found(folder, "train")] == [2, 1, 3]


@pytest.mark.parametrize(
    ("xml", "file_name", "picture"),
    [
        ("a.xml", "a.jpg", "a.jpg"),
        ("a.xml", "", "a.jpg"),
        ("a.xml", "stale_name.jpg", "a.jpg"),
        ("a.xml", "a.png", "a.jpg"),
        ("a.xml", "a", "a.jpg"),
        ("b.xml", "b.jpg", "b.JPG"),
        ("b.xml", "C:\\photos\\b.JPG", "b.JPG"),
        ("b.xml", "/pictures/b.JPG", "b.JPG"),
        ("c d.xml", "c_d.jpeg", "c d.png"),
        ("label_1.xml", "a.jpg", "a.jpg"),
        ("label_1.xml", "JPEGImages\\a.jpg", "a.jpg"),
        ("label_1.xml", "a", "a.jpg"),
        ("label_1.xml", "b.tiff", "b.JPG"),
        ("label_1.xml", "deep\\e.jpg", "deep/e.jpg"),
        ("two.xml", "two.png", "two.png"),
        ("two.xml", "x\\two.jpg", "two.jpg"),
        ("v1.2.xml", "v1.jpg", "v1.2.jpg"),
        ("missing.xml", "nowhere.jpg", "nowhere.jpg"),
        ("missing.xml", "", "missing.jpg"),
        ("missing.xml", "/", "missing.jpg"),
        ("missing.xml", "../..", "missing.jpg"),
        ("missing.xml", "../../etc/passwd", "passwd"),
    ],
)
def test_an_xml_means_one_picture(tmp_path, xml, file_name, picture):
    pictures = ["a.jpg", "b.JPG", "c d.png", "deep/e.jpg", "two.png", "two.jpg", "v1.2.jpg", "._a.png", "._missing.jpg"]
    assert voc_found(voc_folder(tmp_path / "v", pictures, [(xml, file_name)])) == [(picture, 1)]


@pytest.mark.parametrize(
    ("xml", "file_name", "two"),
    [
        ("a.xml", "b.jpg", ("a.jpg", "b.jpg")),
        ("a.xml", "D:\\x\\b.jpg", ("a.jpg", "b.jpg")),
        ("two.xml", "", ("two.jpg", "two.png")),
        ("two.xml", "two.bmp", ("two.jpg", "two.png")),
        ("two.xml", "a.jpg", ("two.jpg", "two.png")),
        ("other.xml", "two", ("two.jpg", "two.png")),
    ],
)
def test_an_xml_that_may_mean_two_pictures_is_an_error(tmp_path, xml, file_name, two):
    folder = voc_folder(tmp_path / "v", ["a.jpg", "b.jpg", "two.png", "two.jpg"], [(xml, file_name)])
    with pytest.raises(InputError, match=f"{xml} may be about {two[0]} or {two[1]} in "):
        read_voc(folder)


@pytest.mark.parametrize("second", ["x.xml", "a copy.xml", "A.xml"])
def test_two_xml_about_one_picture_are_an_error(tmp_path, second):
    folder = voc_folder(tmp_path / "v", ["a.jpg"], [("a.xml", ""), (second, "a.jpg")])
    with pytest.raises(InputError, match="are both about a.jpg"):
        read_voc(folder)


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("hidden", ["._a.xml", "._b.xml", ".DS_Store", ".hidden.xml"])
def test_hidden_files_are_left_out(tmp_path, split, hidden):
    folder = voc_folder(tmp_path / "v", ["a.jpg", "._a.jpg"], [("a.xml", "")], "._a\na\n._b.jpg\n")
    (folder / "Annotations" / hidden).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert voc_found(folder, split) == [("a.jpg", 1)]


def test_the_image_folder_can_be_another_one(tmp_path):
    folder = voc_folder(tmp_path / "v", ["a.jpg"], [("a.xml", "old.jpg")])
    (tmp_path / "pngs").mkdir()
    (tmp_path / "pngs" / "a.png").write_bytes(b"")
    annotations, images = read_source(folder, images=str(tmp_path / "pngs"))
    assert [image.file_name for image in annotations.images] == ["a.png"] and images == str(tmp_path / "pngs")


@pytest.mark.parametrize(
    ("declared", "encoding", "name"),
    [
        ("Big5", "big5", "汽車"),
        ("Shift_JIS", "shift_jis", "自動車"),
        ("EUC-KR", "euc_kr", "자동차"),
        ("windows-1251", "cp1251", "автомобиль"),
        ("ISO-8859-15", "iso8859-15", "œuf"),
        ("UTF-16", "utf-16", "żółw"),
        ("UTF-16", "utf-16-be", "żółw"),
        ("utf-16", "utf-8", "żółw"),
        (None, "utf-8", "☕"),
        (None, "utf-8-sig", "☕"),
        (None, "utf-16", "☕"),
        ("ISO-8859-1", "utf-8-sig", "☕"),
    ],
)
def test_xml_is_read_in_its_encoding(tmp_path, declared, encoding, name):
    folder = voc_folder(tmp_path / "v", [], [("a.xml", "")])
    head = f'<?xml version="1.0" encoding="{declared}" standalone="yes"?>\n' if declared else ""
    (folder / "Annotations" / "a.xml").write_text(head + voc_xml("", [(name, (1, 1, 5, 5), 0)]), encoding=encoding)
    assert read_voc(folder).label_map.names == (name,)


@pytest.mark.parametrize(
    ("declared", "encoding", "said"),
    [
        (None, "cp1250", r"isn't text in UTF-8: line 2 has the byte 0xbf"),
        ("UTF-8", "iso8859-2", r"isn't text in UTF-8: line 2 has the byte 0xbf"),
        ("US-ASCII", "utf-8", "isn't text in US-ASCII: line 2"),
        (None, "utf-16-le", "line 1 has a NUL|line 2 has the byte"),
        ("utf-64", "utf-8", "declares the unknown encoding utf-64"),
        ("base64", "utf-8", "declares the unknown encoding base64"),
    ],
)
def test_text_of_an_unknown_encoding_is_an_error(tmp_path, declared, encoding, said):
    text = voc_xml("", [("żółw", (1, 1, 5, 5), 0)])
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else "<!-- -->\n"
    (tmp_path / "a.xml").write_text(head + text, encoding=encoding)
    with pytest.raises(InputError, match=f"a.xml .*({said}).*; save it as UTF-8") as caught:
        read_voc(tmp_path)
    assert "\ufffd" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1250", "latin2", "utf-16-be"])
def test_lists_and_csv_are_utf_8_or_say_what_they_are(tmp_path, encoding):
    folder = voc_folder(tmp_path / "v", [], [("żółw 1.xml", "")])
    (folder / "ImageSets" / "Main" / "train.txt").write_text("żółw 1\n", encoding=encoding)
    (tmp_path / "boxes.csv").write_text("a.jpg,1,2,3,4,cup\nżółw.jpg,1,2,3,4,żółw\n", encoding=encoding)
    if encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert voc_found(folder, "train") == [("żółw 1.jpg", 1)]
        assert read_csv(tmp_path / "boxes.csv").images[1].file_name == "żółw.jpg"
    else:
        for path, read in (
            ("train.txt", lambda: read_voc(folder, "train")),
            ("boxes.csv", lambda: read_source(tmp_path / "boxes.csv")),
        ):
            with pytest.raises(InputError, match=f"{path} isn't text in UTF-8: line .*; save it as UTF-8"):
                read()


@pytest.mark.parametrize("source", ["csv", "voc"])
def test_names_cannot_tell_apart_categories_of_one_name(voc, tmp_path, source):
    (tmp_path / "a.csv").write_text("a.jpg,1,2,3,4,cat\n")
    label_map = LabelMap([1, 2, 3], ["cat", "dog", "cat"])
    with pytest.raises(InputError, match="'cat', which the label map has under several ids"):
        read_source(voc if source == "voc" else tmp_path / "a.csv", label_map=label_map)


def test_a_folder_of_folders_says_which_to_give(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.xml").write_text(voc_xml("a.jpg", []))
    with pytest.raises(InputError, match="train does: give that"):
        read_source(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "train").rename(tmp_path / "images" / "xmls")  # Oxford's pets have annotations/xmls; this isn't YOLO
    with pytest.raises(InputError, match="images/xmls does: give that"):
        read_source(tmp_path)
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(InputError, match="COCO's annotations are a file: give .*instances.json"):
        read_source(tmp_path)
    with pytest.raises(InputError, match="a.jpg is a picture; give the annotations"):
        read_source(tmp_path / "a.jpg")
