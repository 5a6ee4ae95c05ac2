"""Image files: checked, EXIF orientation applied if the annotation says so, unusual formats converted to RGB."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from retinanet_tf.data.sources.annotations import ImageAnnotations
from retinanet_tf.data.sources.image_files import BadImage, find_image
from retinanet_tf.data.sources.image_headers import (
    DAMAGE,
    TURNED,
    open_image,
    orientation_of,
    quiet_pillow,
    stored_size,
)

_LOSSY = {"JPEG", "MPO", "WEBP"}
# Start-of-frame markers that every JPEG decoder reads: baseline, extended sequential and progressive Huffman.
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
# What makes a stored picture upright, by EXIF orientation, and what takes it back.
_DONE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDONE = {**_DONE, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

_JPEG_END, _PNG_END = b"\xff\xd9", b"\0\0\0\0IEND\xaeB`\x82"
_QUALITY = 95  # of converted JPEG files


@dataclass(frozen=True)
class ImagePolicy:
    """Rules for image files.

    Attributes:
        verify: "decode" decodes every image once, to detect truncated files before training; "header" reads headers.
        exif: for an orientation that the annotated size doesn't determine: "stop" refuses the image, "upright" means
            that the boxes were drawn on the upright picture, "stored" on the stored one.
        max_pixels: larger images are refused before they are decoded.
        allow_outside: also reads files outside the image folder, which names can lead to.
    """

    verify: str = "decode"
    exif: str = "stop"
    max_pixels: int = 100_000_000
    allow_outside: bool = False


@dataclass(frozen=True)
class PreparedImage:
    """An image for the shards: three-channel 8-bit RGB, JPEG or PNG.

    Attributes:
        changed: why the bytes differ from the file; "" if they don't.
        exif: "" (no orientation), "applied" or "left" (by the annotated size), or "ambiguous" (by the policy).
    """

    encoded: bytes
    format: str
    width: int
    height: int
    changed: str = ""
    exif: str = ""


def load_image(folder: str | os.PathLike, image: ImageAnnotations, policy: ImagePolicy) -> PreparedImage:
    """Reads the file of an annotated image and passes it through `prepare_image`; raises BadImage."""
    try:
        with open(find_image(folder, image.file_name, policy.allow_outside), "rb") as file:
            encoded = file.read()
    except OSError as error:
        raise BadImage(f"can't be read: {error.strerror}") from None
    except MemoryError:
        raise BadImage("can't be read: it doesn't fit into memory") from None
    return prepare_image(encoded, (image.width, image.height), policy)


def prepare_image(encoded: bytes, annotated: tuple[int | None, int | None], policy: ImagePolicy) -> PreparedImage:
    """Checks one image file and converts it to plain RGB if necessary.

    A plain 8-bit RGB JPEG or PNG keeps its bytes. CMYK, grayscale, 16-bit and palette images, those with alpha (which
    is dropped, as by TensorFlow's decoder), GIF (first frame), BMP, TIFF and WebP are re-encoded: JPEG from lossy
    formats, PNG from lossless ones.

    Args:
        encoded: the file.
        annotated: (width, height) of the annotation, None if unknown.
        policy: the rules.

    Raises:
        BadImage: with the reason.
    """
    with quiet_pillow(), open_image(io.BytesIO(encoded), policy.max_pixels) as image:
        orientation, size = orientation_of(image), stored_size(image)
        turn, exif = _settle_orientation(orientation, size, annotated, policy)
        changed = _why_not_plain(image, encoded)
        if turn:
            changed = ", ".join(filter(None, [f"EXIF orientation {orientation} applied", changed]))
        if not changed:
            if policy.verify == "decode":
                _decode(image, encoded, reduced=True)
            return PreparedImage(encoded, "png" if image.format == "PNG" else "jpeg", *size, "", exif)
        lossy = image.format in _LOSSY
        _decode(image, encoded)
        pixels = _to_rgb(_upright(image) if turn else _as_stored(image, orientation))
        out, form = io.BytesIO(), "jpeg" if lossy else "png"
        options = {"quality": _QUALITY, "subsampling": 0} if lossy else {"compress_level": 6}
        pixels.save(out, form, exif=b"", icc_profile=None, **options)
        return PreparedImage(out.getvalue(), form, *pixels.size, changed, exif)


def read_pixels(encoded: bytes, upright: bool = True) -> np.ndarray:
    """The pixels `(H, W, 3)` uint8 RGB of one image file, upright as viewers show it or as stored; raises BadImage."""
    with quiet_pillow(), open_image(io.BytesIO(encoded), ImagePolicy.max_pixels) as image:
        orientation = orientation_of(image)
        _decode(image, encoded)
        return np.asarray(_to_rgb(_upright(image) if upright else _as_stored(image, orientation)))


def picture_pixels(picture: Image.Image) -> np.ndarray:
    """A Pillow image's pixels `(H, W, 3)` RGB, upright; 16 bits become 8 as those of a file do.

    Floats stay as they are. Raises BadImage, or what Pillow raises, if the image can't be decoded.
    """
    picture = _upright(picture)
    if picture.mode.startswith("I"):
        return np.asarray(_to_rgb(picture))
    return np.asarray(picture if picture.mode == "F" else picture.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """The image as viewers show it. Pillow's `exif_transpose` would write all of its EXIF tags anew, damaged ones too.

    A TIFF that is loaded is upright and says so.
    """
    turned = _DONE.get(orientation_of(image))
    return image if turned is None else image.transpose(turned)


def _as_stored(image: Image.Image, orientation: int) -> Image.Image:
    """The image as its file has it: Pillow turns a TIFF while it decodes it, `orientation` is the one from before."""
    turned = _UNDONE.get(orientation) if image.format == "TIFF" else None
    return image if turned is None else image.transpose(turned)


def _decode(image: Image.Image, encoded: bytes, reduced: bool = False) -> None:
    """Decodes the file; `reduced` decodes a JPEG to an eighth of its size, checking every coded bit in less time.

    Pillow passes over some damage that TensorFlow's decoders refuse: a PNG's checksums, the end of either format.
    """
    try:
        if image.format in ("JPEG", "MPO"):
            if reduced:
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            ends = encoded.find(_JPEG_END, _start_of_scan(encoded)) >= 0
        elif image.format == "PNG":
            ends = _PNG_END in encoded
            with Image.open(io.BytesIO(encoded)) as copy:
                copy.verify()
        else:
            ends = True
        if not ends:
            raise EOFError("it ends early")
        image.load()
    except DAMAGE as error:
        raise BadImage(f"doesn't decode: {str(error) or type(error).__name__}") from None


def _settle_orientation(orientation: int, stored, annotated, policy: ImagePolicy) -> tuple[bool, str]:
    """Whether to rotate the pixels, and `PreparedImage.exif`. Raises BadImage if sizes disagree or nothing decides."""
    upright = stored[::-1] if orientation in TURNED else stored
    sized = None not in annotated
    if sized and tuple(annotated) not in (stored, upright):
        views = f"{stored[0]}x{stored[1]}" + (f" ({upright[0]}x{upright[1]} upright)" if upright != stored else "")
        raise BadImage(f"has {views} pixels, but its annotation says {annotated[0]}x{annotated[1]}")
    if orientation == 1:
        return False, ""
    if sized and stored != upright:
        turn = tuple(annotated) == upright
        return turn, "applied" if turn else "left"
    if policy.exif == "stop":
        raise BadImage(
            f"has EXIF orientation {orientation}, and its annotated size doesn't tell whether the boxes were drawn on "
            "the upright or on the stored picture; look at one, then give exif=upright or exif=stored"
        )
    return policy.exif == "upright", "ambiguous"


def _why_not_plain(image: Image.Image, encoded: bytes) -> str:
    """Why these bytes must be re-encoded, or ""."""
    if image.format == "PNG":
        # The IHDR chunk comes first and is of fixed layout: bit depth and colour type are bytes 24 and 25.
        depth, colour = encoded[24], encoded[25]
        if getattr(image, "is_animated", False):
            return "animated PNG, first frame"
        if depth == 8 and colour == 2 and "transparency" not in image.info:
            return ""
        kinds = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale and alpha", 6: "alpha"}
        return f"{depth}-bit {kinds.get(colour, 'unknown')} PNG"
    if image.format in ("JPEG", "MPO"):
        if image.mode != "RGB":
            return {"L": "grayscale", "CMYK": "CMYK"}.get(image.mode, image.mode) + " JPEG"
        if not _plain_frame(encoded):
            return "JPEG of an unusual coding"
        return ""
    try:
        frames = getattr(image, "n_frames", 1)
    except DAMAGE as error:
        raise BadImage(f"doesn't decode after its first frame: {str(error) or type(error).__name__}") from None
    return f"{image.format}, first of {frames} frames" if frames > 1 else str(image.format)


def _plain_frame(encoded: bytes) -> bool:
    """Whether the JPEG's first frame header is of a kind that libjpeg builds without extras decode."""
    frames = (marker for marker, _ in _segments(encoded) if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))
    return next(frames, None) in _PLAIN_FRAMES


def _start_of_scan(encoded: bytes) -> int:
    """Where the coded pixels of a JPEG begin; a thumbnail in its EXIF block, with an end of its own, comes before."""
    return next((start for marker, start in _segments(encoded) if marker == 0xDA), len(encoded))


def _segments(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Markers and places of a JPEG's segments."""
    start = 2
    while start + 4 <= len(encoded):
        first, marker, length = encoded[start], encoded[start + 1], encoded[start + 2 : start + 4]
        if first != 0xFF or marker == 0xFF:
            start += 1  # junk between segments, or fill bytes
        else:
            yield marker, start
            has_no_length = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9
            start += 2 + (0 if has_no_length else int.from_bytes(length, "big"))


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode. 16-bit values are scaled, not clipped; alpha is dropped, as by TensorFlow's decoder.

    Raises BadImage for floats that aren't in 0 to 255 (or are in 0 to 1), and for integers beyond 16 bits.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        low, high = values.min(initial=0.0), values.max(initial=0.0)  # NaN if there is one
        shares = image.mode == "F" and high <= 1.0 and (values != np.floor(values)).any()
        if shares or not (low >= 0.0 and high <= (255.0 if image.mode == "F" else 65535.0)):
            raise BadImage(f"has values from {low:g} to {high:g}, which are no colours; save it with 8 bits per colour")
        scale = 65535.0 if image.mode != "F" and (high > 255.0 or "16" in image.mode) else 255.0
        return Image.fromarray(np.rint(values * (255.0 / scale)).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert("RGBA")
    return image.convert("RGB")
