"""The dataset doctor: everything that can be told of a dataset before training, as one plain dictionary."""

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from retinanet_tf.config.config import Config
from retinanet_tf.data.inspect import anchor_coverage as reach
from retinanet_tf.data.records.box_rules import clean, doubt_format, shares_of_image
from retinanet_tf.data.records.images import BadImage, ImagePolicy, prepare_image
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations

# COCO's bounds of small, medium and large, square pixels of the original image.
SIZE_BOUNDS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
_LISTED = 200


@dataclass
class Inspection:
    """errors, warnings: sentences; with an error the dataset isn't fit to train on. facts: numbers by name. suspicious:
    (reason, image, box xyxy, text) of boxes worth a look. settings: better anchor settings, see `reach.suggestions`.
    """

    source: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    suspicious: list[tuple[str, ImageAnnotations, np.ndarray, str]] = field(default_factory=list)
    settings: list[tuple[str, float, float]] = field(default_factory=list)


def inspect(annotations: Annotations, config: Config, images: str | None = None) -> Inspection:
    """Looks at a dataset and at what the anchors and the image size of `config` make of it.

    images: the image folder; with it every file's header is checked against its annotation. Images whose size neither
    annotation nor file tells are left out of what needs a size.
    """
    found = Inspection(annotations.source)
    if wrong := shares_of_image(annotations):
        found.errors.append(wrong)
    sized = [_sized(image, images, found) for image in tqdm(annotations.images, unit="image", disable=None, delay=2)]
    whole = [image for image in sized if image is not None]
    cleaned = [_clean(image, found) for image in whole]
    clipped = sum(reason == "clipped boxes" for reason, *_ in found.suspicious)
    if doubt := doubt_format(clipped, annotations.num_boxes):
        found.warnings.insert(0, doubt)
    _count(annotations, found)
    _sizes(cleaned, annotations, found)
    _look_at_anchors(cleaned, annotations, config, found)
    return found


def _sized(image: ImageAnnotations, folder: str | None, found: Inspection) -> ImageAnnotations | None:
    """The image with its real size, None if it can't be used."""
    if folder is not None:
        try:
            with open(os.path.join(folder, image.file_name), "rb") as file:
                real = prepare_image(file.read(), (image.width, image.height), ImagePolicy(verify="header"))
        except OSError as error:
            found.errors.append(f"image {image.file_name} (id {image.image_id}) can't be read: {error.strerror}.")
            return None
        except BadImage as error:
            found.errors.append(f"image {image.file_name} (id {image.image_id}) {error}.")
            return None
        image.width, image.height = real.width, real.height
    return image if image.width and image.height else None


def _clean(image: ImageAnnotations, found: Inspection) -> ImageAnnotations:
    """Applies prepare_data's rules and notes what they find, and what they'd let pass though it looks wrong."""
    assert image.width and image.height, "_sized has seen to it"
    cleaned, findings = clean(image, image.width, image.height)
    for finding in findings:
        sentence = f"{finding.image}: {finding.detail}: {finding.kind.replace('_', ' ')[:-2]}"
        (found.warnings if finding.kind in ("clipped_boxes", "duplicate_boxes") else found.errors).append(sentence)
        number = int(finding.detail.split()[1])
        (row,) = np.flatnonzero(image.annotation_ids == number)[:1]
        found.suspicious.append((finding.kind.replace("_", " "), image, image.boxes[row], finding.detail))
    sides = cleaned.boxes[:, 2:] - cleaned.boxes[:, :2]
    for row, (width, height) in enumerate(sides):
        number, share = cleaned.annotation_ids[row], width * height / (image.width * image.height)
        reason = None
        if min(width, height) < 2:
            reason = "less than two pixels wide or high"
        elif max(width / height, height / width) > 10:
            reason = "longer than ten times its other side"
        elif share > 0.95 and not cleaned.iscrowd[row]:
            reason = "as large as the image"
        if reason:
            text = f"annotation {number}: {width:.4g}x{height:.4g}"
            found.suspicious.append((reason, cleaned, cleaned.boxes[row], text))
    for first, second, overlap in _near_duplicates(cleaned):
        ids = cleaned.annotation_ids
        text = f"annotations {ids[first]} and {ids[second]}: IoU {overlap:.2f}"
        found.suspicious.append(("near duplicates", cleaned, cleaned.boxes[second], text))
    return cleaned


def _near_duplicates(image: ImageAnnotations) -> list[tuple[int, int, float]]:
    """Pairs of objects of one category, no crowds, with IoU above 0.85 that are not the same box."""
    if len(image) < 2:
        return []
    boxes = image.boxes
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.prod(np.maximum(high - low, 0), axis=-1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    iou = overlap / np.maximum(area[:, None] + area[None] - overlap, 1e-12)
    same = (image.category_ids[:, None] == image.category_ids[None]) & ~image.iscrowd[:, None] & ~image.iscrowd[None]
    rows, columns = np.nonzero(np.triu(same & (iou > 0.85) & (iou < 1.0), 1))
    return [(int(a), int(b), float(iou[a, b])) for a, b in zip(rows, columns, strict=True)]


def _count(annotations: Annotations, found: Inspection) -> None:
    counts = Counter(dict.fromkeys(annotations.labels.ids, 0))
    for image in annotations.images:
        counts.update(image.category_ids[~image.iscrowd].tolist())
    names = dict(zip(annotations.labels.ids, annotations.labels.names, strict=True))
    objects = np.array([len(image) - int(image.iscrowd.sum()) for image in annotations.images])
    present = [count for count in counts.values() if count]
    found.facts["images"] = len(annotations.images)
    found.facts["boxes"] = annotations.num_boxes
    found.facts["crowds"] = int(sum(image.iscrowd.sum() for image in annotations.images))
    found.facts["images without objects"] = int((objects == 0).sum())
    found.facts["categories"] = {names[category]: count for category, count in counts.items()}
    found.facts["imbalance (most over least frequent)"] = round(max(present) / min(present), 1) if present else None
    found.facts["objects an image"] = _spread(objects)
    if not present:
        found.errors.append(f"{annotations.source} has no box at all; there is nothing to learn a detector from.")
    missing = [names[category] for category, count in counts.items() if not count]
    if missing:
        found.warnings.append(f"{len(missing)} categories have no object: {', '.join(missing[:20])}.")
    rare = [names[category] for category, count in counts.items() if 0 < count < 10]
    if rare:
        found.warnings.append(f"{len(rare)} categories have fewer than 10 objects: {', '.join(rare[:20])}.")


def _sizes(images: list[ImageAnnotations], annotations: Annotations, found: Inspection) -> None:
    if not images:
        return
    boxes = np.concatenate([image.boxes[~image.iscrowd] for image in images])
    sides = boxes[:, 2:] - boxes[:, :2]
    found.facts["image width"] = _spread([image.width for image in images])
    found.facts["image height"] = _spread([image.height for image in images])
    found.facts["image sizes"] = {
        f"{w}x{h}": n for (w, h), n in Counter((i.width, i.height) for i in images).most_common(10)
    }
    if len(boxes):
        found.facts["box side (square root of area)"] = _spread(np.sqrt(np.prod(sides, axis=1)))
        found.facts["box aspect (height over width)"] = _spread(sides[:, 1] / sides[:, 0])
        area = np.concatenate([image.area[~image.iscrowd] for image in images])
        found.facts["boxes by COCO's size"] = {
            name: int(((area >= low) & (area < high)).sum()) for name, (low, high) in SIZE_BOUNDS.items()
        }


def _look_at_anchors(
    images: list[ImageAnnotations], annotations: Annotations, config: Config, found: Inspection
) -> None:
    boxes = np.concatenate([image.boxes[~image.iscrowd] for image in images] or [np.zeros((0, 4))])
    if not len(boxes):
        return
    categories = np.concatenate([image.category_ids[~image.iscrowd] for image in images])
    counts = [int((~image.iscrowd).sum()) for image in images]
    sizes = np.repeat([(image.height, image.width) for image in images], counts, axis=0)
    short, long = config.model.image_size, config.model.max_size
    seen, new_sizes, _ = reach.resized(boxes, sizes, short, long)
    best = reach.best_iou(seen, new_sizes, config.anchors)
    names = dict(zip(annotations.labels.ids, annotations.labels.names, strict=True))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    found.facts["image size of the model"] = f"{short}, at most {long}"
    found.facts["box side at that size"] = _spread(np.sqrt(np.prod(seen[:, 2:] - seen[:, :2], axis=1)))
    found.facts["unreached at IoU 0.5"] = _share(best < 0.5)
    found.facts["unreached at IoU 0.4"] = _share(best < 0.4)
    found.facts["unreached at IoU 0.5 by class"] = {
        names[c]: _share(best[categories == c] < 0.5) for c in annotations.labels.ids if (categories == c).any()
    }
    found.facts["unreached at IoU 0.4 by class"] = {
        names[c]: _share(best[categories == c] < 0.4) for c in annotations.labels.ids if (categories == c).any()
    }
    for limit in (0.5, 0.4):
        found.facts[f"unreached at IoU {limit} by size"] = {
            name: _share(best[(area >= low) & (area < high)] < limit)
            for name, (low, high) in SIZE_BOUNDS.items()
            if ((area >= low) & (area < high)).any()
        }
    found.settings = reach.suggestions(boxes, sizes, config.anchors, short, long)
    share = float((best < 0.5).mean())
    if share > 0.05:
        advice = f" {found.settings[0][0]} would leave {found.settings[0][1]:.1%}." if found.settings else ""
        found.warnings.append(f"no anchor reaches {share:.1%} of the objects at IoU 0.5 at this image size.{advice}")


def _share(flags: np.ndarray) -> str:
    return f"{flags.mean():.1%} ({int(flags.sum())} of {len(flags)})"


def _spread(values) -> dict:
    values = np.asarray(values, float)
    if not len(values):
        return {}
    marks = {"least": 0, "5 %": 5, "median": 50, "95 %": 95, "most": 100}
    return {"mean": round(float(values.mean()), 2)} | {
        name: round(float(np.percentile(values, mark)), 2) for name, mark in marks.items()
    }
