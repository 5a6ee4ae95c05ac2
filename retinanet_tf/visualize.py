"""Pictures: boxes drawn on images, contact sheets, training curves. Needs no display.

Images are uint8 RGB arrays `(H, W, 3)`; boxes are xyxy pixels. Matplotlib is imported by the functions that plot.
"""

import base64
import colorsys
import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from retinanet_tf.errors import InputError
from retinanet_tf.files import written_aside
from retinanet_tf.fonts import default_font, legible

TILE = 320
"""Side of a picture on a contact sheet, pixels."""

_GOLDEN = 0.618033988749895  # neighbours in class order get hues far apart
_LEVELS = ((0.95, 0.85), (1.0, 0.6), (0.75, 0.95))  # (value, saturation), one after the other
_LARGEST = 4096  # pixels of the longer side, up to which pictures are enlarged
_JPEG_SIDE = 65_500  # pixels that JPEG's libraries take
_METRIC = re.compile(r"^(val_)?(AP|AR)\w*$")


def jpeg_url(image: Image.Image, quality: int = 85) -> str:
    """An RGB picture as a data URL, for pages of one file."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def class_colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class index; the same in every picture, distinct for many classes."""
    value, saturation = _LEVELS[label % len(_LEVELS)]
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * _GOLDEN) % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    names: Sequence[str] | Mapping[int, str] | None = None,
    ground_truth: np.ndarray | None = None,
    min_score: float = 0.0,
    min_side: int = 320,
    ids: Sequence[int] | None = None,
) -> np.ndarray:
    """Draws labelled boxes on a copy of an image.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        boxes: `(N, 4)` xyxy in the image's pixels.
        labels: `(N,)` class indices; negative ones (empty rows of a detector's answer) are left out.
        scores: `(N,)` shown behind the names; the best are drawn last, on top. None shows names alone.
        names: what to write for a class index; None writes the index. Where no font has a name's letters, its id.
        ground_truth: boxes `(M, 4)`, drawn as outlines of black and white dashes beneath.
        min_score: detections below are left out.
        min_side: images whose shorter side is smaller are enlarged by a whole factor to be readable, as far as the
            longer one stays within 4,096; 0 never does.
        ids: the category id of a class index; None takes the index.

    Returns:
        `(H·k, W·k, 3)` uint8 with the whole enlargement factor k.
    """
    boxes, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels).reshape(-1).astype(int)
    by_score = np.arange(len(labels)) if scores is None else np.argsort(scores, kind="stable")
    order = [i for i in by_score if labels[i] >= 0 and (scores is None or scores[i] >= min_score)]
    height, width = image.shape[:2]
    zoom = max(1, min(math.ceil(min_side / min(height, width)), _LARGEST // max(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    if zoom > 1:
        picture = picture.resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 220))
    font_size = max(10, round(min(picture.size) / 34))
    if ground_truth is not None:
        mask = Image.new("1", picture.size)
        for box in np.asarray(ground_truth, float).reshape(-1, 4) * zoom:
            ImageDraw.Draw(mask).rectangle(_outline(box), outline=1, width=max(1, line // 2))
        dashes = np.indices(picture.size[::-1]).sum(0) // (4 * line) % 2 * 255
        picture.paste(Image.fromarray(dashes.astype(np.uint8)), mask=mask)
    for i in order:
        draw.rectangle(_outline(boxes[i] * zoom), outline=class_colour(labels[i]), width=line)
    # Texts come after all outlines, the best first: they get the free corners, and no line crosses a name.
    taken: list[tuple[float, float, float, float]] = []
    for i in reversed(order):
        number = str(labels[i] if ids is None else ids[labels[i]])
        parts = [legible(number if names is None else names[labels[i]], font_size, otherwise=number)]
        if scores is not None:
            parts.append((f" {scores[i]:.2f}", default_font(font_size)))
        starts = np.cumsum([0.0, *(font.getlength(text) for text, font in parts)])
        spans = [draw.textbbox((x, 0), text, font, "ls") for x, (text, font) in zip(starts, parts, strict=False)]
        (left, top), (right, bottom) = np.min(spans, axis=0)[:2], np.max(spans, axis=0)[2:]
        size, colour = (right - left + 6, bottom - top + 5), class_colour(labels[i])
        x, y = label_corner(_outline(boxes[i] * zoom), size, picture.size, taken)
        taken.append((x, y, x + size[0], y + size[1]))
        draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=colour)
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        for start, (text, font) in zip(starts, parts, strict=False):
            draw.text((x + 3 - left + start, y + 2 - top), text, (0, 0, 0) if dark else (255, 255, 255), font, "ls")
    return np.array(picture)


def label_corner(
    outline: Sequence[float],
    size: tuple[float, float],
    picture: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """The top left corner of a label of `size` at an outline: in the picture, and off the `taken` ones if possible.

    Sizes are (width, height); outline and taken rectangles are xyxy.
    """
    (x1, y1, x2, y2), (width, height) = outline, size
    above, below, right = y1 - height, y2 + 1, x2 + 1 - width
    corners = [(x1, above), (x1, y1), (x1, below), (right, above), (x1, below - height), (right, below)]
    corners += [(x2 + 1, y1), (x1 - width, y1), (x1, y1 + height)]
    limit = max(picture[0] - width, 0)
    inside = [(min(max(x, 0), limit), y) for x, y in corners if 0 <= y <= picture[1] - height]
    inside = inside or [(min(max(x1, 0), limit), 0)]

    def is_free(x, y):
        return not any(x < c and a < x + width and y < d and b < y + height for a, b, c, d in taken)

    return next((corner for corner in inside if is_free(*corner)), inside[0])


def contact_sheet(
    images: Sequence[np.ndarray],
    tile: int = TILE,
    gap: int = 8,
    titles: Sequence[str] | None = None,
) -> np.ndarray:
    """Images of any sizes in a grid on white, each fitted into a tile: uint8 (rows·tile…, columns·tile…, 3).

    The sheet is about as wide as it is high, a little wider. `titles` are written below, with "?" for letters that no
    font has.
    """
    if not len(images):
        raise InputError("a contact sheet needs at least one picture.")
    columns = min(len(images), math.ceil(math.sqrt(1.3 * len(images))))
    rows = math.ceil(len(images) / columns)
    caption = 18 if titles else 0
    size = (columns * (tile + gap) + gap, rows * (tile + caption + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        x, y = (number % columns) * (tile + gap) + gap, (number // columns) * (tile + caption + gap) + gap
        scale = tile / max(image.shape[:2])
        width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
        fitted = Image.fromarray(np.ascontiguousarray(image)).convert("RGB").resize((width, height))
        sheet.paste(fitted, (x + (tile - width) // 2, y + (tile - height) // 2))
        if titles:
            text, font = legible(titles[number], 12)
            while draw.textlength(text, font) > tile and len(text) > 4:
                text = text[: len(text) // 2 - 1] + "…" + text[len(text) // 2 + 2 :]
            draw.text((x + tile / 2, y + tile + 2), text, fill="black", font=font, anchor="ma")
    return np.array(sheet)


def save_image(image: np.ndarray, path: str | os.PathLike) -> Path:
    """Writes an image in the format of the path's suffix, aside first; makes the folder. Returns the path.

    One with a side of more than 65,500 pixels, which JPEG can't have, becomes a smaller JPEG.
    """
    path = Path(path)
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise InputError(f"{path} can't be written: {path.suffix!r} isn't the suffix of a format that can be written.")
    picture = Image.fromarray(image)
    if form == "JPEG":
        picture.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    with written_aside(path) as aside:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(aside, form, **({"quality": 92} if form == "JPEG" else {}))
    return path


def training_curves(log: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Plots the losses of a run's log.csv, AP and the learning rate over the steps as a picture file; returns its path.

    Epochs without a value (an empty cell, NaN) are bridged.
    """
    columns = _read_history(log)
    steps = np.asarray(columns.pop("step", ()))
    columns = {key: values for key, values in columns.items() if np.isfinite(values).any()}
    if not len(steps):
        raise InputError("there is no finished epoch to plot.")
    groups = {
        "loss": [key for key in columns if key.endswith("loss")],
        "AP": [key for key in columns if _METRIC.match(key)],
        "learning rate": [key for key in columns if key == "learning_rate"],
    }
    groups = {title: keys for title, keys in groups.items() if keys}
    if not groups:
        raise InputError(f"{log} has no column of a loss, AP or learning rate.")
    figure = new_figure(4.6 * len(groups), 3.4)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, keys) in zip(panels, groups.items(), strict=True):
        for index, key in enumerate(keys):
            values = np.asarray(columns[key])
            finite = np.isfinite(values)
            axes.plot(
                steps[finite],
                values[finite],
                color=np.array(class_colour(index)) / 255 * 0.85,
                linestyle="--" if key.startswith("val_") and title == "loss" else "-",
                linewidth=1.8,
                marker="o" if finite.sum() < 25 else None,
                markersize=3,
                label=key,
            )
        axes.set(xlabel="step", title=title)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """A Matplotlib figure of that many inches that belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save_figure(figure: Any, path: str | os.PathLike, grid: bool = True) -> Path:
    """Writes a figure as a picture file with light grids and no frames above and at the right; returns the path."""
    for axes in figure.axes:
        if grid:
            axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    with written_aside(path) as aside:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(aside, format=path.suffix[1:], dpi=130)
    return path


def _read_history(path: str | os.PathLike) -> dict[str, list[float]]:
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            key: [float(row[key]) if row[key] not in ("", "NA", None) else math.nan for row in rows]
            for key in (rows[0] if rows else ())
        }
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} can't be read as a training log ({error}); give a CSVLogger's file.") from error


def _outline(box: np.ndarray) -> tuple[int, int, int, int]:
    """The pixels of a box' outline: Pillow's rectangles include their last row and column."""
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)
