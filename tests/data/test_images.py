"""Image files: the outcome of every awkward file of the real collection, EXIF orientation, bit depths, damage."""

import io
import struct
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.data.decoding import decode_image
from retinanet_tf.data.records.images import (
    BadImage,
    ImagePolicy,
    PreparedImage,
    picture_pixels,
    prepare_image,
    read_pixels,
)
from retinanet_tf.data.sources.image_headers import picture_size, quiet_pillow
from tests.datasets import picture

SAMPLES = Path(__file__).parent / "samples"

# What each file becomes: "kept" (its own bytes), a format it is converted to, or the words that refuse it. The number
# is the mean difference from the reference pixels that its coding explains; None where there is no reference.
OUTCOMES = {
    "animated.gif": ("png", 6),
    "bmp_named.jpg": ("png", 0),
    "cmyk.jpg": ("jpeg", 4),
    "corrupt_middle.jpg": ("kept", 9),
    "empty.jpg": ("is empty", None),
    "exif3.jpg": ("EXIF orientation 3", None),
    "exif6.jpg": ("EXIF orientation 6", None),
    "gif_named.jpg": ("png", 6),
    "gray.jpg": ("jpeg", 13),
    "gray16.png": ("png", 12),
    "gray_alpha.png": ("png", 12),
    "header_only.jpg": ("no image that can be read", None),
    "huge_dims.png": ("20000x20000 pixels, more than max_pixels", None),
    "one_pixel.jpg": ("kept", None),
    "onebit.png": ("png", 85),
    "palette_trns.png": ("png", 7),
    "plain.jpg": ("kept", 4),
    "png_named.jpg": ("kept", 0),
    "progressive.jpg": ("kept", 6),
    "real_bad_exif.jpg": ("jpeg", None),
    "real_broken.png": ("no image that can be read, but a damaged PNG file", None),
    "real_cmyk_adobe.jpg": ("jpeg", None),
    "real_exif_orientation6.jpg": ("EXIF orientation 6", None),
    "real_gray.jpg": ("jpeg", None),
    "real_junk_header.jpg": ("kept", None),
    "real_multiframe_mpo.jpg": ("kept", None),
    "real_truncated.jpg": ("doesn't decode", None),
    "real_truncated.png": ("doesn't decode", None),
    "real_zero_width.gif": ("no image that can be read", None),
    "reference_rgb.png": ("kept", 0),
    "rgb16.png": ("png", 1),
    "rgba.png": ("png", 0),
    "text_named.jpg": ("no image that can be read", None),
    "trailing_garbage.jpg": ("kept", 4),
    "truncated_60pct.jpg": ("doesn't decode", None),
    "very_wide.jpg": ("kept", None),
    "webp_named.jpg": ("jpeg", 5),
}


@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_every_awkward_file_has_its_outcome(test_data, name):
    encoded = (test_data / "awkward" / name).read_bytes()
    outcome, tolerance = OUTCOMES[name]
    if outcome not in ("kept", "png", "jpeg"):
        with pytest.raises(BadImage, match=outcome):
            prepare_image(encoded, (None, None), ImagePolicy())
        return
    prepared = prepare_image(encoded, (None, None), ImagePolicy())
    assert (prepared.encoded == encoded) == (outcome == "kept") == (not prepared.changed)
    # The pixels that training sees, through TensorFlow's decoder:
    pixels = decode_image(tf.constant(prepared.encoded)).numpy()
    assert pixels.shape == (prepared.height, prepared.width, 3)
    assert prepared.encoded[:2] == {"png": b"\x89P", "jpeg": b"\xff\xd8"}[prepared.format]
    if tolerance is not None:
        reference = np.asarray(Image.open(test_data / "awkward" / "reference_rgb.png"), np.float64)
        assert np.abs(pixels - reference).mean() <= tolerance


@pytest.mark.parametrize("verify", ["decode", "header"])
def test_a_photo_is_kept_and_a_bomb_refused_before_decoding(verify):
    photo, policy = (SAMPLES / "photo.jpg").read_bytes(), ImagePolicy(verify=verify)
    assert prepare_image(photo, (480, 640), policy) == PreparedImage(photo, "jpeg", 480, 640)
    with pytest.raises(BadImage, match="20000x20000 pixels, more than max_pixels"):
        prepare_image((SAMPLES / "bomb.png").read_bytes(), (None, None), policy)


def encoded(image, kind="JPEG", orientation=None, **more):
    out = io.BytesIO()
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        more["exif"] = exif
    image.save(out, kind, **more)
    return out.getvalue()


# Where the four quarters of the stored picture (in reading order) come to lie in the upright view, per EXIF's
# definition: value n says which visual corner the stored row 0 and column 0 are.
UPRIGHT = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "cadb", 7: "dbca", 8: "bdac"}
COLOURS = {"a": (250, 10, 10), "b": (10, 250, 10), "c": (10, 10, 250), "d": (240, 240, 10)}


def quarters(width=64, height=32):
    colours = np.array([[COLOURS["a"], COLOURS["b"]], [COLOURS["c"], COLOURS["d"]]], np.uint8)
    return Image.fromarray(colours.repeat(height // 2, axis=0).repeat(width // 2, axis=1))


def read_quarters(data):
    pixels = decode_image(tf.constant(data)).numpy().astype(int)
    height, width = pixels.shape[:2]
    centres = [pixels[r, c] for r in (height // 4, 3 * height // 4) for c in (width // 4, 3 * width // 4)]
    return "".join(min(COLOURS, key=lambda k: np.abs(COLOURS[k] - centre).sum()) for centre in centres)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_when_the_annotation_is_of_the_upright_view(orientation):
    data = encoded(quarters(), quality=95, orientation=orientation)
    turned = orientation > 4
    upright = (32, 64) if turned else (64, 32)
    prepared = prepare_image(data, upright, ImagePolicy(exif="upright"))
    assert (prepared.width, prepared.height) == upright
    assert read_quarters(prepared.encoded) == UPRIGHT[orientation]
    assert prepared.exif == ("applied" if turned else "" if orientation == 1 else "ambiguous")
    # The bytes written carry no orientation any more: nobody turns them twice.
    assert Image.open(io.BytesIO(prepared.encoded)).getexif().get(0x0112, 1) == 1 or orientation == 1


@pytest.mark.parametrize("orientation", range(5, 9))
def test_exif_is_left_when_the_annotation_is_of_the_stored_view(orientation):
    data = encoded(quarters(), orientation=orientation)
    for policy in (ImagePolicy(), ImagePolicy(exif="upright")):
        prepared = prepare_image(data, (64, 32), policy)
        assert (prepared.encoded, prepared.exif) == (data, "left")


@pytest.mark.parametrize("size, orientation", [((40, 40), 6), ((64, 32), 3), ((64, 32), 2)])
def test_ambiguous_exif_stops_until_it_is_settled(size, orientation):
    data = encoded(quarters(*size), orientation=orientation)
    with pytest.raises(BadImage, match=f"EXIF orientation {orientation}.*exif=upright or exif=stored"):
        prepare_image(data, size, ImagePolicy())
    stored = prepare_image(data, size, ImagePolicy(exif="stored"))
    assert (stored.encoded, stored.exif) == (data, "ambiguous")
    upright = prepare_image(data, size, ImagePolicy(exif="upright"))
    assert read_quarters(upright.encoded) == UPRIGHT[orientation]


@pytest.mark.parametrize("policy", ["upright", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_which_pillow_turns_by_itself_is_turned_once_or_not_at_all(tmp_path, orientation, policy):
    """With the annotated size of either view, and without one, as YOLO has it."""
    data, turned = encoded(quarters(), "TIFF", orientation), orientation > 4
    views = {"stored": ((64, 32), UPRIGHT[1]), "upright": ((32, 64) if turned else (64, 32), UPRIGHT[orientation])}
    (tmp_path / "a.tif").write_bytes(data)
    for view, (size, colours) in views.items():
        assert picture_size(tmp_path / "a.tif", upright=view == "upright") == size
        wanted = colours if turned else views[policy][1]  # where the size doesn't tell, the policy does
        prepared = prepare_image(data, size, ImagePolicy(exif=policy))
        assert (prepared.width, prepared.height) == size and read_quarters(prepared.encoded) == wanted
    prepared = prepare_image(data, (None, None), ImagePolicy(exif=policy))
    assert ((prepared.width, prepared.height), read_quarters(prepared.encoded)) == views[policy]


def test_a_size_that_is_neither_view_is_refused():
    data = encoded(quarters(), orientation=6)
    with pytest.raises(BadImage, match=r"64x32 \(32x64 upright\).*says 100x50"):
        prepare_image(data, (100, 50), ImagePolicy())


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    prepared = prepare_image(encoded(Image.fromarray(values), "PNG"), (16, 16), ImagePolicy())
    pixels = decode_image(tf.constant(prepared.encoded)).numpy()
    np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        (np.linspace(0, 1, 256, dtype=np.float32), "0 to 1"),
        (np.arange(256, dtype=np.float32) * 257, "0 to 65535"),
        (np.arange(256, dtype=np.float32) - 9, "-9 to 246"),
        (np.where(np.arange(256) == 77, np.nan, 5).astype(np.float32), "nan to nan"),
        (np.arange(256, dtype=np.int32) << 20, r"0 to 2.67387e\+08"),
    ],
)
def test_numbers_that_are_no_colours_are_refused(values, ends):
    image = Image.fromarray(values.reshape(16, 16))
    for read in (lambda data: prepare_image(data, (16, 16), ImagePolicy()), read_pixels):
        with pytest.raises(BadImage, match=f"has values from {ends}, which are no colours"):
            read(encoded(image, "TIFF"))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_from_0_to_255_are_colours(kind):
    image = Image.fromarray(np.arange(256, dtype=kind).reshape(16, 16))
    for pixels in (read_pixels(encoded(image, "TIFF")), picture_pixels(image)):
        np.testing.assert_array_equal(pixels.reshape(16, 16, -1)[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
def test_a_cut_anywhere_is_found_by_the_default_check(share):
    data = encoded(Image.fromarray(picture(200, 150)), quality=95)
    with pytest.raises(BadImage):
        prepare_image(data[: int(len(data) * share)], (200, 150), ImagePolicy())


@pytest.mark.parametrize("colours", ["RGB", "L"])
def test_a_png_with_a_wrong_bit_or_without_its_end_is_found(colours):
    """Pillow checks neither the sums of the pixels' chunks nor the end, as TensorFlow's decoder does."""
    content = encoded(Image.fromarray(picture(48, 40)).convert(colours), "PNG")
    assert prepare_image(content, (48, 40), ImagePolicy())
    for place in range(content.index(b"IDAT") + 4, len(content) - 12, 97):
        damaged = bytearray(content)
        damaged[place] ^= 4
        for read in (lambda file: prepare_image(file, (48, 40), ImagePolicy()), read_pixels):
            with pytest.raises(BadImage, match="doesn't decode"):
                read(bytes(damaged))
    for cut in (1, 4, 12, 20):
        with pytest.raises(BadImage, match="doesn't decode"):
            prepare_image(content[:-cut], (48, 40), ImagePolicy())


def with_segment(file, block):
    """A JPEG with an APP1 segment more."""
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + file[2:]


def test_a_jpeg_without_its_end_is_found_though_its_thumbnail_has_one():
    thumbnail, whole = (encoded(Image.fromarray(picture(*size))) for size in ((16, 12), (48, 40)))
    content = with_segment(whole, b"Exif\0\0" + thumbnail)
    for file in (content, content + b"a phone's film \xff\xda of some bytes"):
        assert prepare_image(file, (48, 40), ImagePolicy()).encoded == file
    with pytest.raises(BadImage, match="doesn't decode"):
        prepare_image(content[:-2], (48, 40), ImagePolicy())


@pytest.mark.parametrize("tag", [0x0128, 0x0100])
def test_a_picture_is_turned_though_another_tag_is_damaged(tag):
    """A resolution's unit, a width, as text: Pillow can't write such a block anew, and needn't."""
    entries = sorted([(0x0112, 3, 6), (tag, 2, int.from_bytes(b"ab\0\0", "little"))])
    fields = b"".join(struct.pack("<HHII", one, kind, 3 if kind == 2 else 1, value) for one, kind, value in entries)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4)
    plain = encoded(Image.fromarray(picture(48, 40)))
    content = with_segment(plain, block)
    prepared = prepare_image(content, (40, 48), ImagePolicy())
    assert (prepared.width, prepared.height) == (40, 48)
    turned = np.rot90(read_pixels(plain), -1)
    np.testing.assert_array_equal(read_pixels(content), turned)
    np.testing.assert_array_equal(picture_pixels(Image.open(io.BytesIO(content))), turned)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_damage_behind_the_first_frame_is_no_traceback(kind):
    frames = [Image.fromarray(picture(48, 40, seed)) for seed in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(file.getvalue())
        for place in rng.integers(8, len(damaged), 3):
            damaged[place] = rng.integers(256)
        try:
            prepare_image(bytes(damaged), (None, None), ImagePolicy())
        except BadImage:
            refused += 1
    assert refused


def test_threads_that_overlap_leave_pillow_and_warnings_as_they_were():
    before = [*warnings.filters], Image.MAX_IMAGE_PIXELS
    inside, out = threading.Event(), threading.Event()

    def first():
        with quiet_pillow():
            inside.set()
            out.wait()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with quiet_pillow():
        out.set()
        thread.join()
        assert Image.MAX_IMAGE_PIXELS is None
    assert ([*warnings.filters], Image.MAX_IMAGE_PIXELS) == before
