"""The generated dataset: boxes against masks and against pixels, determinism, reuse, interruption."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from retinanet_tf.data.synthetic import scenes, shapes, styles
from retinanet_tf.errors import InputError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return folder, shapes.generate(folder, num_train=150, num_val=10, seed=3)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.once
def test_boxes_enclose_the_mask_and_areas_are_the_masks(dataset):
    coco = COCO(dataset[1]["train"].annotations)
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # The mask has whole pixels and leaves out those that are covered by less than a half: the thin tip of a
        # star can be outside it, but nothing of the mask is ever outside the box.
        box = np.array([x, y, x + width, y + height])
        assert np.all(np.abs(np.clip(extent, [*box[:2]] * 2, [*box[2:]] * 2) - extent) < 1.0), annotation
        assert abs(mask.sum() - annotation["area"]) <= 0.08 * annotation["area"] + 6
        assert annotation["area"] < width * height + 1e-6


def test_box_is_where_the_pixels_change():
    """Against the picture: with and without its one shape it differs inside the box, up to every edge, only."""
    for number in range(25):
        empty = scenes.draw_scene((5, number), 96, 0, (12, 80)).image.astype(int)
        scene = scenes.draw_scene((5, number), 96, 1, (12, 80))
        changed = np.abs(scene.image.astype(int) - empty).sum(-1) > 0
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(scene.shapes[0].box, extent, atol=1.0)


def test_hidden_parts_belong_to_no_box():
    """Masks of one picture are disjoint, and every shape shows at least the share asked for."""
    overlapping = 0
    for number in range(40):
        scene = scenes.draw_scene((6, number), 96, 6, (24, 90), min_visible=0.6)
        masks = np.array([shape.mask for shape in scene.shapes])
        # Two shapes can each cover half of a pixel on their common edge.
        assert (masks.sum(0) > 1).mean() < 0.01
        for front, behind in zip(scene.shapes, scene.shapes[1:], strict=False):
            a, b = front.box, behind.box
            overlapping += min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    assert overlapping > 20, "no occlusion: the test would show nothing"


def test_what_the_set_promises(dataset):
    content = json.loads(dataset[1]["train"].annotations.read_text())
    assert len(content["images"]) == 150 == len(list(dataset[1]["train"].images.glob("*.jpg")))
    ids = [category["id"] for category in content["categories"]]
    assert len(ids) >= 5 and max(ids) > len(ids), "category ids are sparse"
    assert {annotation["category_id"] for annotation in content["annotations"]} == set(ids)
    per_image = [sum(a["image_id"] == image["id"] for a in content["annotations"]) for image in content["images"]]
    assert 0 < per_image.count(0) < 0.15 * 150 and max(per_image) >= 4
    longer = np.array([max(annotation["bbox"][2:]) for annotation in content["annotations"]])
    assert longer.min() < 14 and longer.max() > 90
    for image in content["images"]:
        with Image.open(dataset[1]["train"].images / image["file_name"]) as picture:
            assert picture.format == "JPEG" and picture.size == (image["width"], image["height"])


@pytest.mark.once
def test_same_bytes_for_any_number_of_images_and_processes(dataset, tmp_path):
    shapes.generate(tmp_path / "two", num_train=20, num_val=10, seed=3, processes=2)
    again, more = digests(tmp_path / "two"), digests(dataset[0])
    pictures = [name for name in again if name.endswith(".jpg")]
    assert len(pictures) == 30 and all(again[name] == more[name] for name in pictures)
    assert again["val.json"] == more["val.json"]
    shapes.generate(tmp_path / "other", num_train=20, num_val=10, seed=4)
    assert not set(again.values()) & set(digests(tmp_path / "other").values())


def test_reused_refused_and_completed(tmp_path, capsys):
    arguments = {"num_train": 6, "num_val": 2, "image_size": 64}
    split = shapes.generate(tmp_path, **arguments)["train"]
    first = digests(tmp_path)
    times = [path.stat().st_mtime_ns for path in sorted(split.images.iterdir())]
    capsys.readouterr()
    shapes.generate(tmp_path, **arguments)
    assert "reused" in capsys.readouterr().out
    assert times == [path.stat().st_mtime_ns for path in sorted(split.images.iterdir())]
    with pytest.raises(InputError, match="seed"):
        shapes.generate(tmp_path, seed=1, **arguments)
    with pytest.raises(InputError, match="another number of images"):
        shapes.generate(tmp_path, **{**arguments, "num_train": 7})
    assert digests(tmp_path) == first
    next(split.images.iterdir()).unlink()
    shapes.generate(tmp_path, **arguments)
    assert digests(tmp_path) == first, "a missing picture is drawn again"


def test_interrupted_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    drawn = []

    def interrupted(*arguments):
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return scenes.draw_scene(*arguments)

    monkeypatch.setattr(shapes, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path, num_train=6, num_val=2, image_size=64)
    assert not (tmp_path / "train.json").exists() and not (tmp_path / "train").exists()
    monkeypatch.undo()
    shapes.generate(tmp_path, num_train=6, num_val=2, image_size=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "train.json", "val", "val.json"]


def test_few_small_objects_on_a_large_canvas(tmp_path):
    split = shapes.generate(tmp_path, 4, 1, image_size=384, objects=(1, 2), sizes=(16, 48), empty_share=0.0)["train"]
    annotations = json.loads(split.annotations.read_text())["annotations"]
    assert 4 <= len(annotations) <= 8
    assert all(4 <= max(annotation["bbox"][2:]) <= 49 for annotation in annotations)


@pytest.mark.parametrize(
    "arguments", [{"num_train": 0}, {"image_size": 8}, {"objects": (3, 2)}, {"sizes": (8, 900)}, {"seed": -1}]
)
def test_impossible_arguments(arguments, tmp_path):
    with pytest.raises(InputError, match="shapes can't be generated"):
        shapes.generate(tmp_path, **{"num_train": 1, "num_val": 1, **arguments})
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be created"):
        shapes.generate(tmp_path / "file" / "set", 1, 1)


def test_somebody_elses_json_is_not_overwritten(tmp_path):
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(InputError, match=r"train\.json was not written by the generator"):
        shapes.generate(tmp_path, 1, 1)


@pytest.mark.once
def test_the_hard_style_has_twenty_classes_and_its_decoys_are_in_no_box():
    """Against the same picture without decoys: what changes besides the shapes themselves has no annotation."""
    style = styles.STYLES["lookalikes"]
    kinds = set(style.categories.values())
    assert len(style.categories) == len(kinds) == 20 and max(style.categories) > 20
    for decoy in style.decoys:
        assert not {decoy, *(decoy._replace(surface=surface) for surface in styles.SURFACES)} <= kinds
        assert decoy not in kinds and (decoy.surface or decoy.outline not in styles.OUTLINES)
    found, painted = set(), 0
    for number in range(60):
        alone = scenes.draw_scene((8, number), 96, 0, (12, 40), 0.3, "lookalikes")
        scene = scenes.draw_scene((8, number), 96, 4, (12, 40), 0.3, "lookalikes")
        assert not alone.shapes and all(shape.category_id in style.categories for shape in scene.shapes)
        found |= {shape.category_id for shape in scene.shapes}
        plain = scenes.draw_scene((8, number), 96, 0, (12, 40)).image.astype(int)
        painted += (np.abs(alone.image.astype(int) - plain).sum(-1) > 90).sum() > 20
    assert found == set(style.categories) and painted > 30


def test_the_hard_styles_contrast_is_low():
    rng = np.random.default_rng(0)
    under = np.full(3, 128.0)
    distances = [
        [np.linalg.norm(scenes._colour(rng, under, style.contrast) - under) for _ in range(300)]
        for style in (styles.STYLES["shapes"], styles.STYLES["lookalikes"])
    ]
    assert np.mean(np.array(distances[0]) < 110) < 0.05, "a colour apart is found in sixteen tries"
    assert 40 <= min(distances[1]) < 45 and 85 < max(distances[1]) <= 90.1
