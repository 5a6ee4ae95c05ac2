"""Boxes on pictures, sheets of pictures, and training curves. Needs no display.

Pictures are uint8 RGB arrays (H, W, 3); boxes are xyxy pixels. Matplotlib is imported by the functions that plot.
"""

import colorsys
import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retinanet_tf.errors import InputError

_GOLDEN = 0.618033988749895  # neighbours in class order get hues far apart
_LEVELS = ((0.95, 0.85), (1.0, 0.6), (0.75, 0.95))  # (value, saturation), one after the other
_AP_KEY = re.compile(r"^(val_)?(AP|AR)\w*$")


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
    ground_truth: tuple[np.ndarray, np.ndarray] | None = None,
    min_score: float = 0.0,
    min_side: int = 320,
) -> np.ndarray:
    """Draws labelled boxes on a copy of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy in the picture's pixels.
        labels: (N,) class indices; negative ones (empty places of a detector's answer) are left out.
        scores: (N,) shown behind the names; the best are drawn last, on top. None shows names alone.
        names: what to write for a class index; None writes the index.
        ground_truth: (boxes (M, 4), labels (M,)) drawn as dashed white outlines beneath.
        min_score: detections below are left out.
        min_side: pictures whose shorter side is smaller are enlarged by a whole factor to be readable; 0 never does.

    Returns:
        (H·k, W·k, 3) uint8 with the whole enlargement factor k.
    """
    boxes, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels).reshape(-1).astype(int)
    by_score = np.arange(len(labels)) if scores is None else np.argsort(scores, kind="stable")
    order = [i for i in by_score if labels[i] >= 0 and (scores is None or scores[i] >= min_score)]
    height, width = image.shape[:2]
    zoom = max(1, math.ceil(min_side / min(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    if zoom > 1:
        picture = picture.resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 220))
    font = ImageFont.load_default(max(11, round(min(picture.size) / 32)))
    if ground_truth is not None:
        for box in np.asarray(ground_truth[0], float).reshape(-1, 4) * zoom:
            _dashed(draw, box, max(1, line // 2), dash=4 * line)
    taken: list[tuple[float, float, float, float]] = []
    for i in order:
        draw.rectangle(_corners(boxes[i] * zoom), outline=class_colour(labels[i]), width=line)
    # Labels come after all outlines, and the best first: they get the free places, and no line crosses a name.
    for i in reversed(order):
        text = str(names[labels[i]]) if names is not None else str(labels[i])
        if scores is not None:
            text += f" {scores[i]:.2f}"
        taken.append(_label(draw, boxes[i] * zoom, text, class_colour(labels[i]), font, picture.size, taken))
    return np.array(picture)


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int | None = None,
    tile: int = 320,
    gap: int = 8,
    titles: Sequence[str] | None = None,
) -> np.ndarray:
    """Pictures of any sizes in a grid on white, each fitted into a tile: uint8 (rows·tile…, columns·tile…, 3).

    `columns` None makes the sheet about as wide as it is high, a little wider. `titles` are written below.
    """
    if not len(images):
        raise InputError("a contact sheet needs at least one picture.")
    columns = columns or min(len(images), math.ceil(math.sqrt(1.3 * len(images))))
    rows = math.ceil(len(images) / columns)
    font = ImageFont.load_default(13)
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
            text = titles[number]
            while draw.textlength(text, font) > tile and len(text) > 4:
                text = text[: len(text) // 2 - 1] + "…" + text[len(text) // 2 + 2 :]
            draw.text((x + tile / 2, y + tile + 2), text, fill="black", font=font, anchor="ma")
    return np.array(sheet)


def save_image(image: np.ndarray, path: str | os.PathLike) -> Path:
    """Writes a picture (format from the name), aside first; makes the folder. Returns the path."""
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"quality": 92} if path.suffix in (".jpg", ".jpeg") else {}
        Image.fromarray(image).save(partial, **options)
        os.replace(partial, path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be written ({error}); give another output name.") from error
    return path


def training_curves(history: Mapping[str, Sequence[float]] | str | os.PathLike, path: str | os.PathLike) -> Path:
    """Plots losses (and AP, learning rate where present) over the epochs as a picture file; returns its path.

    `history` is what Keras' History holds (`history.history`) or the path of a CSVLogger's file. Epochs without a
    value (an empty cell, NaN) are bridged.
    """
    columns = _read_history(history) if isinstance(history, str | os.PathLike) else dict(history)
    epochs = np.asarray(columns.pop("epoch", range(len(next(iter(columns.values()), [])))), float) + 1
    if not len(epochs):
        raise InputError("there is no finished epoch to plot.")
    groups = {
        "loss": [key for key in columns if key.endswith("loss")],
        "AP": [key for key in columns if _AP_KEY.match(key)],
        "learning rate": [key for key in columns if key in ("lr", "learning_rate")],
    }
    groups = {title: keys for title, keys in groups.items() if keys}
    figure = new_figure(4.6 * len(groups), 3.4)
    for number, (title, keys) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), number + 1)
        for index, key in enumerate(keys):
            values = np.asarray(columns[key], float)
            known = np.isfinite(values)
            axes.plot(
                epochs[known],
                values[known],
                color=np.array(class_colour(index)) / 255 * 0.85,
                linestyle="--" if key.startswith("val_") and title == "loss" else "-",
                linewidth=1.8,
                marker="o" if known.sum() < 25 else None,
                markersize=3,
                label=key,
            )
        axes.set(xlabel="epoch", title=title)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """A Matplotlib figure of that many inches that belongs to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | os.PathLike) -> Path:
    """Writes a figure as a picture file with light grids and no frames above and at the right; returns the path."""
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.canvas.draw()
    figure.set_dpi(130)
    figure.canvas.draw()
    return save_image(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy(), path)


def _read_history(path: str | os.PathLike) -> dict[str, list[float]]:
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            key: [float(row[key]) if row[key] not in ("", "NA", None) else math.nan for row in rows]
            for key in (rows[0] if rows else ())
        }
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as a training log ({error}); give a CSVLogger's file.") from error


def _corners(box: np.ndarray) -> tuple[int, int, int, int]:
    """The pixels of a box' outline: Pillow's rectangles include their last row and column."""
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _dashed(draw: ImageDraw.ImageDraw, box: np.ndarray, width: int, dash: int) -> None:
    x1, y1, x2, y2 = _corners(box)
    for (ax, ay), (bx, by) in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = max(abs(bx - ax), abs(by - ay), 1)
        draw.line((ax, ay, bx, by), fill=(0, 0, 0), width=width)
        for start in range(0, length, 2 * dash):
            a, b = start / length, min(1.0, (start + dash) / length)
            line = (ax + a * (bx - ax), ay + a * (by - ay), ax + b * (bx - ax), ay + b * (by - ay))
            draw.line(line, fill=(255, 255, 255), width=width)


def _label(draw, box, text, colour, font, size, taken) -> tuple[float, float, float, float]:
    """Writes a name at the first place at its box that is free and in the picture; returns the place."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 5
    x1, y1, x2, y2 = _corners(box)
    places = [(x1, y1 - height), (x1, y1), (x1, y2 + 1), (x2 + 1 - width, y1 - height), (x1, y2 + 1 - height)]
    places = [
        (min(max(x, 0), max(size[0] - width, 0)), y)
        for x, y in places + [(x2 + 1 - width, y2 + 1), (x2 + 1, y1), (x1 - width, y1), (x1, y1 + height)]
        if 0 <= y <= size[1] - height
    ] or [(max(0, min(x1, size[0] - width)), 0)]
    x, y = next((place for place in places if not any(_meet(place, (width, height), t) for t in taken)), places[0])
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + 3 - left, y + 2 - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
    return x, y, x + width, y + height


def _meet(place, size, other) -> bool:
    (x, y), (width, height) = place, size
    return x < other[2] and other[0] < x + width and y < other[3] and other[1] < y + height
