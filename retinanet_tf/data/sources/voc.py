"""Pascal VOC: JPEGImages, Annotations (one XML per image) and ImageSets/Main (lists of the splits)."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text


def read_voc(folder: str | os.PathLike, split: str | None = None, label_map: LabelMap | None = None) -> Annotations:
    """Reads a VOC folder; file names are relative to FOLDER/JPEGImages if that exists, else to FOLDER.

    Boxes in VOC are 1-based and include their last pixel: xyxy = (xmin − 1, ymin − 1, xmax, ymax), so that a box over
    the whole image is (0, 0, width, height). Objects marked `difficult` become crowds: neither learned nor counted
    against a detector, as in VOC's evaluation. Images and objects are numbered from 1 in the order of the list.

    Args:
        folder: with Annotations/*.xml, or the XML files themselves.
        split: the name of a list in ImageSets/Main ("trainval"); None reads every XML in the order of file names.
        label_map: the categories; None numbers the names that occur from 1 in alphabetical order.

    Raises:
        InputError: naming the file: a missing folder, list or XML, XML that can't be parsed, a box that isn't four
            numbers, a name that `label_map` lacks, two files about one image.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"the Pascal VOC folder {folder} doesn't exist.")
    annotated = os.path.join(folder, "Annotations")
    xml_folder = annotated if os.path.isdir(annotated) else folder
    stems = _split(folder, split) if split else sorted(n[:-4] for n in os.listdir(xml_folder) if n.endswith(".xml"))
    if not stems:
        raise InputError(f"{xml_folder} holds no XML annotation; a VOC folder has Annotations/*.xml.")
    parsed = []
    for stem in tqdm(stems, unit="file", desc="reading VOC", disable=None, delay=2):
        parsed.append(_parse(os.path.join(xml_folder, f"{stem}.xml"), stem))
    label_map = label_map_of((name for _, objects in parsed for name, _, _ in objects), label_map, folder)
    id_of = dict(zip(label_map.names, label_map.ids, strict=True))
    images: list[ImageAnnotations] = []
    first_file: dict[str, str] = {}
    for number, (image, objects) in enumerate(parsed, 1):
        if first_file.setdefault(image.file_name, stems[number - 1]) != stems[number - 1]:
            raise InputError(
                f"{stems[number - 1]}.xml and {first_file[image.file_name]}.xml in {xml_folder} are both about "
                f"{image.file_name}; remove one."
            )
        image.image_id = number
        image.boxes = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4)
        image.category_ids = np.array([id_of[name] for name, _, _ in objects], np.int64)
        image.iscrowd = np.array([difficult for _, _, difficult in objects], bool)
        image.area = np.prod(image.boxes[:, 2:] - image.boxes[:, :2], axis=1)
        images.append(image)
    number_objects(images)
    return Annotations(folder if split is None else f"{folder} ({split})", images, label_map)


def image_folder(folder: str | os.PathLike) -> str:
    """The image folder of a VOC folder: FOLDER/JPEGImages, or FOLDER itself if there is none."""
    inner = os.path.join(os.fspath(folder), "JPEGImages")
    return inner if os.path.isdir(inner) else os.fspath(folder)


def label_map_of(names: Iterable[str], label_map: LabelMap | None, source: str) -> LabelMap:
    """The map given, which must have all `names`, or else one that numbers them from 1 in alphabetical order."""
    names = sorted(set(names))
    if label_map is None:
        if not names:
            raise InputError(f"{source} has no object.")
        return LabelMap(range(1, len(names) + 1), names)
    if unknown := sorted(set(names) - set(label_map.names)):
        raise InputError(
            f"{source} has objects named {unknown[0]!r}, which the label map lacks ({len(unknown)} names)."
        )
    return label_map


def number_objects(images: list[ImageAnnotations]) -> None:
    """Gives the objects of all images the ids 1, 2, … in order."""
    count = 0
    for image in images:
        image.annotation_ids = np.arange(count + 1, count + 1 + len(image), dtype=np.int64)
        count += len(image)


def _split(folder: str, split: str) -> list[str]:
    path = os.path.join(folder, "ImageSets", "Main", f"{split}.txt")
    lines = [line.split() for line in read_text(path, "the list of the split").splitlines()]
    return [line[0] for line in lines if line]


def _parse(path: str, stem: str) -> tuple[ImageAnnotations, list[tuple[str, list[float], bool]]]:
    try:
        root = ElementTree.fromstring(read_text(path, "the annotation"))
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not XML ({error}).") from None
    size = [root.findtext(f"size/{side}", "") for side in ("width", "height")]
    # Some tools write 0 where they didn't know the size.
    width, height = (int(side) if side.strip().isdigit() and int(side) > 0 else None for side in size)
    objects = []
    for number, item in enumerate(root.iter("object"), 1):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{path}: object {number} has no name.")
        texts = [item.findtext(f"bndbox/{corner}") or "" for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = box = [float(text) for text in texts]
        except ValueError:
            box = None
        if box is None or not np.isfinite(box).all():
            raise InputError(f"{path}: object {number} ({name}) has bndbox {texts}; it must be four finite numbers.")
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        objects.append((name, [x1 - 1, y1 - 1, x2, y2] if x2 > x1 and y2 > y1 else [x1, y1, x2, y2], difficult))
    file_name = (root.findtext("filename") or "").strip() or f"{stem}.jpg"
    return ImageAnnotations(0, file_name, width, height), objects
