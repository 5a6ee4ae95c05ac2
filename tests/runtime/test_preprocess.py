"""Pictures to canvases in numpy: TensorFlow's resizing and the detector's pixels, without either."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.data import transforms
from retinanet_tf.errors import InputError
from retinanet_tf.inference.images import to_image
from retinanet_tf.runtime.preprocess import fit, fitted_shape, own_pixels, resize, to_pixels
from tests.small_detectors import clutter, encode

NOISE = np.random.default_rng(0).integers(0, 256, (301, 417, 3), np.uint8)
CHECKERBOARD = np.repeat(np.indices((512, 512)).sum(0)[..., None] % 2 * 255, 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "height", "width"),
    [
        (CHECKERBOARD, 128, 128),
        (NOISE, 200, 277),
        (NOISE, 500, 1333),
        (NOISE, 1, 1),
        (NOISE[:1, :1], 3, 2),
        (NOISE[:2, :3].astype(np.float32), 7, 5),
    ],
)
def test_resizing_is_tensorflows(image, height, width):
    expected = transforms.resize_to(tf.constant(image), tf.constant([height, width])).numpy()
    resized = resize(image, height, width)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-3)


def test_a_square_canvas_gets_the_size_that_the_papers_rule_gives():
    """The rule with both sides the canvas'; one side differs as soon as the scale is float32 or rounded up."""
    sizes = [(height, width) for height in range(1, 2000, 7) for width in range(1, 2000, 7)]
    for height, width in [*sizes, (1571, 3775)]:
        assert fitted_shape(height, width, 640, 640) == transforms.resized_shape(height, width, 640, 640)


@pytest.mark.parametrize("size", [(1571, 3775), (1, 2000), (2000, 1), (333, 500), (3, 3)])
@pytest.mark.parametrize("canvas", [(640, 640), (512, 768), (96, 160)])
def test_pictures_fit_and_boxes_come_back(size, canvas):
    height, width = fitted_shape(*size, *canvas)
    assert 1 <= height <= canvas[0] and 1 <= width <= canvas[1]
    assert height == canvas[0] or width == canvas[1], "as large as possible"
    prepared = fit(np.zeros((*size, 3), np.uint8), *canvas, (0, 0, 0))
    boxes = np.array([[0.1, 0.2, 0.7, 0.9]], np.float32) * np.float32([size[1], size[0], size[1], size[0]])
    y, x = prepared.scale
    back = own_pixels(boxes * np.float32([x, y, x, y]), prepared.scale, *size)
    np.testing.assert_allclose(back, boxes, atol=1e-3)
    beyond = np.array([[-5, -5, 1e6, 1e6]], np.float32)
    np.testing.assert_array_equal(own_pixels(beyond, prepared.scale, *size), [[0, 0, size[1], size[0]]])


def test_the_picture_lies_at_the_top_left_of_padding():
    """40×60 into 30×30: 20×30, and ten rows of padding."""
    prepared = fit(NOISE[:40, :60], 30, 30, (124, 116, 104))
    assert prepared.canvas.dtype == np.uint8 and prepared.canvas.shape == (30, 30, 3)
    np.testing.assert_array_equal(prepared.size, [20, 30])
    np.testing.assert_allclose(prepared.scale, [0.5, 0.5])
    np.testing.assert_array_equal(prepared.canvas[20:], np.broadcast_to([124, 116, 104], (10, 30, 3)))
    np.testing.assert_array_equal(prepared.canvas[:20], np.rint(resize(NOISE[:40, :60], 20, 30)))


@pytest.mark.parametrize("size", [(40, 60), (300, 50), (30, 30)])
def test_a_stretched_picture_fills_the_canvas(size):
    prepared = fit(NOISE[: size[0], : size[1]], 30, 45, (1, 2, 3), stretch=True)
    expected = transforms.resize_to(tf.constant(NOISE[: size[0], : size[1]]), tf.constant([30, 45])).numpy()
    np.testing.assert_allclose(prepared.canvas, expected, atol=0.51)
    np.testing.assert_array_equal(prepared.size, [30, 45])
    np.testing.assert_allclose(prepared.scale, [30 / size[0], 45 / size[1]], rtol=1e-6)


def file_of(mode, form, **options):
    picture = Image.fromarray(clutter(4))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
FILES = {
    "noisy JPEG": encode(NOISE, "JPEG", quality=60, subsampling="4:2:0"),
    "turned JPEG": file_of("RGB", "JPEG", exif=TURNED),
    "grey JPEG": file_of("L", "JPEG"),
    "CMYK JPEG": file_of("CMYK", "JPEG"),
    "grey and alpha": file_of("LA", "PNG"),
    "palette": file_of("P", "PNG"),
    "alpha": file_of("RGBA", "PNG"),
    "16 bit": file_of("I;16", "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_and_pillow_images_have_the_detectors_pixels(name, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(FILES[name])
    expected = to_image(path, 0).numpy()
    assert expected.shape == ((70, 50, 3) if "turned" in name else (301, 417, 3) if "noisy" in name else (50, 70, 3))
    np.testing.assert_array_equal(to_pixels(path), expected)
    np.testing.assert_array_equal(to_pixels(Image.open(path)), to_image(Image.open(path), 0).numpy())


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays_become_three_channels(shape):
    array = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(to_pixels(array), to_image(array, 0).numpy())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 7, 3), np.float32), "float32; give RGB pixels"),
        (np.zeros((5, 7, 2), np.uint8), "has shape"),
        (np.zeros((5, 3), np.uint8), "has shape"),
        (np.zeros((0, 7, 3), np.uint8), "has shape"),
        (np.zeros((1, 5, 7, 3), np.uint8), "has shape"),
        (None, "object; give"),
        ("nowhere.jpg", "nowhere.jpg"),
        (__file__, "test_preprocess.py, is no image"),
        (Image.open(io.BytesIO(encode(NOISE)[:5000])), "is neither a readable image nor an array"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(InputError) as raised:
        to_pixels(image, 3)
    assert message in str(raised.value)
    assert "images[3]" in str(raised.value) or "nowhere" in message
