"""YOLO text files: layouts, names, boxes and polygons in shares of the upright picture; faults named by line."""

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.config.presets import presets
from retinanet_tf.data.inspect.report import inspect
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from tests.datasets import picture


def write(root, files, size=(100, 100)):
    """Texts, and pictures of `size` where the name is one's; a picture's content follows its name."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.fromarray(picture(*size, seed=len(name))).save(path)
        else:
            path.write_text(content)
    return root


def boxes(annotations):
    names = dict(zip(annotations.label_map.ids, annotations.label_map.names, strict=True))
    return {
        image.file_name: [
            (names[i], np.round(box, 6).tolist()) for i, box in zip(image.category_ids, image.boxes, strict=True)
        ]
        for image in annotations.images
    }


def read(root, *args, **kwargs):
    return boxes(read_source(root, *args, **kwargs)[0])


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 .5 .5 .2 .4", [40, 30, 60, 70]),
        ("0.0 .5 .5 .2 .4 .87", [40, 30, 60, 70]),  # with a score, as ultralytics saves them
        ("0 .1 .1 .9 .1 .9 .5 .1 .5", [10, 10, 90, 50]),  # an oriented box
        ("0 .2 .3 .6 .3 .4 .9", [20, 30, 60, 90]),
        ("\t0  5e-1 .5 .2 .4 \r", [40, 30, 60, 70]),
    ],
)
def test_a_line_is_a_box_or_a_polygon_whose_bounding_box_counts(tmp_path, line, box):
    write(tmp_path, {"images/a.jpg": None, "labels/a.txt": f"\n1 .5 .5 1 1\n{line}\n", "labels/classes.txt": "k\nc\n"})
    assert read(tmp_path) == {"a.jpg": [("c", [0, 0, 100, 100]), ("k", box)]}


def test_a_folder_of_pictures_called_labels_has_its_labels_below(tmp_path):
    """What `predict --save=yolo` writes of photos/labels/x.jpg."""
    files = {"photos/a.jpg": None, "photos/labels/x.jpg": None}
    found = {"found/labels/a.txt": "0 .5 .5 .2 .4", "found/labels/labels/x.txt": "0 .5 .5 .4 .2"}
    write(tmp_path, {**files, **found})
    assert read(tmp_path / "found" / "labels", images=tmp_path / "photos") == {
        "a.jpg": [("0", [40, 30, 60, 70])],
        "labels/x.jpg": [("0", [30, 40, 70, 60])],
    }


def test_shares_are_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(100, 40)).save(tmp_path / "a.jpg", exif=exif)
    exif[0x0112] = 3  # the size doesn't tell whether such a one was turned
    Image.fromarray(picture(100, 40)).save(tmp_path / "b.jpg", exif=exif)
    write(tmp_path, {"a.txt": "0 .5 .25 .5 .5\n", "b.txt": "0 .5 .25 .5 .5\n"})
    for exif, size, box in (("stop", (40, 100), [10, 0, 30, 50]), ("stored", (100, 40), [25, 0, 75, 20])):
        annotations, folder = read_source(tmp_path, exif=exif)
        prepare(annotations, folder, tmp_path / exif, exif=exif, progress=False)
        first, second = read_records(tmp_path / exif / "train-*")
        assert (first.annotations.width, first.annotations.height) == size
        assert first.annotations.boxes.tolist() == [box] and second.annotations.boxes.tolist() == [[25, 0, 75, 20]]
        assert (second.encoded == (tmp_path / "b.jpg").read_bytes()) == (exif == "stored")


def test_a_box_that_overhangs_is_cut_and_counted_and_rounding_is_not(tmp_path):
    text = "4 .304 .5003 .608 1.0004\n4 .4999999 .5 1 1\n"
    write(tmp_path, {"a.jpg": None, "a.txt": text})
    annotations, folder = read_source(tmp_path)
    summary = prepare(annotations, folder, tmp_path / "out", progress=False)
    (record,) = read_records(tmp_path / "out" / "train-*")
    np.testing.assert_allclose(record.annotations.boxes, [[0, 0.01, 60.8, 100], [0, 0, 99.99999, 100]], atol=1e-4)
    assert summary["counts"]["clipped_boxes"] == 1
    assert annotations.label_map == LabelMap(range(5), "01234"), "classes that nothing names are named by their ids"


TREE = {
    **dict.fromkeys(["train/images/a.jpg", "train/images/b.jpg", "valid/images/c.jpg"]),
    **{"train/labels/a.txt": "0 .5 .5 .2 .4\n", "train/labels/b.txt": "", "valid/labels/c.txt": "1 .5 .5 .2 .4\n"},
}
TRAIN = {"a.jpg": [("k", [40, 30, 60, 70])], "b.jpg": []}
YAMLS = {
    "Roboflow": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['k', 'c']",
    "in its folder": "train: train/images\nval: valid/images\nnames:\n- k\n- c",
    "path": "path: set\ntrain: train/images\nval: valid/images\nnames: {0: k, 1: c}",
    "another machine's path": "path: /content/set\ntrain: train/images\nval: valid/images\nnames: [k, c]",
    "another machine's": "train: /content/set/train/images\nval: /content/set/valid/images\nnames: [k, c]",
    "list": "train: [./train/images]\nval:\n- valid/images\nnames: [k, c]",
    "text file": "train: train.txt\nval: val.txt\nnames: [k, c]",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_where_a_data_yaml_means(tmp_path, kind):
    lists = {"train.txt": "./train/images/b.jpg\n./train/images/a.jpg\n", "val.txt": "./valid/images/c.jpg\n"}
    write(tmp_path / "set", {**TREE, **lists, "data.yaml": YAMLS[kind]})
    for path in (tmp_path / "set" / "data.yaml", tmp_path / "set"):
        assert read(path, "train") == TRAIN
        assert read(path, "valid") == read(path, "val") == {"c.jpg": [("c", [40, 30, 60, 70])]}
    with pytest.raises(InputError, match="lists several splits; give split=train or split=val"):
        read(tmp_path / "set")
    with pytest.raises(InputError, match="split=extra"):
        read(tmp_path / "set", "extra")


@pytest.mark.parametrize("null", ["", "~", "null", "Null", "NULL"])
def test_a_key_without_a_value_is_absent(tmp_path, null):
    keys = [f"{key}: {null}\n" for key in ("val", "test", "path", "nc")]
    write(tmp_path, {**TREE, "data.yaml": f"train: train/images\nnames: [k, c]\n{''.join(keys)}"})
    assert read(tmp_path) == TRAIN
    with pytest.raises(InputError, match="split=val; give split=train"):
        read(tmp_path, "val")


SIDES = dict.fromkeys(["images/train/a.jpg", "images/train/b.jpg", "images/val/c.jpg"])
SIDES |= {name.replace("images", "labels").replace("jpg", "txt"): "0 .5 .5 .2 .4" for name in SIDES}


@pytest.mark.parametrize("files", [TREE, SIDES])
def test_a_folder_of_several_splits_asks_which(tmp_path, files):
    write(tmp_path, files)
    for path in (tmp_path, tmp_path / "images") if files is SIDES else (tmp_path,):
        with pytest.raises(InputError, match="has several splits; give split=train or split=val"):
            read(path)
        assert list(read(path, "train")) == ["a.jpg", "b.jpg"] and list(read(path, "val")) == ["c.jpg"]


@pytest.mark.parametrize("split", ["train", "nonsense"])
def test_a_split_of_a_data_yaml_does_not_go_with_images(tmp_path, split):
    write(tmp_path, {**TREE, "data.yaml": YAMLS["in its folder"]})
    with pytest.raises(InputError, match=f"images=.*valid doesn't go with split={split}"):
        read(tmp_path, split, images=str(tmp_path / "valid"))
    assert list(read(tmp_path, images=str(tmp_path / "valid"))) == ["images/c.jpg"]


def test_train_and_val_of_the_same_pictures_are_named(tmp_path):
    write(tmp_path, {**TREE, "data.yaml": "train: train/images\nval: train/images\nnames: [k, c]"})
    annotations, _ = read_source(tmp_path, "train")
    assert any("train and val are the same pictures" in warning for warning in annotations.warnings)


def test_several_folders_of_one_split(tmp_path):
    write(tmp_path, {**TREE, "data.yaml": "train: [train/images, valid/images]\nnames: [k, c]"})
    found = read(tmp_path)
    assert list(found) == ["train/images/a.jpg", "train/images/b.jpg", "valid/images/c.jpg"]


LAYOUTS = {
    "ultralytics": ({"images/train/a.jpg": None, "labels/train/a.txt": "0 .5 .5 .2 .4"}, "", "train", None),
    "a split's folder": ({**TREE, "data.yaml": "train: x\nnames: [k, c]"}, "train", None, None),
    "its pictures": ({**TREE, "data.yaml": "train: x\nnames: [k, c]"}, "train/images", None, None),
    "its labels": ({**TREE, "data.yaml": "train: x\nnames: [k, c]"}, "train/labels", None, "train/images"),
    "side by side": ({"a.jpg": None, "a.txt": "0 .5 .5 .2 .4", "classes.txt": "k\nc"}, "", None, None),
    "apart": ({"p/a.jpg": None, "l/a.txt": "0 .5 .5 .2 .4", "l/obj.names": "k\nc"}, "l", None, "p"),
    "images in the path": ({"images/set/a.jpg": None, "images/set/a.txt": "0 .5 .5 .2 .4"}, "images/set", None, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_without_a_data_yaml(tmp_path, layout):
    files, path, split, images = LAYOUTS[layout]
    write(tmp_path, files)
    found = read(tmp_path / path, split, images=images and str(tmp_path / images))
    assert found["a.jpg"] == [("0" if layout in ("ultralytics", "images in the path") else "k", [40, 30, 60, 70])]


def test_labels_beside_pictures_and_images_twice_in_a_path(tmp_path):
    files = {"images/images/a.jpg": None, "images/b.jpg": None, "images/b.txt": "0 .5 .5 .2 .4"}
    write(tmp_path, {**files, "images/labels/a.txt": "0 .5 .5 .2 .4"})
    for root in (tmp_path, tmp_path / "images"):
        assert [len(found) for found in read(root).values()] == [1, 1]
    write(tmp_path, {"labels/b.txt": "0 .5 .5 .2 .3"})
    with pytest.raises(InputError, match=r"two label files that differ: .*labels/b.txt and .*images/b.txt"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"images/a.jpg": None, "images/b.jpg": None, "images/c.jpg": None, "labels/a.txt": ""}, "2 of 3 pictures"),
        ({"images/a.jpg": None, "images/x/b.jpg": None, "labels/a.txt": ""}, "all pictures in .*images/x"),
        ({"images/a.jpg": None, "label/a.txt": ""}, r"there is no .*labels/a.txt and no .*images/a.txt"),
    ],
)
def test_missing_labels_are_no_background(tmp_path, files, said):
    write(tmp_path, files)
    with pytest.raises(InputError, match=said):
        read(tmp_path)


def test_a_picture_without_a_label_file_has_no_objects(tmp_path):
    files = {f"images/{name}.jpg": None for name in "abc"} | {"labels/a.txt": "0 .5 .5 1 1", "labels/b.txt": "\n"}
    write(tmp_path, {**files, "labels/lost.txt": "0 .5 .5 1 1"})
    annotations, _ = read_source(tmp_path)
    assert [len(image) for image in annotations.images] == [1, 0, 0]
    assert "label files without a picture: 1, the first is" in annotations.warnings[0]


def test_names_are_the_text_of_the_file_and_ids_are_the_lines(tmp_path):
    yaml = "train: train/images\nnames: {10: k, 2: 1e3, 0: no}\n"
    write(tmp_path, {**TREE, "train/labels/a.txt": "10 .5 .5 .2 .4\n0 .5 .5 1 1\n2 .5 .5 1 1\n", "data.yaml": yaml})
    assert [name for name, _ in read(tmp_path)["a.jpg"]] == ["k", "no", "1e3"]
    annotations, _ = read_source(tmp_path)
    assert annotations.label_map == LabelMap([0, 2, 10], ["no", "1e3", "k"])
    other = LabelMap([7, 8, 9], ["k", "no", "1e3"])
    assert read_source(tmp_path, label_map=other)[0].images[0].category_ids.tolist() == [7, 8, 9]
    (tmp_path / "names.txt").write_text("a\n" * 10 + "k\n")
    assert [name for name, _ in read(tmp_path, names=tmp_path / "names.txt")["a.jpg"]] == ["k", "a", "a"]


def test_lines_that_repeat_are_taken_once_and_counted(tmp_path):
    write(tmp_path, {"a.jpg": None, "a.txt": "0 .5 .5 .2 .4\n0 .5 .5 .2 .4\n1 .5 .5 .2 .4\n"})
    annotations, _ = read_source(tmp_path)
    assert annotations.num_boxes == 2
    assert annotations.warnings == [
        "objects that repeat another one exactly: 1, the first on a.jpg; each is kept once."
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 .5 .5 .2 .4", "line 3 has class 2, but .*data.yaml names 2 classes"),
        ("1.5 .5 .5 .2 .4", "line 3 has class 1.5"),
        ("-1 .5 .5 .2 .4", "line 3 has class -1"),
        ("k .5 .5 .2 .4", "line 3 is 'k .5"),
        ("0 .5 .5 .2", "line 3 is '0 .5"),
        ("0 .5 .5 .2 nan", "line 3 is"),
        ("0,.5,.5,.2,.4", "line 3 is"),
        ("0 .1 .1 .9 .1 .9 .5 .1", "line 3 is"),
        ("0 50 50 20 40", "line 3 is .* not pixels"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, said):
    yaml = "train: train/images\nnames: [k, c]\n"
    write(tmp_path, {**TREE, "data.yaml": yaml, "train/labels/b.txt": f"0 .5 .5 .2 .4\n\n{line}\n"})
    with pytest.raises(InputError, match=f"b.txt: {said}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("train: train/images\nnames: [k, c]\nnc: 3", "nc: 3, but has 2 names"),
        ("train: nowhere/x\nval: valid/images\nnames: [k", "isn't YAML: line 3"),
        ("train: a/b.txt\nnames: [k, c]", None),
        ("train: train/images\nnames: [k, '']", "class 1 is called ''"),
        ("train: train/images\nnames: {k: 0}", "names is {'k': '0'}"),
        ("train: train/images\nnames: k", "names is 'k'"),
        ("train: train/images\nnc: many", "nc is 'many'"),
        ("train: {a: b}\nnames: [k, c]", "train is {'a': 'b'}"),
        ("names: [k, c]", "lists no pictures"),
        ("- train", "isn't the description"),
    ],
)
def test_a_data_yaml_that_cannot_be_used_is_named(tmp_path, yaml, said):
    write(tmp_path, {**TREE, "data.yaml": yaml})
    if said is None:  # the split's folder beside the file is taken
        assert read(tmp_path / "data.yaml", "train") == TRAIN
    else:
        with pytest.raises(InputError, match=said):
            read(tmp_path / "data.yaml", "train")


def test_a_picture_that_cannot_be_read_is_named_or_left_to_prepare(tmp_path):
    write(tmp_path, {"images/a.jpg": None, "images/b.jpg": "no picture", "labels/a.txt": "0 .5 .5 1 1"})
    write(tmp_path, {"labels/b.txt": "0 .5 .5 1 1"})
    with pytest.raises(InputError, match="b.jpg is no image"):
        read_source(tmp_path)
    annotations, folder = read_source(tmp_path, skip_bad=True)
    summary = prepare(annotations, folder, tmp_path / "out", on_bad_image="skip", progress=False)
    assert (summary["images"], summary["counts"]["skipped_images"]) == (1, 1)


def test_folders_that_are_links_are_followed_once(tmp_path):
    write(tmp_path / "store", {"a.jpg": None})
    write(tmp_path / "set", {"labels/a.txt": "0 .5 .5 .2 .4"})
    (tmp_path / "set" / "images").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "again").symlink_to(tmp_path / "store")
    annotations, folder = read_source(tmp_path / "set")
    assert prepare(annotations, folder, tmp_path / "out", progress=False)["boxes"] == 1


def test_inspect_reads_it(tmp_path):
    write(tmp_path, {**TREE, "data.yaml": YAMLS["Roboflow"]})
    annotations, folder = read_source(tmp_path / "data.yaml", "train")
    report = inspect(annotations, presets["mini"], folder)
    assert not report.errors and report.facts["boxes by COCO's size"]["small"] == 1


def test_labels_alone_ask_for_the_pictures(tmp_path):
    write(tmp_path, {"labels/a.txt": "0 .5 .5 .2 .4"})
    with pytest.raises(InputError, match="labels has no picture .* images=FOLDER"):
        read(tmp_path / "labels")
