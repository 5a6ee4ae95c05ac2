"""The paper's splits of COCO: divided as defined, and faults are named."""

import json

import pytest
from PIL import Image

from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.errors import InputError
from tests.datasets import CATEGORIES, annotation, picture


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
    coco_file(tmp_path / "annotations" / "instances_val2017.json", [42], 1)
    with pytest.raises(InputError, match="instances_train2014.json can't be read"):
        read_source(tmp_path, "trainval35k")
    with pytest.raises(InputError, match="split=train goes with a folder"):
        read_source(tmp_path / "x.json", "train")
