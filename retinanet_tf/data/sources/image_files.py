"""Which picture an annotation means.

COCO and CSV: the file of that name in the image folder; if there is none, the file of that name with backslashes
(Windows) read as slashes. Pascal VOC: the picture whose name, without its ending, is that of the XML file; if there is
none, the file that `<filename>` names, be it by a path, with another ending or with none. Where two different files fit
these rules, neither is taken: the error names both. Files outside the image folder, and what isn't a regular file
(devices, pipes, folders), are refused.
"""

import os
import posixpath
from pathlib import Path

from retinanet_tf.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")


PREDICTED = ("pictures", "contact_sheet.jpg", "detections.json")
"""What `predict` writes into its output folder: a folder of pictures, a picture, and what was found."""


class BadImage(ValueError):
    """An unusable image file; the message is the reason, without the file's name."""


def unified(file_name: str) -> str:
    """A name that is equal for all spellings of one path: slashes, no `.`, `..` or double slash."""
    return posixpath.normpath(file_name.replace("\\", "/"))


def find_image(folder: str | os.PathLike, file_name: str, allow_outside: bool = False) -> str:
    """The path of an image by the rules for COCO and CSV; raises BadImage."""
    names = dict.fromkeys([file_name, file_name.replace("\\", "/")])
    paths = [path for path in (os.path.normpath(os.path.join(folder, name)) for name in names) if os.path.exists(path)]
    if not paths:
        raise BadImage(f"isn't in {os.fspath(folder)}")
    if len(paths) > 1:
        raise BadImage(f"may be {paths[0]} or {paths[1]}; rename one of them")
    if not allow_outside and not any(
        real(paths[0]).startswith(os.path.join(real(folder), "")) for real in (os.path.abspath, os.path.realpath)
    ):
        raise BadImage(
            f"is outside the image folder {os.fspath(folder)}; prepare reads such files if allow_outside=true"
        )
    if not os.path.isfile(paths[0]):
        raise BadImage("isn't a regular file")
    return paths[0]


def is_predicted(path: str, base: str, output: str | os.PathLike | None = None) -> bool:
    """Whether `predict` wrote a picture, into a folder at or below `base`: `output`, or one with its other files."""
    inside, sheet, results = PREDICTED
    parent = Path(path).parent
    if parent.name != inside and os.path.basename(path) != sheet:
        return False
    folder = parent.parent if parent.name == inside else parent
    if not folder.is_relative_to(base):
        return False
    is_former = all((folder / name).is_file() for name in (results, sheet))
    return is_former or (output is not None and os.path.realpath(folder) == os.path.realpath(output))


def list_pictures(folder: str | os.PathLike) -> dict[str, list[str]]:
    """The pictures directly in a folder by their names without ending; hidden files are left out."""
    pictures: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES and not name.startswith("."):
            pictures.setdefault(stem, []).append(name)
    return pictures


def voc_picture(folder: str, pictures: dict[str, list[str]], xml: str, file_name: str) -> str:
    """The name of the picture that a Pascal VOC annotation means, relative to the image folder.

    Args:
        folder: of the images.
        pictures: what `list_pictures` finds in it.
        xml: path of the annotation.
        file_name: its `<filename>`, "" if it has none.

    Returns:
        A file that is there, or the name of one that should be.

    Raises:
        InputError: several pictures fit; names the annotation and two of them.
    """
    named = unified(file_name)
    last = posixpath.basename(named)
    stem = os.path.splitext(os.path.basename(xml))[0]
    own = pictures.get(stem, [])
    paths = [last] if named.startswith(("/", "..")) else [named, last]
    exact = [name for name in paths if os.path.isfile(os.path.join(folder, name))][:1]
    if exact and exact[0] in own:
        return exact[0]
    found = own + exact or pictures.get(os.path.splitext(last)[0], []) or pictures.get(last, [])
    if len(found) > 1:
        raise InputError(
            f"{xml} may be about {found[0]} or {found[1]} in {folder}, by its own name and its <filename> "
            f"({file_name or 'missing'}); correct <filename>, or rename or remove a file."
        )
    return found[0] if found else last if last.strip(".") else f"{stem}.jpg"
