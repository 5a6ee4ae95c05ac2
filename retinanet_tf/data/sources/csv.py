"""CSV: one object per line, `image,x1,y1,x2,y2,class`; an image without objects is a line with empty cells."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from retinanet_tf.data.sources.annotations import (
    Annotations,
    ImageAnnotations,
    NamedObject,
    as_number,
    is_marked,
    whole_size,
    with_categories,
    without_repeats,
)
from retinanet_tf.data.sources.image_files import SUFFIXES, list_pictures, unified
from retinanet_tf.data.sources.labels import ONE_MAP, LabelMap
from retinanet_tf.data.sources.shares import PLAINLY_PIXELS, to_pixels
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text

# The names that a header may have for each column, in lower case and without blanks, hyphens and underscores.
_NAMES = {
    "image": "image imageid img filename imagefilename imagepath imagename imagefile file filepath path location",
    "x1": "x1 xmin left",
    "y1": "y1 ymin top",
    "x2": "x2 xmax right",
    "y2": "y2 ymax bottom",
    "class": "class classname label labelname category categoryname",
    "width": "width imagewidth imgwidth",
    "height": "height imageheight imgheight",
    "crowd": "isgroupof iscrowd",
}
_COLUMNS = list(_NAMES)[:8]  # in the order of a file without a header
_BOX = _COLUMNS[1:5]
_OPEN_IMAGES = {"imageid", "labelname"}
_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(
    path: str | os.PathLike,
    label_map: LabelMap | None = None,
    images: str | os.PathLike | None = None,
    *,
    names: str | os.PathLike | None = None,
    upright: bool = True,
    skip_bad: bool = False,
) -> Annotations:
    """Reads a CSV file of boxes in pixels, xyxy and continuous (no +1), or of Open Images.

    With a header the columns are known by their names, in any order: those of `image,x1,y1,x2,y2,class`, with
    `width,height` of the image where the file has them, or other tools' names, such as
    `filename,width,height,class,xmin,ymin,xmax,ymax` or `image_path,xmin,ymin,xmax,ymax,label`; other columns are
    ignored. Without a header a line has these six cells, or eight, the last two the image's width and height. With the
    columns `ImageID` and `LabelName` of Open Images boxes are shares of the upright picture. `IsGroupOf` or `iscrowd`
    of 1 or true makes a crowd.

    A line with an empty box, or with the box 0,0,0,0, is an image without objects (or without this one); its class
    doesn't count. Lines that repeat exactly are taken once. Images are numbered from 1 in the order of their first
    line, objects in the order of the lines. An image name without ending is that of the picture in `images` with any.

    Args:
        path: of the file, see `files.read_text`.
        label_map: the categories; None numbers the class names that occur from 1 in alphabetical order.
        images: the folder of the images, for shares and for names without ending.
        names: a CSV file with the name of each class, a line `LABEL,NAME`; by default Open Images'
            `*class-descriptions*.csv` beside `path` if there is one.
        upright: whether shares are of the picture as viewers show it, or as it is stored.
        skip_bad: see `shares.to_pixels`.

    Raises:
        InputError: naming file and line: a wrong number of cells, a header that lacks a column or has two for one, a
            cell that isn't a finite number, a class that is empty or that `label_map` lacks, sizes of one image that
            differ; an empty file; names for a file that isn't of Open Images.
    """
    path = os.fspath(path)
    found: dict[str, tuple[ImageAnnotations, list[NamedObject]]] = {}
    pictures, name_of, shares = list_pictures(images) if images else {}, dict[str, str](), False
    for number, row in _rows(path):
        line = f"{path}: line {number}"
        if not row["image"]:
            raise InputError(f"{line} names no image.")
        if images and row["as_written"] != row["image"] and os.path.isfile(os.path.join(images, row["as_written"])):
            row["image"] = row["as_written"]  # a name that begins or ends with a blank
        if "label" in row:
            name_of = name_of if shares else _descriptions(path, names)
            shares, row["class"] = True, name_of.get(row["label"], row["label"])
        elif names:
            raise InputError(f"names={os.fspath(names)} goes with YOLO and Open Images; leave it out for {path}.")
        width, height = (whole_size(row.get(side, "")) for side in ("width", "height"))
        image = ImageAnnotations(len(found) + 1, _with_ending(line, row["image"], pictures), width, height)
        image, objects = found.setdefault(unified(image.file_name), (image, []))
        if (image.width, image.height) != (width, height):
            raise InputError(f"{line} has another size of {row['image']} than an earlier line.")
        box = _box(line, [row[corner] for corner in _BOX])
        if any(box):
            if shares and max(map(abs, box)) > PLAINLY_PIXELS:
                raise InputError(
                    f"{line} has the box {box}; Open Images' boxes are shares of the picture, from 0 to 1."
                )
            if not row["class"]:
                raise InputError(f"{line} has class '', which is empty.")
            if label_map is not None and row["class"] not in label_map.names:
                raise InputError(f"{line} has class {row['class']!r}, which the label map lacks; {ONE_MAP}.")
            crowd = is_marked(f"{line} marks a crowd by", row.get("crowd", ""))
            objects.append(NamedObject(row["class"], box, crowd))
    rows = list(found.values())
    repeats = without_repeats(rows)
    if shares:
        if not images:
            raise InputError(f"{path} has boxes in shares of the pictures; give their folder, images=FOLDER.")
        to_pixels(rows, images, upright, skip_bad)
    annotations = with_categories(path, rows, label_map)
    annotations.warnings += [repeats] * bool(repeats)
    annotations.exif = ("upright" if upright else "stored") if shares else None
    return annotations


def _with_ending(where: str, name: str, pictures: dict[str, list[str]]) -> str:
    """The file name of an image that is named without its ending; others as they are."""
    fitting = [] if name.lower().endswith(SUFFIXES) else pictures.get(name, [])
    if len(fitting) > 1:
        raise InputError(f"{where} names {name}, which may be {fitting[0]} or {fitting[1]}; remove one.")
    return fitting[0] if fitting else name


def _descriptions(path: str, names: str | os.PathLike | None) -> dict[str, str]:
    """The names of Open Images' labels; where several have one name, with the label."""
    beside = sorted(Path(path).parent.glob("*class-descriptions*.csv")) if "://" not in path else []
    if not names and not beside:
        return {}
    file = os.fspath(names or beside[0])
    rows = csv.reader(io.StringIO(read_text(file, "the list of classes"), newline=""))
    found = {cells[0].strip(): cells[1].strip() for cells in rows if len(cells) == 2}
    counts = Counter(found.values())
    return {label: name if counts[name] == 1 else f"{name} ({label})" for label, name in found.items()}


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
            row = dict(zip(columns, cells, strict=True))
            yield reader.line_num, {**row, "as_written": line[columns.index("image")]}
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} can't be read as CSV ({error}).") from None
    if not columns:
        raise InputError(f"{path} is empty; a line is {','.join(_COLUMNS[:6])}.")


def _header(where: str, cells: list[str]) -> list[str]:
    """The column of each cell of a header, "" for those that aren't needed; [] if the line is none.

    In Open Images' form the column of the class is called "label".
    """
    names = [re.sub(r"[\s_-]", "", cell.lower()) for cell in cells]
    columns = [next((column for column, known in _NAMES.items() if name in known.split()), "") for name in names]
    if not {"image", *_BOX} & set(columns) or any(as_number(cell) is not None for cell in cells):
        return []
    for column in _NAMES:
        same = [cell for cell, of in zip(cells, columns, strict=True) if of == column]
        if len(same) > 1 or (not same and column in _COLUMNS[:6]):
            fault = f"{' and '.join(same)} for" if same else "nothing for"
            raise InputError(
                f"{where} has {fault} the column {column}; {','.join(_COLUMNS[:6])} are needed, each once."
            )
    if set(names) >= _OPEN_IMAGES:
        columns[columns.index("class")] = "label"
    return columns


def _box(where: str, cells: list[str]) -> list[float]:
    """x1, y1, x2, y2; empty if all cells are."""
    box = [number for number in map(as_number, cells) if number is not None]
    if len(box) != 4 and any(cells):
        raise InputError(f"{where} has the box {','.join(cells):.99}; it must be four finite numbers.")
    return box
