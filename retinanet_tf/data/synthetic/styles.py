"""What generated pictures show, and how hard it is to find."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Kind(NamedTuple):
    """What a shape looks like."""

    outline: str
    surface: str = ""
    """One of SURFACES; '' for any of them."""


SURFACES = ("plain", "striped", "blotched", "checked")


class Style(NamedTuple):
    """What is drawn, and how hard it is to find. Contrasts are distances in RGB to the mean of what lies under."""

    categories: Mapping[int, Kind]
    """COCO's ids are sparse; these are too, so that nothing downstream can take a category id for a class index."""
    contrast: tuple[float, float] = (110.0, np.inf)
    """Of a shape's colour."""
    relief: tuple[float, float] = (8.0, 24.0)
    """Of a surface's pattern with its colour."""
    grain: tuple[float, float] = (1.0, 5.0)
    """Standard deviation of the sensor's noise."""
    blur: tuple[float, float] = (0.0, 0.0)
    """Radius of a blur over shapes and background, pixels."""
    decoys: tuple[Kind, ...] = ()
    """Shapes that are painted among the others and not annotated."""
    decoy_count: tuple[int, int] = (0, 0)
    """Fewest and most decoys of a picture."""


OUTLINES = ("ellipse", "rectangle", "triangle", "star", "cross")
_PATTERNED = {4 * n + 3: Kind(*pair) for n, pair in enumerate(itertools.product(OUTLINES, SURFACES))}
STYLES = {
    "shapes": Style(dict(zip((1, 3, 7, 18, 44), map(Kind, OUTLINES), strict=True))),
    "patterns": Style(_PATTERNED, relief=(24.0, 48.0)),
    "lookalikes": Style(
        _PATTERNED,
        contrast=(40.0, 90.0),
        relief=(24.0, 48.0),
        grain=(2.0, 6.0),
        blur=(0.0, 1.0),
        decoys=(
            *(Kind(outline, "dotted") for outline in OUTLINES),
            *(Kind(outline) for outline in ("pentagon", "half disc", "arrow", "corner", "bar")),
        ),
        decoy_count=(2, 8),
    ),
}
"""`shapes` is learnt in minutes. `patterns` has 20 classes: five outlines, each with four surfaces. `lookalikes` has
them with low contrast, blurred, hidden in part, and among shapes of other outlines or of a fifth surface that aren't
annotated: it stays hard."""
