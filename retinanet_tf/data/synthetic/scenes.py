"""Draws one photo-like scene of coloured shapes on a cluttered background, with the exact box of what is visible.

Shapes are painted from front to back: what is already there hides what comes later, so the visible part of every
shape is known when it is placed. One that would show less than `min_visible` of itself is not painted at all; but for
the decoys of a style, nothing is in a picture without its annotation. Outlines are drawn `SUPERSAMPLING` times finer
than the picture and averaged down, so a box is right to a quarter of a pixel.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from retinanet_tf.data.synthetic.styles import STYLES, SURFACES, Kind, Style

SUPERSAMPLING = 4

_TILT = np.pi / 6
_PLACEMENTS = 12  # tries to find a place for a shape before it is left out


class Shape(NamedTuple):
    """One annotated shape of a scene."""

    category_id: int
    box: np.ndarray  # (4,) xyxy in pixels, of the visible part
    area: float  # visible mask, pixels
    mask: np.ndarray  # (H, W) bool: pixels at least half covered by the visible part


class Scene(NamedTuple):
    """A picture, uint8 RGB (H, W, 3), and its shapes, front to back."""

    image: np.ndarray
    shapes: list[Shape]


def draw_scene(
    seed: tuple[int, ...],
    image_size: int,
    count: int,
    sizes: tuple[float, float],
    min_visible: float = 0.5,
    style: str = "shapes",
) -> Scene:
    """Draws a square scene; the same arguments give the same bytes.

    Args:
        seed: entropy of this picture. Background, light and sensor noise don't depend on the shapes.
        image_size: side of the picture in pixels.
        count: shapes to place; fewer where no place is found.
        sizes: smallest and largest longer side of a shape in pixels; drawn log-uniformly, the smallest thinned out.
        min_visible: share of a shape's area that must show (not hidden, not outside the picture).
        style: one of STYLES.
    """
    drawn = STYLES[style]
    background_rng, shape_rng, light_rng = (np.random.default_rng([*seed, stream]) for stream in range(3))
    background = _background(background_rng, image_size)
    canvas = np.zeros_like(background)
    covered = np.zeros((image_size, image_size), np.float32)
    occupied = np.zeros((image_size * SUPERSAMPLING,) * 2, bool)
    shapes = []
    for is_decoy in _order(shape_rng, count, drawn.decoy_count):
        for _ in range(_PLACEMENTS):
            category_id, kind = _choice(shape_rng, drawn, is_decoy)
            corner, fine = _outline(shape_rng, kind.outline, image_size, sizes)
            visible = _claim(occupied, corner, fine, min_visible)
            if visible is not None:
                break
        else:
            continue
        top, left, fine = visible
        height, width = (side // SUPERSAMPLING for side in fine.shape)
        # The share of every pixel that the shape covers.
        coverage = fine.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING).mean((1, 3), dtype=np.float32)
        window = np.s_[top : top + height, left : left + width]
        around = canvas[window] + background[window] * (1.0 - covered[window][..., None])
        surface = _texture(shape_rng, (height, width), around.mean((0, 1)), kind.surface, drawn)
        canvas[window] += surface * coverage[..., None]
        covered[window] += coverage
        if is_decoy:
            continue
        mask = np.zeros((image_size, image_size), bool)
        mask[window] = coverage >= 0.5
        rows, columns = np.flatnonzero(fine.any(1)), np.flatnonzero(fine.any(0))
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SUPERSAMPLING
        shapes.append(Shape(category_id, edges + (left, top, left, top), float(fine.sum()) / SUPERSAMPLING**2, mask))
    return Scene(_expose(light_rng, background * (1.0 - covered[..., None]) + canvas, drawn), shapes)


def _order(rng: np.random.Generator, count: int, decoys: tuple[int, int]) -> list[bool]:
    """Whether each shape, front to back, is a decoy."""
    if not decoys[1]:
        return [False] * count
    order = [False] * count + [True] * int(rng.integers(decoys[0], decoys[1] + 1))
    return [order[place] for place in rng.permutation(len(order))]


def _choice(rng: np.random.Generator, style: Style, is_decoy: bool) -> tuple[int, Kind]:
    """A random category, or 0 and a decoy."""
    if is_decoy:
        return 0, style.decoys[rng.integers(len(style.decoys))]
    category_id = int(rng.choice(list(style.categories)))
    return category_id, style.categories[category_id]


def _outline(rng: np.random.Generator, outline: str, image_size: int, sizes: tuple[float, float]):
    """A random shape of an outline: the (top, left) pixel of its crop and the crop's fine mask (bool)."""
    smallest, largest = sizes
    size = smallest * (largest / smallest) ** rng.beta(1.5, 1.2)
    points = _polygon(rng, outline) * (1.0, rng.uniform(0.7, 1.0))
    angle = rng.uniform(-_TILT, _TILT)
    points = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points -= points.min(0)
    points *= size / points.max()
    extent = points.max(0)
    # A tenth of a shape's side may lie outside: photographs cut objects off, too.
    low, high = -0.1 * extent, image_size - 0.9 * extent
    points += low + rng.uniform(size=2) * (high - low)
    corner = np.floor(points.min(0)).astype(int)
    width, height = np.ceil(points.max(0)).astype(int) - corner + 1
    crop = Image.new("1", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    # Pillow's polygon covers the centre of a fine pixel at its integer coordinate.
    ImageDraw.Draw(crop).polygon(((points - corner) * SUPERSAMPLING - 0.5).ravel().tolist(), fill=1)
    return corner[::-1], np.array(crop, bool)


def _claim(occupied: np.ndarray, corner: np.ndarray, fine: np.ndarray, min_visible: float):
    """Marks a shape's visible part in `occupied` and returns it as (top, left, fine mask); None if too little shows."""
    start = corner * SUPERSAMPLING
    (top, left), (bottom, right) = np.clip([start, start + fine.shape], 0, len(occupied))
    place = occupied[top:bottom, left:right]
    visible = fine[top - start[0] : bottom - start[0], left - start[1] : right - start[1]] & ~place
    if not visible.any() or visible.sum() < min_visible * fine.sum():
        return None
    place |= visible
    return int(top) // SUPERSAMPLING, int(left) // SUPERSAMPLING, visible


def _polygon(rng: np.random.Generator, name: str) -> np.ndarray:
    """The corners `(N, 2)` of a shape, about as large as the square from -1 to 1."""
    corners: list[tuple[float, float]]
    match name:
        case "ellipse":
            return _circle(64)
        case "star":
            return _circle(10) * np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1.0)[:, None]
        case "rectangle":
            corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
        case "triangle":
            corners = [(-1, 0.8), (1, 0.8), (rng.uniform(-0.4, 0.4), -0.9)]
        case "pentagon":
            return _circle(5)
        case "half disc":
            return _circle(64)[:33]
        case "arrow":
            corners = [(0, -1), (1, 0), (0.4, 0), (0.4, 1), (-0.4, 1), (-0.4, 0), (-1, 0)]
        case "corner":
            a = rng.uniform(-0.4, 0.0)
            corners = [(-1, -1), (a, -1), (a, -a), (1, -a), (1, 1), (-1, 1)]
        case "bar":
            a = rng.uniform(0.1, 0.2)
            corners = [(-1, -a), (1, -a), (1, a), (-1, a)]
        case _:
            a = rng.uniform(0.28, 0.4)
            corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
            corners += [(-x, -y) for x, y in corners]
    return np.array(corners, float)


def _circle(points: int) -> np.ndarray:
    angles = np.arange(points) * (2 * np.pi / points)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _noise(rng: np.random.Generator, height: int, width: int, cell: float, channels: int = 1) -> np.ndarray:
    """Smooth noise with features of about `cell` pixels: float32 (height, width, channels) around zero, in ±1."""
    grid = (max(2, round(height / cell) + 1), max(2, round(width / cell) + 1), channels)
    small = rng.integers(0, 256, grid, dtype=np.uint8)
    image = Image.fromarray(small if channels == 3 else small[..., 0]).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32).reshape(height, width, channels) / 127.5 - 1.0


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A linear ramp in a random direction: float32 (height, width, 1) in ±1."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    ramp = np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None]
    return (ramp / np.abs(ramp).max())[..., None].astype(np.float32)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two colours that run into each other, textures of four scales, blobs and strokes: float32 (size, size, 3)."""
    first, second = rng.uniform(40, 215, (2, 3)).astype(np.float32)
    first = first.mean() + 0.35 * (first - first.mean())
    second = first + 0.5 * (second - first)
    blend = np.clip(0.5 + 0.5 * _ramp(rng, size, size) + 0.4 * _noise(rng, size, size, size / 3), 0, 1)
    picture = first * (1 - blend) + second * blend
    for cell, strength, channels in ((size / 4, 22, 3), (size / 10, 14, 3), (5, 9, 1)):
        picture = picture + rng.uniform(0.3, 1.0) * strength * _noise(rng, size, size, cell, channels)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(0, 5)):
        # Blobs: closed outlines of uneven radius, half transparent; none is close to one of the shapes.
        radii = np.interp(np.arange(32), np.arange(0, 33, 4), np.resize(rng.uniform(0.35, 1.0, 8), 9))
        centre, radius = rng.uniform(0, size, 2), size * rng.uniform(0.06, 0.25)
        outline = centre + radius * radii[:, None] * _circle(32)
        draw.polygon(outline.ravel().tolist(), fill=_near(rng, picture, centre, 55, 150))
    for _ in range(rng.integers(0, 7)):
        # Strokes: bent lines, as twigs, cables or cracks would be.
        steps = rng.normal(0, size / 14, (6, 2)) + rng.normal(0, size / 10, 2)
        line = rng.uniform(0, size, 2) + np.cumsum(steps, 0)
        width = max(1, round(size / 128 * rng.uniform(0.6, 2.4)))
        draw.line(line.ravel().tolist(), _near(rng, picture, line[0], 80, 200), width, "curve")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9))), np.float32)


def _near(rng, picture, point, spread: float, alpha: int) -> tuple[int, ...]:
    """A half-transparent RGBA colour within `spread` of the picture's at `point`."""
    x, y = np.clip(point, 0, picture.shape[0] - 1).astype(int)
    colour = np.clip(picture[y, x] + rng.uniform(-spread, spread, 3), 0, 255)
    return (*(int(value) for value in colour), int(rng.integers(alpha // 2, alpha)))


def _texture(
    rng: np.random.Generator, shape: tuple[int, int], under: np.ndarray, kind: str, style: Style
) -> np.ndarray:
    """A surface for a shape, its colour apart from what lies under it: float32 (height, width, 3)."""
    height, width = shape
    surface = _colour(rng, under, style.contrast) + rng.uniform(5, 30) * _ramp(rng, height, width)
    drawn, strength = SURFACES[rng.integers(len(SURFACES))], rng.uniform(*style.relief)
    kind = kind or drawn
    if kind == "striped":
        waves = rng.uniform(2, 5) * np.pi * _ramp(rng, height, width) + rng.uniform(0, 6)
        surface = surface + strength * np.clip(3 * np.sin(waves), -1, 1)
    elif kind == "blotched":
        surface = surface + strength * _noise(rng, height, width, max(2.0, min(shape) / 6))
    elif kind in ("checked", "dotted"):
        rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
        pitch = max(3.0, min(shape) / rng.uniform(3, 7))
        waves = np.sin(2 * np.pi * rows / pitch)[:, None] * np.sin(2 * np.pi * columns / pitch)[None, :]
        pattern = np.clip(3 * waves, -1, 1) if kind == "checked" else 2.0 * (waves > 0.5) - 0.5
        surface = surface + strength * pattern[..., None]
    return np.clip(surface, 0, 255).astype(np.float32)


def _colour(rng: np.random.Generator, under: np.ndarray, contrast: tuple[float, float]) -> np.ndarray:
    """A colour whose distance from another one lies between two numbers: nearly always, if the second is infinite."""
    nearest, farthest = contrast
    for _ in range(16):
        colour = rng.uniform(15, 240, 3).astype(np.float32)
        distance = float(np.linalg.norm(colour - under))
        if np.isfinite(farthest):
            return under + (colour - under) * (rng.uniform(nearest, farthest) / max(distance, 1.0))
        if distance >= nearest:
            break
    return colour


def _expose(rng: np.random.Generator, picture: np.ndarray, style: Style) -> np.ndarray:
    """Uneven light, blur and sensor noise over the whole picture; uint8."""
    height, width = picture.shape[:2]
    if style.blur[1]:
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        picture = np.asarray(sharp.filter(ImageFilter.GaussianBlur(rng.uniform(*style.blur))), np.float32)
    light = 1.0 + rng.uniform(0.0, 0.22) * _ramp(rng, height, width)
    grain = rng.standard_normal((height, width, 3), np.float32) * np.float32(rng.uniform(*style.grain))
    return np.clip(picture * light + grain, 0, 255).astype(np.uint8)
