"""Fonts for texts of any script: DejaVu Sans, which comes with Matplotlib, else one of the system's fonts."""

import functools
import os
import unicodedata

from PIL import ImageFont, features

from retinanet_tf.text import printable

_LONGEST = 40  # letters of a text that are drawn


def default_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans: Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic and many symbols."""
    return _opened(_dejavu(), size)


def legible(text: str, size: int, otherwise: str | None = None) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text as it is drawn, and its font: shortened if long, control characters escaped.

    Args:
        text: of any script.
        size: of the font.
        otherwise: what is drawn if no font has all letters; None draws "?" for each that DejaVu Sans lacks.
    """
    text = printable(text, _LONGEST)
    if path := _font_with(frozenset(text)):
        return text, _opened(path, size)
    if otherwise is None:
        otherwise = "".join(letter if ord(letter) in _characters(_dejavu()) else "?" for letter in text)
    return otherwise, default_font(size)


@functools.cache
def _font_with(letters: frozenset[str]) -> str | None:
    """The path of the first font that has all letters, None if there is none."""
    if not features.check("raqm") and any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in letters):
        return None  # Pillow would draw them from left to right
    # Format characters and variation selectors have no picture of their own.
    wanted = {ord(x) for x in letters if unicodedata.category(x) != "Cf" and not "\ufe00" <= x <= "\ufe0f"}
    if wanted <= _characters(_dejavu()):
        return _dejavu()
    return next((path for path in _system_fonts() if wanted <= _characters(path)), None)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has pictures of; none if it can't be drawn with."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 20)  # an error for fonts of one size alone, such as coloured emoji
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.lru_cache(64)
def _opened(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _dejavu() -> str:
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def _system_fonts() -> list[str]:
    """The paths of the system's fonts, upright ones of usual weight first."""
    from matplotlib.font_manager import findSystemFonts

    return sorted(findSystemFonts(), key=lambda path: ("regular" not in os.path.basename(path).lower(), path))
