"""Dataset report: anchor coverage against all anchors by brute force, planted faults, and the pages."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import AnchorConfig, ModelConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.data.inspect import anchor_coverage
from retinanet_tf.data.inspect.inspect_dataset import inspect_dataset
from retinanet_tf.data.inspect.page import html_page, text_page
from retinanet_tf.data.inspect.report import inspect
from retinanet_tf.data.records.example import to_example
from retinanet_tf.data.records.images import PreparedImage
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.coco import read_coco
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection import boxes as geometry
from retinanet_tf.detection.anchors import anchors_by_level
from retinanet_tf.errors import InputError
from tests.datasets import annotation, write_coco
from tests.small_detectors import encode


@pytest.mark.parametrize("height, width", [(96, 160), (130, 70)])
@pytest.mark.parametrize(
    "config",
    [
        AnchorConfig(),
        AnchorConfig(max_level=5, anchor_multiplier=2.0, anchor_ratios=(0.4, 1.0)),
        AnchorConfig(anchor_style="detectron2", anchor_scales=(1.0,)),
    ],
)
def test_the_nearest_anchor_is_the_best_of_all(config, height, width):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, (width, height), (60, 2))
    high = np.minimum(low + rng.uniform(1, 120, (60, 2)), (width, height))
    boxes = np.concatenate([low, np.maximum(high, low + 0.5)], axis=1)
    every = tf.concat(anchors_by_level(height, width, config), 0)
    brute = tf.reduce_max(geometry.iou(tf.constant(boxes, tf.float32)[:, None], every[None]), axis=1)
    best = anchor_coverage.best_iou(boxes, np.tile([height, width], (60, 1)), config)
    np.testing.assert_allclose(best, brute, atol=1e-5)


def test_a_box_like_an_anchor_is_reached_and_a_sliver_is_not():
    size = np.array([[600, 800]])
    centre = 12.0  # of the second cell of P3: (1 + 0.5) · 8
    exact = np.array([[centre - 16, centre - 16, centre + 16, centre + 16]])
    np.testing.assert_allclose(anchor_coverage.best_iou(exact, size, AnchorConfig()), 1.0)
    # 32 x 4 px within the anchor of 32·√2 x 16·√2 (ratio 1/2): 128 / 1024 by hand.
    sliver = np.array([[centre - 16, centre - 2, centre + 16, centre + 2]])
    np.testing.assert_allclose(anchor_coverage.best_iou(sliver, size, AnchorConfig()), 32 * 4 / 1024, rtol=1e-6)


def test_suggestions_reach_what_they_promise():
    # 10-px objects on 480 x 640 images: 12.5 px after the resize to 600, out of reach of 32-px anchors.
    rng = np.random.default_rng(1)
    low = rng.uniform(0, (600, 440), (200, 2))
    boxes, sizes = np.concatenate([low, low + 10], axis=1), np.tile([480, 640], (200, 1))
    config = AnchorConfig()
    before = anchor_coverage.best_iou(*anchor_coverage.resized(boxes, sizes, 600, 1000), config)
    assert (before < 0.5).all()
    offered = anchor_coverage.suggestions(boxes, sizes, config, ModelConfig(image_size=600, max_size=1000))
    assert offered and offered[0][1] < 0.6
    for flags, half, less in offered:
        given = dict(re.findall(r"--(\w+)=(\S+)", flags))
        short, long = int(given.pop("image_size", 600)), int(given.pop("max_size", 1000))
        changes = {k: tuple(float(x) for x in v.split(",")) if "," in v else float(v) for k, v in given.items()}
        again = anchor_coverage.best_iou(
            *anchor_coverage.resized(boxes, sizes, short, long), replace(config, **changes)
        )
        assert ((again < 0.5).mean(), (again < 0.4).mean()) == pytest.approx((half, less), abs=0.01)


def test_with_crops_objects_are_measured_in_crops(tmp_path):
    """40 px on an image of 3000x2000 are 12 px for the paper's network, out of its reach; in crops of 600 they stay."""
    path, images = write_coco(tmp_path, [(3000, 2000)], boxes_an_image=0)
    content = json.loads(path.read_text())
    content["annotations"] = [annotation(1 + x, 1, [700 * x, 490 * x, 40, 40]) for x in range(5)]
    path.write_text(json.dumps(content))
    for change, side in (({}, 12.0), ({"crop": 600}, 40.0)):
        found = inspect(read_coco(path), presets["paper"].replace(**change), str(images))
        assert found.facts["box side at that size"]["median"] == pytest.approx(side)
        assert any("no anchor reaches" in sentence for sentence in found.warnings) == (not change)


def faulty(tmp_path):
    """A dataset with one fault of each kind."""
    path, images = write_coco(tmp_path, [(640, 480)] * 5, boxes_an_image=0)
    content = json.loads(path.read_text())
    content["annotations"] = [
        annotation(1, 1, [10, 10, 100, 80]),
        annotation(2, 1, [11, 10, 100, 80]),  # near duplicate of 1
        annotation(3, 1, [600, 400, 100, 100]),  # overhangs
        annotation(4, 11, [10, 10, 0, 5]),  # no width
        annotation(5, 11, [100, 100, 300, 4], 3),  # 75 times as wide as high
        annotation(6, 21, [0, 0, 640, 480], 3),  # the whole image
        annotation(7, 21, [50, 50, 20, 20], 3),
        annotation(8, 21, [50, 50, 20, 20], 3),  # repeats 7
    ]
    content["images"][3]["width"] = 333
    path.write_text(json.dumps(content))
    (images / "000004.jpg").unlink()
    return path, images


def test_planted_faults_are_found_and_counted(tmp_path):
    path, images = faulty(tmp_path)
    found = inspect(read_coco(path), presets["paper"], str(images))
    assert [sentence.split(" ")[1].rstrip(":") for sentence in found.errors] == [
        "annotation",
        "000003.jpg",
        "000004.jpg",
    ]
    assert "640x480 pixels, but its annotation says 333x480" in found.errors[1]
    assert "annotation 4 [10, 10, 10, 15]: zero size box" in found.errors[0]
    reasons = {reason: text for reason, _, _, text in found.suspicious}
    assert "annotations 1 and 2: IoU 0.98" in reasons["near duplicates"]
    assert "annotation 5" in reasons["longer than ten times its other side"]
    assert "annotation 6" in reasons["as large as the image"]
    assert "annotation 8 repeats annotation 7" in reasons["duplicate boxes"]
    assert "annotation 3" in reasons["clipped boxes"]
    facts = found.facts
    assert (facts["images"], facts["boxes"], facts["images without objects"]) == (5, 8, 2)
    assert facts["categories"] == {"dog": 4, "cat": 4, "cup": 0}
    assert any("1 of 3 categories have no object: cup" in warning for warning in found.warnings)
    # 500 x 375 px to 4 px high at 600 px: 5 px high, out of every anchor's anchor_coverage.
    assert facts["unreached at IoU 0.5 by class"]["dog"].endswith("of 4)")
    page = text_page(found)
    for words in ("3 errors", "Settings with a better coverage", "objects per image", "annotations 1 and 2: IoU 0.98"):
        assert words in page


@pytest.mark.parametrize("form", ["coco", "csv", "voc"])
def test_swapped_corners_and_negative_sizes_are_on_the_page(tmp_path, form):
    """In both directions and in one; the folder is whole."""
    Image.fromarray(np.full((400, 400, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    boxes = [[300, 300, 100, 120], [100, 50, 90, 80], [50, 90, 80, 60]]
    if form == "coco":
        content = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "x"}]}
        rows = [annotation(i + 1, 1, [x1, y1, x2 - x1, y2 - y1], 1) for i, (x1, y1, x2, y2) in enumerate(boxes)]
        (tmp_path / "a.json").write_text(json.dumps({**content, "annotations": rows}))
    elif form == "csv":
        lines = [",".join(map(str, ["a.jpg", *box, "x"])) for box in boxes]
        (tmp_path / "a.csv").write_text("\n".join(["image,x1,y1,x2,y2,class", *lines]))
    else:
        corners = [
            "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), b, strict=True)) for b in boxes
        ]
        objects = "".join(f"<object><name>x</name><bndbox>{each}</bndbox></object>" for each in corners)
        (tmp_path / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{objects}</annotation>")
    source = {"coco": tmp_path / "a.json", "csv": tmp_path / "a.csv", "voc": tmp_path}[form]
    found = inspect_dataset(source, presets["mini"], tmp_path / "out", images=str(tmp_path))
    assert sum("zero size" in error for error in found.errors) == 3
    assert (tmp_path / "out" / "report.html").read_text().count("<figure>") == 3
    assert (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("first", "corner", "sentence"),
    [
        (60.0, 90.0, ""),
        (60.0, 150.0, "2 of 2 boxes overhang their images"),
        (120.0, 240.0, "2 of 2 boxes overhang their images"),
        (0.6, 0.9, "every box lies between 0 and 1"),
    ],
)
def test_boxes_of_another_format_are_doubted(first, corner, sentence):
    """Two boxes: as they are, with corners taken for sides, in part or wholly outside, and as shares of the image."""
    boxes = np.array([[first, first, corner, corner]] * 2) - [[0] * 4, [0.1] * 4]
    image = ImageAnnotations(1, "a.jpg", 100, 100, boxes, np.ones(2, int), np.ones(2), np.zeros(2, bool), np.arange(2))
    found = inspect(Annotations("mine.json", [image], LabelMap([1], ["thing"])), presets["paper"])
    said = [line for line in [*found.errors, *found.warnings[:1]] if "overhang" in line or "between" in line]
    assert len(said) == bool(sentence) and sentence in " ".join(said)


@pytest.mark.once
def test_the_real_dataset_gives_known_numbers(test_data):
    found = inspect(
        read_coco(test_data / "bccd" / "instances_train.json"), presets["paper"], str(test_data / "bccd" / "images")
    )
    raw = json.loads((test_data / "bccd" / "instances_train.json").read_text())
    assert not found.errors
    assert found.facts["images"] == 205 and found.facts["boxes"] == len(raw["annotations"])
    # Of the seven near duplicates that SOURCE.txt lists, those in the training half.
    names = {i["file_name"] for i in raw["images"]}
    listed = {f"BloodImage_{n}.jpg" for n in ("00020", "00100", "00104", "00251", "00284", "00331", "00403")} & names
    near = {image.file_name for reason, image, _, _ in found.suspicious if reason == "near duplicates"}
    assert near == listed


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    path, images = write_coco(folder, [(80, 60)] * 6 + [(60, 80)] * 3)
    prepare(path, images, folder / "out", shards=2, progress=False)
    return folder


@pytest.mark.once
def test_a_json_and_its_shards_give_one_page_with_pictures(small, tmp_path):
    from_json = inspect_dataset(small / "instances.json", presets["mini"], tmp_path / "a", images=str(small / "images"))
    from_shards = inspect_dataset(str(small / "out" / "train-*"), presets["mini"], tmp_path / "b")
    assert from_json.facts.keys() == from_shards.facts.keys()
    same = [k for k in from_json.facts if k != "expected positives per image"]
    assert {k: from_json.facts[k] for k in same} == {k: from_shards.facts[k] for k in same}
    assert not from_json.errors and not from_shards.errors
    for folder in (tmp_path / "a", tmp_path / "b"):
        page, text = (folder / "report.html").read_text(), (folder / "report.txt").read_text()
        assert page.count("data:image/jpeg;base64,") >= 1 and "http" not in page
        assert all(name in text and html.escape(name) in page for name in from_json.facts)
        assert json.loads((folder / "report.json").read_text())["facts"]["images"] == 9
        assert tf.io.decode_jpeg((folder / "samples.jpg").read_bytes()).shape[2] == 3


def test_damaged_shards_are_errors_not_a_crash(small, tmp_path):
    pattern = str(small / "out" / "train-*")
    index = read_index(pattern)
    copies = shutil.copytree(small / "out", tmp_path / "shards")
    broken = copies / "train-00000-of-00002.tfrecord"
    data = bytearray(broken.read_bytes())
    data[int(index.offset[1]) + 20] ^= 1
    broken.write_bytes(data)
    found = inspect_dataset(str(copies / "train-*"), presets["mini"], tmp_path / "out")
    (error,) = found.errors
    assert error.startswith(f"record 1 of {broken} is damaged") and "after it were not inspected" in error
    assert found.facts["images"] == 5
    assert "record 1 of" in (tmp_path / "out" / "report.txt").read_text()


@pytest.mark.once
def test_a_picture_that_does_not_decode_is_an_error_not_a_crash(tmp_path):
    truth, images = write_coco(tmp_path, [(60, 40)] * 4)
    cut = sorted(images.iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:-40])
    prepare(truth, images, tmp_path / "shards", verify="header", progress=False)
    found = inspect_dataset(str(tmp_path / "shards" / "train-*"), presets["mini"], tmp_path / "out")
    assert [error.split(" of ")[0] for error in found.errors] == ["record 1"]
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.once
def test_thumbnails_of_suspicious_boxes_are_on_the_page(tmp_path):
    path, images = faulty(tmp_path)
    found = inspect_dataset(path, presets["mini"], tmp_path / "out", images=str(images))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure>") == len(found.suspicious) == 6


def a_dataset(images, names=("dog", "cat")):
    """Annotations of 200x80 images: per image its name, its boxes and their category ids."""
    annotations = []
    for number, (name, boxes, categories) in enumerate(images):
        boxes = np.array(boxes, float).reshape(-1, 4)
        area, count = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), len(boxes)
        columns = (boxes, np.array(categories, int), area, np.zeros(count, bool), np.arange(count))
        annotations.append(ImageAnnotations(number, name, 200, 80, *columns))
    return Annotations("mine", annotations, LabelMap(range(1, len(names) + 1), names))


BOX = [10, 10, 60, 50]


@pytest.mark.parametrize("names", [("fish", "fish"), (" ", " ", "x"), ("a", "b", "a", "b", "a (1)")])
def test_categories_of_one_name_are_counted_apart(names):
    data = a_dataset([("a.jpg", [BOX] * (1 + k), [k + 1] * (1 + k)) for k in range(len(names))], names)
    facts = inspect(data, presets["paper"]).facts
    assert list(facts["categories"].values()) == list(range(1, len(names) + 1))
    assert len(facts["unreached at IoU 0.5 by class"]) == len(names)


def test_a_class_may_have_the_name_of_a_number_of_spreads():
    data = a_dataset([("a.jpg", [BOX, BOX], [1, 2])], ["median", "mean"])
    page = html_page(inspect(data, presets["paper"]), [], [])
    assert page.count("<td>median</td>") == page.count("<td>mean</td>") >= 2


def test_sizes_are_those_of_the_annotated_areas():
    data = a_dataset([("a.jpg", [BOX], [1])])
    data.images[0].area[:] = 500.0
    facts = inspect(data, presets["paper"]).facts
    assert facts["boxes by COCO's size"] == {"small": 1, "medium": 0, "large": 0}
    assert list(facts["unreached at IoU 0.5 by size"]) == ["small"]


def test_the_box_of_a_finding_is_drawn_though_ids_repeat():
    data = a_dataset([("a.jpg", [BOX, [190, 10, 220, 50], [50, 50, 90, 90]], [1, 1, 2])])
    data.images[0].annotation_ids[:] = 0
    drawn = [box.tolist() for kind, _, box, _ in inspect(data, presets["paper"]).suspicious if "clipped" in kind]
    assert drawn == [[190, 10, 220, 50], [50, 50, 90, 90]]


@pytest.mark.parametrize(("count", "warned"), [(100, False), (101, True), (300, True)])
def test_more_objects_than_evaluation_counts_are_said(count, warned):
    boxes = [[x % 90, x // 90, x % 90 + 5, x // 90 + 5] for x in range(count)]
    found = inspect(a_dataset([("a.jpg", boxes, [1] * count), ("b.jpg", [BOX], [2])]), presets["paper"])
    said = [text for text in found.warnings if "max_detections" in text]
    assert len(said) == warned and all(f"1 images have more than 100 objects (up to {count})" in text for text in said)


@pytest.mark.once
@pytest.mark.parametrize(("boxes", "sentence"), [(0, "no box at all"), (1, "all 1 boxes of"), (3, "all 3 boxes of")])
def test_sets_without_objects_are_inspected(tmp_path, boxes, sentence):
    path, images = write_coco(tmp_path, [(80, 60)] * 4, boxes_an_image=0)
    content = json.loads(path.read_text())
    content["annotations"] = [annotation(n + 1, 1, [10 * n, 5, 9, 9], iscrowd=1) for n in range(boxes)]
    path.write_text(json.dumps(content))
    found = inspect_dataset(path, presets["mini"], tmp_path / "report", images=str(images))
    assert not found.errors and found.facts["images without objects"] == 4 and found.facts["crowds"] == boxes
    assert sum(sentence in text for text in found.warnings) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\1", r"two\nlines\x01"),
        ("\u202eright to left", r"\u202eright to left"),
        ("<b>&", "<b>&"),
        ("z" * 200_000, "z" * 20),
    ],
)
def test_names_can_do_nothing_to_terminal_and_page(name, shown):
    """As a category's, an image's and a source's name."""
    boxes = [BOX, [10, 10, 60, 11], [190, 10, 220, 50], [5, 5, 5, 9]]
    data = a_dataset([(name, boxes, [1] * 4)], [name, name, "other" + name])
    found = inspect(dataclasses.replace(data, source=name), presets["paper"])
    black = np.zeros((9, 9, 3), np.uint8)
    text, page = text_page(found), html_page(found, [(black, name)], [(name, black)])
    for content in (text, page):
        assert all(letter.isprintable() or letter == "\n" for letter in content) and len(content) < 40_000
    assert shown in text and html.escape(shown) in page and "<b>&" not in page
    assert text.count("\n") == text_page(inspect(a_dataset([("a", boxes, [1] * 4)], "abc"), presets["paper"])).count(
        "\n"
    )


def write_records(folder, images, id="7", size=(60, 40)):
    """Shards of (name, colour) pictures with a sliver each; returns the pattern."""
    (folder / "labels.json").write_text('[{"id": 1, "name": "thing"}]')
    with tf.io.TFRecordWriter(str(folder / "x.tfrecord")) as writer:
        for name, colour in images:
            columns = (np.array([[5.0, 5, 50, 6]]), np.ones(1, int), np.ones(1), np.zeros(1, bool), np.zeros(1, int))
            png = encode(np.full((*size[::-1], 3), colour, np.uint8))
            annotations = ImageAnnotations(id, name, *size, *columns)
            writer.write(to_example(PreparedImage(png, "png", *size), annotations, LabelMap([1], ["thing"])))
    return str(folder / "x.tfrecord")


@pytest.mark.once
@pytest.mark.parametrize(("id", "names"), [("7", ["", "", ""]), ("", ["same.jpg"] * 3), ("x", ["a", "b", "a"])])
def test_records_of_one_id_or_name_are_told_apart(tmp_path, id, names):
    """The thumbnails, in the records' order, have the records' colours; names that repeat are said."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    pattern = write_records(tmp_path, zip(names, colours, strict=True), id)
    found = inspect_dataset(pattern, presets["mini"], tmp_path / "out")
    assert not found.errors and found.facts["images"] == 3
    assert sum("images are there several times" in text for text in found.warnings) == (names[0] != "")
    figures = re.findall(
        r"<figure><img src='data:image/jpeg;base64,([^']*)'", (tmp_path / "out/report.html").read_text()
    )
    for content, colour in zip(figures, colours, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).reshape(-1, 3)
        assert (np.abs(pixels - colour).max(axis=1) < 30).mean() > 0.2


def test_what_is_for_annotations_is_refused_with_shards(tmp_path):
    pattern = write_records(tmp_path, [("a", (9, 9, 9))])
    for options in ({"images": tmp_path}, {"split": "val"}):
        with pytest.raises(InputError, match="images and split are for annotations"):
            inspect_dataset(pattern, presets["mini"], tmp_path / "out", **options)
    with pytest.raises(InputError, match="output folder '' must be a local folder"):
        inspect_dataset(pattern, presets["mini"], "")


@pytest.mark.parametrize("name", ["none.json", "none-*"])
def test_missing_data_is_named(tmp_path, name):
    with pytest.raises(InputError, match="none"):
        inspect_dataset(tmp_path / name, presets["mini"], tmp_path / "out")


@pytest.mark.once
def test_the_command_ends_with_status_1_on_errors(tmp_path, forked):
    path, images = faulty(tmp_path)
    flags = [f"--data={path}", f"--images={images}", f"--output={tmp_path / 'out'}", "--preset=mini"]
    status, output = forked.run("inspect", flags)
    assert status == 1 and "Traceback" not in output, output
    assert "3 errors" in output and "report.html" in output
