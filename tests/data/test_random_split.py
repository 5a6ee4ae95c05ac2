"""Random splits: pictures whole, classes by their shares, copies and groups on one side, the same for the same seed."""

import numpy as np
import pytest

from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.sources.random_split import random_split
from retinanet_tf.errors import InputError

SHARES = {"train": 0.8, "val": 0.2}


def dataset(classes):
    """A data set of {file name: classes of its objects}."""
    images = [
        ImageAnnotations(
            number,
            name,
            boxes=np.ones((len(ids), 4)),
            category_ids=np.array(ids, int),
            iscrowd=np.zeros(len(ids), bool),
        )
        for number, (name, ids) in enumerate(classes.items(), 1)
    ]
    return Annotations("set", images, LabelMap([1, 2, 5, 7, 9], "abcde"))


def names(splits):
    return {name: [image.file_name for image in split.images] for name, split in splits.items()}


def test_pictures_are_whole_and_in_one_split_each(tmp_path):
    data = dataset({f"{i}.jpg": [1, 2, 5, 7, 9] for i in range(10)})
    found = names(random_split(data, tmp_path, SHARES))
    assert sorted(found["train"] + found["val"]) == [f"{i}.jpg" for i in range(10)]
    assert [len(found["train"]), len(found["val"])] == [8, 2]
    assert found["train"] == sorted(found["train"]), "in the order of the source"


def test_warnings_of_the_whole_source_come_once(tmp_path):
    data = dataset({f"{i}.jpg": [1] for i in range(10)})
    data.warnings.append("repeats: 3")
    assert [split.warnings for split in random_split(data, tmp_path, SHARES).values()] == [["repeats: 3"], []]


def test_every_class_has_its_share_and_the_seed_decides(tmp_path):
    """Of 10 pictures with a rare class two are for validation, be it alone or beside a frequent one."""
    classes = {f"{i:03}.jpg": [1] * (1 + i % 3) for i in range(70)}
    classes |= {f"{i}.jpg": [1, 2] for i in range(100, 110)} | {f"{i}.jpg": [5] for i in range(200, 210)}
    classes |= {f"{i}.jpg": [] for i in range(300, 310)}
    data = dataset(classes)
    found = set()
    for seed in range(5):
        splits = random_split(data, tmp_path, SHARES, seed=seed)
        kinds = [
            {tuple(set(classes[name])): 0 for name in classes}
            for _ in SHARES  # pictures by the classes they have
        ]
        for kind, split in zip(kinds, splits.values(), strict=True):
            for image in split.images:
                kind[tuple(set(classes[image.file_name]))] += 1
        assert kinds == [{(1,): 56, (1, 2): 8, (5,): 8, (): 8}, {(1,): 14, (1, 2): 2, (5,): 2, (): 2}]
        shuffled = dataset(dict(reversed(classes.items())))
        assert set(names(random_split(shuffled, tmp_path, SHARES, seed=seed))["val"]) == set(names(splits)["val"])
        found.add(tuple(names(splits)["val"]))
    assert len(found) == 5


@pytest.mark.parametrize(
    ("num_classes", "pictures", "shares", "sizes"),
    [
        (100, 2, (0.8, 0.2), (160, 40)),
        (20, 3, (0.8, 0.2), (48, 12)),
        (20, 5, (0.9, 0.1), (90, 10)),
        (20, 3, (0.7, 0.2, 0.1), (42, 12, 6)),
    ],
)
def test_fractions_of_small_classes_add_up_to_the_shares(tmp_path, num_classes, pictures, shares, sizes):
    data = dataset({f"{c}-{i}.jpg": [c] for c in range(num_classes) for i in range(pictures)})
    data.label_map = LabelMap(range(num_classes), [str(c) for c in range(num_classes)])
    splits = random_split(data, tmp_path, dict(zip(("train", "val", "test"), shares, strict=False)))
    assert tuple(len(split.images) for split in splits.values()) == sizes
    counts = np.bincount([image.category_ids[0] for image in splits["train"].images])
    assert counts.min() >= int(pictures * shares[0]), "every class has its whole pictures"


def test_pictures_without_the_optional_part_of_a_group_are_apart(tmp_path):
    data = dataset({f"{name}{i}.jpg": [1] for name in ("a", "day") for i in range(10)})
    splits = names(random_split(data, tmp_path, {"train": 0.7, "val": 0.3}, group="(day)?"))
    assert [len(split) for split in splits.values()] == [14, 6]
    assert sum(name.startswith("day") for name in splits["train"]) in (0, 10)


@pytest.mark.parametrize("seed", range(10))
def test_what_belongs_together_stays_together(tmp_path, seed):
    pairs = {f"{i}_jpg.rf.{h}": [1] for i in range(9) for h in ("0a1f.jpg", "77.png", "8")}  # Roboflow's
    copies = {f"{kind}{i}.png": [2] for kind in "xy" for i in range(9)}
    for name in copies:
        (tmp_path / name).write_bytes(b"the bytes of " + name[1:].encode())
    frames = {f"cam{c}/frame{i}.jpg": [5] for c in range(5) for i in range(4)}
    splits = names(random_split(dataset(pairs | copies | frames), tmp_path, SHARES, seed=seed, group=r"^cam\d"))
    keys = [{name.split("/")[0].split(".rf")[0].lstrip("xy") for name in split} for split in splits.values()]
    assert keys[0].isdisjoint(keys[1]) and len(keys[0]) + len(keys[1]) == 9 + 9 + 5
    assert sum(name.startswith("cam") for name in splits["val"]) == 4


@pytest.mark.parametrize(
    ("shares", "group", "said"),
    [
        ({"train": 0.8, "val": 0.1}, None, "train 0.8, val 0.1; they must be above 0 and add up to 1"),
        ({"train": 1.2, "val": -0.2}, None, "above 0"),
        ({}, None, "add up to 1"),
        (SHARES, "(", "isn't a regular expression"),
        (SHARES, "b*", "matches no file name of set"),
        (SHARES, "nowhere", "matches no file name of set, such as a1.jpg"),
        (SHARES, "a", "no picture is left for val .* 3 pictures in 1 groups"),
    ],
)
def test_what_cannot_be_split_is_said(tmp_path, shares, group, said):
    with pytest.raises(InputError, match=said):
        random_split(dataset({f"a{i}.jpg": [1] for i in (1, 2, 3)}), tmp_path, shares, group=group)
