"""The detector: however an image comes in, the same boxes in its own pixels come out."""

import dataclasses
import io
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_detectors import clutter, encode, small_detector

from retinanet_tf.config.presets import presets
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import Detector, batches_by_canvas, detect_all
from retinanet_tf.inference.results import to_results
from retinanet_tf.map_ahead import map_ahead

LABEL_MAP = LabelMap([1, 5, 9], ["a", "b", "c"])
MIXED = [(50, 70), (70, 50), (20, 90), (50, 70), (1, 1), (70, 50)]


@pytest.fixture(scope="module")
def detector():
    return small_detector(LABEL_MAP, spread=0.1)


def check_same(one, other, atol=1e-4):
    for name, value in one.items():
        np.testing.assert_allclose(np.asarray(value), np.asarray(other[name]), atol=atol)


def first(answer, index):
    return {name: value[index] for name, value in answer.items()}


def saved(pixels, folder, name, **options):
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def turned(pixels, folder):
    """A file whose EXIF orientation says that the stored picture is upright after a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(np.rot90(pixels), folder, "turned.png", exif=exif)


SINGLE = {
    "uint8": lambda pixels, _: pixels,
    "int16": lambda pixels, _: pixels.astype(np.int16),
    "uint32": lambda pixels, _: pixels.astype(np.uint32),
    "float16": lambda pixels, _: pixels.astype(np.float16),
    "float64": lambda pixels, _: pixels.astype(np.float64),
    "tensor": lambda pixels, _: tf.constant(pixels, tf.int64),
    "numbers": lambda pixels, _: pixels.tolist(),
    "alpha": lambda pixels, _: np.dstack([pixels, pixels[..., 0]]),
    "path": lambda pixels, folder: str(saved(pixels, folder, "a b.png")),
    "Path": lambda pixels, folder: saved(pixels, folder, "x[1].bmp"),
    "TIFF": lambda pixels, folder: saved(pixels, folder, "x.tiff"),
    "file with alpha": lambda pixels, folder: saved(np.dstack([pixels, pixels[..., 0]]), folder, "x.png"),
    "turned file": turned,
    "bytes": lambda pixels, _: encode(pixels),
    "bytearray": lambda pixels, _: bytearray(encode(pixels)),
    "string tensor": lambda pixels, _: tf.constant(encode(pixels)),
    "Pillow": lambda pixels, _: Image.fromarray(pixels),
    "Pillow, RGBA": lambda pixels, _: Image.fromarray(np.dstack([pixels, pixels[..., 0]])),
    "Pillow, from a turned file": lambda pixels, folder: Image.open(turned(pixels, folder)),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", SINGLE)
def test_one_image_in_every_form_is_a_batch_of_one(detector, form, tmp_path):
    answer = detector([clutter(0)])
    assert answer["boxes"].shape == (1, 30, 4) and answer["num_detections"][0] > 3
    check_same(detector(SINGLE[form](clutter(0), tmp_path)), answer)
    check_same(detector([SINGLE[form](clutter(0), tmp_path)]), answer)


GREY = {
    "(H, W)": lambda grey, _: grey,
    "(H, W, 1)": lambda grey, _: grey[..., None].astype(np.float32),
    "file": lambda grey, folder: saved(grey, folder, "grey.png"),
    "16-bit file": lambda grey, folder: saved(grey.astype(np.uint16) * 257, folder, "grey.png"),
    "Pillow, 16 bits": lambda grey, folder: Image.open(saved(grey.astype(np.uint16) * 257, folder, "grey.png")),
    "Pillow, float": lambda grey, _: Image.fromarray(grey.astype(np.float32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", GREY)
def test_a_grey_image_is_one_of_three_equal_channels(detector, form, tmp_path):
    grey = clutter(0)[..., 1]
    check_same(detector(GREY[form](grey, tmp_path)), detector([np.dstack([grey] * 3)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        np.stack,
        tuple,
        iter,
        lambda images: tf.stack([tf.io.encode_png(image) for image in images]),
        lambda images: np.array([encode(image) for image in images], object),
        lambda images: [images[0].astype(np.float32), Image.fromarray(images[1]), encode(images[2])],
    ],
    ids=["batch", "tuple", "iterator", "string tensor", "objects", "mixed"],
)
def test_several_images_in_every_form_are_the_same(detector, form):
    images = [clutter(0), clutter(1), clutter(2)]
    answer = detector(images)
    assert answer["boxes"].shape == (3, 30, 4) and answer["labels"].dtype == tf.int32
    assert (answer["num_detections"].numpy() > 3).all()
    check_same(detector(form(images)), answer)


@pytest.mark.slow
def test_mixed_sizes_are_detected_each_by_itself(detector):
    """In input order, whichever images share a canvas; all boxes inside their image."""
    images = [clutter(number, *size) for number, size in enumerate(MIXED)]
    answer = detector(images)
    for index, image in enumerate(images):
        check_same(first(answer, index), first(detector([image]), 0))
        height, width = image.shape[:2]
        assert np.all(answer["boxes"][index].numpy() <= [width, height, width, height])


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_stream_gives_every_image_once_and_the_same(detector, batch_size):
    images = [clutter(number, *size) for number, size in enumerate(MIXED)]
    answer = detector(images)
    streamed = list(detect_all(detector, map(encode, images), batch_size))
    assert sorted(index for index, _ in streamed) == list(range(len(images)))
    for index, detections in streamed:
        count = int(answer["num_detections"][index])
        check_same(detections, {name: answer[name][index][:count] for name in detections})


def test_boxes_are_in_the_images_own_pixels(detector):
    """An image that is resized by exactly two has the boxes of its double, halved."""
    small = detector([clutter(0, 32, 48)])
    enlarged = detector([tf.image.resize(clutter(0, 32, 48), [64, 96])])
    assert small["num_detections"][0] > 3
    np.testing.assert_allclose(small["boxes"].numpy() * 2, enlarged["boxes"].numpy(), atol=1e-3)
    np.testing.assert_allclose(small["scores"].numpy(), enlarged["scores"].numpy(), atol=1e-5)


def test_answers_are_sorted_and_empty_rows_marked(detector):
    images = [clutter(0), np.full((40, 40, 3), 127, np.uint8)]
    answer = {name: value.numpy() for name, value in detector(images).items()}
    assert np.all(np.diff(answer["scores"], axis=1) <= 0)
    for row, count in enumerate(answer["num_detections"]):
        assert np.all(answer["labels"][row, :count] >= 0) and np.all(answer["scores"][row, :count] > 0.05)
        assert np.all(answer["labels"][row, count:] == -1) and not answer["boxes"][row, count:].any()


def test_no_images_no_detections(detector):
    answer = detector([])
    assert answer["boxes"].shape == (0, 30, 4) and answer["num_detections"].shape == (0,)


@pytest.mark.slow
def test_inside_a_graph(detector):
    """`prepare` and `detect_canvases` in one tf.function, as serving uses them."""

    @tf.function
    def graph(image):
        return detector.detect_canvases(*(value[None] for value in detector.prepare(image)))

    check_same(graph(tf.constant(clutter(3))), detector([clutter(3)]))


@pytest.mark.once
def test_a_compiled_detector_gives_the_same_and_traces_few_shapes(detector):
    """Batches of 3, 4 and 1 images: traced for powers of two only, and never anew."""
    compiled = small_detector(LABEL_MAP, spread=0.1, jit_compile=True)
    traces = []
    select = compiled.select
    compiled.select = lambda outputs, canvases, *rest: traces.append(canvases.shape) or select(outputs, canvases, *rest)
    images = [clutter(k) for k in range(4)]
    for start in (1, 0, 3):
        check_same(compiled(images[start:]), detector(images[start:]), atol=1e-2)
    for _ in detect_all(compiled, images, batch_size=3):
        pass
    assert [shape[0] for shape in traces] == [4, 1]
    assert compiled([])["boxes"].shape == (0, 30, 4)


@pytest.mark.once
def test_replicas_share_the_images_and_count_each_once(detector):
    """Two replicas, groups of 1, 3 and 5 images: none divides evenly."""
    images = [clutter(k) for k in range(5)] + [clutter(9, 70, 50)] + [clutter(k, 64, 64) for k in range(3)]
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = small_detector(LABEL_MAP, spread=0.1)
        answer = mirrored(images)
        streamed = dict(detect_all(mirrored, images, batch_size=2))
        compiled = small_detector(LABEL_MAP, spread=0.1, jit_compile=True)(images[:3])
    expected = detector(images)
    check_same(answer, expected)
    check_same(compiled, {name: value[:3] for name, value in expected.items()}, atol=1e-2)
    assert sorted(streamed) == list(range(9))
    for index, detections in streamed.items():
        count = int(expected["num_detections"][index])
        np.testing.assert_allclose(detections["scores"], expected["scores"][index][:count].numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "is no image that can be read"),
        (encode(clutter(0))[:99], "doesn.t decode: Truncated"),
        (pathlib.Path("nowhere.jpg"), "nowhere.jpg can't be read"),
        (__file__, "test_detector.py, is no image"),
        (np.zeros((5, 5, 2), np.uint8), r"has shape \(5, 5, 2\)"),
        (np.zeros((3, 20, 20), np.uint8), r"has shape \(3, 20, 20\)"),
        (np.zeros((0, 5, 3), np.uint8), r"has shape \(0, 5, 3\)"),
        (np.zeros((20, 3)), r"has shape \(20, 3\)"),
        (clutter(0).astype(np.uint16) * 16, "has values from 0 to 4080"),
        (clutter(0).astype(np.int32) - 128, "has values from -128"),
        (clutter(0) / 255, "has values from 0 to 1; scale"),
        (clutter(0) / 127.5 - 1, "has values from -1 to 1; scale"),
        (np.where(clutter(0) > 99, np.nan, clutter(0)), "NaN"),
        (clutter(0) > 99, "is of type bool"),
        (np.zeros((5, 5, 3), complex), "is of type complex128"),
        (None, "is neither a readable image nor an array"),
        (Image.open(io.BytesIO(encode(clutter(0, 300, 300))[:5000])), "is neither a readable image"),
    ],
    ids=range(17),
)
@pytest.mark.parametrize("run", [lambda detector, images: detector(images), lambda *args: list(detect_all(*args))])
def test_what_is_not_an_image_is_named(detector, run, image, message):
    with pytest.raises(InputError, match=message) as raised:
        run(detector, [clutter(0), image])
    assert "nowhere" in message or "images[1]" in str(raised.value)


@pytest.mark.parametrize(
    "images", [None, 3, {"image": clutter(0)}, np.zeros((1, 2, 5, 5, 3)), np.zeros(3), np.uint8(3)]
)
def test_what_is_neither_an_image_nor_several_is_refused(detector, images):
    with pytest.raises(InputError, match="images (is of type|has shape)"):
        detector(images)


def test_label_map_of_another_model_is_refused(detector):
    with pytest.raises(InputError, match="num_classes=3 .* 2 categories"):
        Detector(detector.model, LabelMap([1, 2], ["a", "b"]))
    with pytest.raises(InputError, match=r"label_map=\['a', 'b', 'c'\] must be a LabelMap"):
        Detector(detector.model, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "runs/x"}, "model='runs/x' is no RetinaNet"),
        ({"config": presets["mini"]}, "config of type Config is no DetectConfig"),
        ({"config": None}, "config of type NoneType is no DetectConfig"),
        ({"image_size": 128}, "image_size=128 must be at most max_size=96; give both"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(detector, arguments, message):
    with pytest.raises(InputError, match=message):
        Detector(**{"model": detector.model, **arguments})


def test_a_variable_is_an_image(detector):
    given, plain = detector(tf.Variable(clutter(0))), detector(clutter(0))
    np.testing.assert_array_equal(given["scores"], plain["scores"])


def test_description_and_defaults(detector):
    assert detector.describe() == {
        **{"image_size": 64, "max_size": 96, "resize": "shorter_side"},
        **dataclasses.asdict(detector.config),
    }
    assert Detector(detector.model).label_map.ids == (0, 1, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, float("inf")])
def test_batches_hold_equal_canvases_and_every_image_once(detector, batch_size):
    prepared = [detector.prepare(tf.constant(clutter(0, *size))) for size in MIXED * 2]
    batches = list(batches_by_canvas(prepared, batch_size))
    assert sorted(index for indices, _ in batches for index in indices) == list(range(12))
    assert all(batch == [prepared[index] for index in indices] for indices, batch in batches)
    shapes = [tuple({image.canvas.shape for image in batch}) for _, batch in batches]
    assert all(len(shape) == 1 for shape in shapes)
    for shape in set(shapes):
        sizes = [len(batch) for (_, batch), other in zip(batches, shapes, strict=True) if other == shape]
        assert all(size == batch_size for size in sizes[:-1]) and sizes[-1] <= batch_size


def test_map_ahead_keeps_the_order_and_its_distance():
    taken, threads, results = [], set(), []

    def square(number):
        threads.add(threading.get_ident())
        return number * number

    for result in map_ahead(square, (taken.append(number) or number for number in range(50)), ahead=5):
        results.append(result)
        assert len(taken) < len(results) + 5
    assert results == [number * number for number in range(50)] and threading.get_ident() not in threads


def test_results_keep_scores_and_boxes():
    """COCO's format; the score reads back as the same float32."""
    detections = {"boxes": np.float32([[1.23456, 2, 11.23456, 22]]), "scores": np.float32([1 / 3]), "labels": [2]}
    (result,) = to_results(detections, 17, LABEL_MAP.ids)
    assert np.float32(result.pop("score")) == np.float32(1 / 3)
    assert result.pop("bbox") == pytest.approx([1.235, 2, 10, 20], abs=1e-6)
    assert result == {"image_id": 17, "category_id": 9}
