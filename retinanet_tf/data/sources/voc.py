"""Pascal VOC: JPEGImages, Annotations (one XML per image) and ImageSets/Main (lists of the splits)."""

import glob
import os
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from reprlib import repr as shown

from retinanet_tf.data.sources.annotations import (
    Annotations,
    ImageAnnotations,
    NamedObject,
    as_number,
    is_marked,
    whole_size,
    with_categories,
)
from retinanet_tf.data.sources.image_files import SUFFIXES, list_pictures, unified, voc_picture
from retinanet_tf.data.sources.labels import LabelMap, is_name
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text

_ENDING = re.compile(f"({'|'.join(map(re.escape, (*SUFFIXES, '.xml')))})$", re.IGNORECASE)
_COLUMN = re.compile(r"\s+(-1|0|1)$")  # a list of one class says whether a picture has it


def read_voc(
    folder: str | os.PathLike,
    split: str | None = None,
    label_map: LabelMap | None = None,
    images: str | os.PathLike | None = None,
) -> Annotations:
    """Reads a VOC folder; `image_files` says which picture an annotation means.

    Boxes in VOC are 1-based and include their last pixel: xyxy = (xmin − 1, ymin − 1, xmax, ymax), so that a box over
    the whole image is (0, 0, width, height). Objects marked `difficult` become crowds: neither learned nor counted
    against a detector, as in VOC's evaluation. Images and objects are numbered from 1 in the order of the list.

    A line of a list is the name of an XML file without its ending, perhaps with blanks; if there is no such file, it is
    a name and a column -1, 0 or 1 (unless a picture has the whole line as its name), or a path or file name of the XML
    or its picture. Hidden files are left out.

    Args:
        folder: with Annotations/*.xml, or the XML files themselves.
        split: the name of a list in ImageSets/Main ("trainval"); None reads every XML in the order of file names.
        label_map: the categories; None numbers the names that occur from 1 in alphabetical order.
        images: the folder that file names are relative to; None is `image_folder(folder)`.

    Raises:
        InputError: naming the file: a missing folder, list or XML, XML that can't be parsed, a box that isn't four
            numbers, a name that `label_map` lacks, a line of a list or an XML that may mean either of two files, two
            lines or XML files about one image.
    """
    from tqdm import tqdm  # here, since the runtime of exported files, which needs label maps, has none

    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"the Pascal VOC folder {folder} doesn't exist.")
    annotated = os.path.join(folder, "Annotations")
    xml_folder = annotated if os.path.isdir(annotated) else folder
    images = os.fspath(images or image_folder(folder))
    names = sorted(name for name in os.listdir(xml_folder) if name.lower().endswith(".xml") and name[0] != ".")
    pictures = list_pictures(images)
    if split:
        names = _listed(os.path.join(folder, "ImageSets", "Main", f"{split}.txt"), xml_folder, names, pictures)
    if not names:
        remedy = _instead(xml_folder) or "a VOC folder has Annotations/*.xml"
        raise InputError(f"{xml_folder} holds no XML annotation; {remedy}.")
    parsed: dict[str, tuple[ImageAnnotations, list[NamedObject]]] = {}
    for name in tqdm(names, unit="file", desc="reading VOC", disable=None, delay=2):
        image, objects = _parse(os.path.join(xml_folder, name))
        image.file_name = voc_picture(images, pictures, os.path.join(xml_folder, name), image.file_name)
        if not is_name(image.file_name):
            raise InputError(f"the name of the file {os.path.join(xml_folder, name)} isn't UTF-8; rename it.")
        image.image_id, key = len(parsed) + 1, unified(image.file_name)
        if key in parsed:
            other = names[list(parsed).index(key)]
            raise InputError(f"{name} and {other} in {xml_folder} are both about {image.file_name}; remove one.")
        parsed[key] = image, objects
    return with_categories(folder if split is None else f"{folder} ({split})", list(parsed.values()), label_map)


def image_folder(folder: str | os.PathLike) -> str:
    """The image folder of a VOC folder: FOLDER/JPEGImages, or FOLDER itself if there is none."""
    inner = os.path.join(os.fspath(folder), "JPEGImages")
    return inner if os.path.isdir(inner) else os.fspath(folder)


def _listed(path: str, xml_folder: str, names: list[str], pictures: Mapping[str, list[str]]) -> list[str]:
    """The XML files that the lines of a list mean, in its order."""
    lines = [line.strip() for line in re.split("[\r\n]+", read_text(path, "the list of the split"))]
    lines = [line for line in lines if line and not posixpath.basename(unified(line)).startswith("._")]
    if not lines:
        raise InputError(f"{path} lists no image.")
    has_columns = all(_COLUMN.search(line) for line in lines)
    files = {os.path.splitext(name)[0]: name for name in names}

    def find(text: str) -> str:
        name = _ENDING.sub("", unified(text))
        if text in files or name in files:
            return files.get(text) or files[name]
        if not name.startswith(("/", "..")) and os.path.isfile(os.path.join(xml_folder, f"{name}.xml")):
            return f"{name}.xml"
        return files.get(posixpath.basename(name), "")

    found: dict[str, str] = {}
    for line in lines:
        bare = _COLUMN.sub("", line)
        whole, cut = find(line), find(bare)
        if line in pictures and not has_columns:
            cut = ""  # its last word is part of the name
        if whole and cut and whole != cut and has_columns:
            raise InputError(f"{path}: the line {line!r} may mean {whole} or {cut} in {xml_folder}; rename one.")
        name = whole or cut or f"{line if line in pictures else bare}.xml"
        if name in found:
            raise InputError(f"{path} names {name} twice, as {found[name]!r} and as {line!r}; remove one line.")
        found[name] = line
    return list(found)


def _instead(folder: str) -> str:
    """What a folder without XML may have been meant to be, or ''."""
    for pattern, sentence in (
        ("*.tfrecord", "it has shards already, such as {}"),
        ("*.json", "COCO's annotations are a file: give {}"),
        (os.path.join("*", "*.xml"), "{} does: give that"),
        (os.path.join("*", "*", "*.xml"), "{} does: give that"),
    ):
        if found := sorted(glob.glob(os.path.join(glob.escape(folder), pattern))):
            return sentence.format(os.path.dirname(found[0]) if pattern.endswith(".xml") else found[0])
    return ""


def _parse(path: str) -> tuple[ImageAnnotations, list[NamedObject]]:
    """The image, its `<filename>` as file_name, and its objects."""
    try:
        root = ElementTree.fromstring(read_text(path, "the annotation"))
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not XML ({error}).") from None
    # Some tools write 0 where they didn't know the size.
    width, height = (whole_size(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
    objects = []
    for number, item in enumerate(root.iter("object"), 1):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{path}: object {number} has no name.")
        texts = [item.findtext(f"bndbox/{corner}") or "" for corner in ("xmin", "ymin", "xmax", "ymax")]
        box = [value for value in map(as_number, texts) if value is not None]
        if len(box) != 4:
            raise InputError(f"{path}: object {number} ({name}) has bndbox {shown(texts)}; give four finite numbers.")
        x1, y1, x2, y2 = box
        if x2 > x1 and y2 > y1:
            box = [x1 - 1, y1 - 1, x2, y2]
        difficult = is_marked(f"{path}: object {number} ({name}) has difficult", item.findtext("difficult") or "")
        objects.append(NamedObject(name, box, difficult))
    return ImageAnnotations(0, (root.findtext("filename") or "").strip(), width, height), objects
