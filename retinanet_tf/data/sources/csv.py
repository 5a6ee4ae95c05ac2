"""CSV: one object per line, `image,x1,y1,x2,y2,class`; an image without objects is a line with empty cells."""

import csv
import io
import os
import re
from collections.abc import Iterator

from retinanet_tf.data.sources.annotations import (
    Annotations,
    ImageAnnotations,
    NamedObject,
    as_number,
    whole_size,
    with_categories,
)
from retinanet_tf.data.sources.image_files import unified
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text

# The names that a header may have for each column, in lower case and without blanks, hyphens and underscores.
_NAMES = {
    "image": (
        "image",
        "img",
        "filename",
        "imagefilename",
        "imagepath",
        "imagename",
        "imagefile",
        "file",
        "filepath",
        "path",
        "location",
    ),
    "x1": ("x1", "xmin", "left"),
    "y1": ("y1", "ymin", "top"),
    "x2": ("x2", "xmax", "right"),
    "y2": ("y2", "ymax", "bottom"),
    "class": ("class", "classname", "label", "labelname", "category", "categoryname"),
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
}
_COLUMNS = list(_NAMES)
_BOX = _COLUMNS[1:5]
_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(path: str | os.PathLike, label_map: LabelMap | None = None) -> Annotations:
    """Reads a CSV file of boxes in pixels, xyxy and continuous (no +1).

    With a header the columns are known by their names, in any order: those of `image,x1,y1,x2,y2,class`, with
    `width,height` of the image where the file has them, or other tools' names, such as
    `filename,width,height,class,xmin,ymin,xmax,ymax` or `image_path,xmin,ymin,xmax,ymax,label`; other columns are
    ignored. Without a header a line has these six cells, or eight, the last two the image's width and height.

    A line with an empty box, or with the box 0,0,0,0, is an image without objects (or without this one); its class
    doesn't count. Images are numbered from 1 in the order of their first line, objects in the order of the lines.

    Args:
        path: of the file, see `files.read_text`.
        label_map: the categories; None numbers the class names that occur from 1 in alphabetical order.

    Raises:
        InputError: naming file and line: a wrong number of cells, a header that lacks a column or has two for one, a
            cell that isn't a finite number, a class that is empty or that `label_map` lacks, sizes of one image that
            differ; an empty file.
    """
    path = os.fspath(path)
    images: dict[str, tuple[ImageAnnotations, list[NamedObject]]] = {}
    for number, row in _rows(path):
        line = f"{path}: line {number}"
        if not row["image"]:
            raise InputError(f"{line} names no image.")
        width, height = (whole_size(row.get(side, "")) for side in ("width", "height"))
        image = ImageAnnotations(len(images) + 1, row["image"], width, height)
        image, objects = images.setdefault(unified(image.file_name), (image, []))
        if (image.width, image.height) != (width, height):
            raise InputError(f"{line} has another size of {row['image']} than an earlier line.")
        box = _box(line, [row[corner] for corner in _BOX])
        if any(box):
            if not row["class"] or (label_map is not None and row["class"] not in label_map.names):
                raise InputError(f"{line} has class {row['class']!r}, which is empty or not in the label map.")
            objects.append(NamedObject(row["class"], box))
    return with_categories(path, list(images.values()), label_map)


def _rows(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of the lines that aren't empty."""
    reader = csv.reader(io.StringIO(read_text(path, "the annotation file"), newline=""), strict=True)
    columns: list[str] = []
    try:
        for line in reader:
            cells, where = [cell.strip() for cell in line], f"{path}: line {reader.line_num}"
            if not any(cells):
                continue
            if len(cells) < 6 and (marks := [name for mark, name in _MARKS.items() if mark in cells[0]]):
                raise InputError(f"{where} has {marks[0]} between its cells; commas are needed.")
            if not columns:
                columns = _header(where, cells)
                if columns:
                    continue
                columns = _COLUMNS if len(cells) == len(_COLUMNS) else _COLUMNS[:6]
            if len(cells) != len(columns):
                raise InputError(f"{where} has {len(cells)} cells; {','.join(filter(None, columns))} are needed.")
            yield reader.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} can't be read as CSV ({error}).") from None
    if not columns:
        raise InputError(f"{path} is empty; a line is {','.join(_COLUMNS[:6])}.")


def _header(where: str, cells: list[str]) -> list[str]:
    """The column of each cell of a header, "" for those that aren't needed; [] if the line is none."""
    names = [re.sub(r"[\s_-]", "", cell.lower()) for cell in cells]
    columns = [next((column for column, known in _NAMES.items() if name in known), "") for name in names]
    if not {"image", *_BOX} & set(columns) or any(as_number(cell) is not None for cell in cells):
        return []
    for column in _COLUMNS:
        same = [cell for cell, of in zip(cells, columns, strict=True) if of == column]
        if len(same) > 1 or (not same and column in _COLUMNS[:6]):
            fault = f"{' and '.join(same)} for" if same else "nothing for"
            raise InputError(
                f"{where} has {fault} the column {column}; {','.join(_COLUMNS[:6])} are needed, each once."
            )
    return columns


def _box(where: str, cells: list[str]) -> list[float]:
    """x1, y1, x2, y2; empty if all cells are."""
    box = [number for number in map(as_number, cells) if number is not None]
    if len(box) != 4 and any(cells):
        raise InputError(f"{where} has the box {','.join(cells):.99}; it must be four finite numbers.")
    return box
