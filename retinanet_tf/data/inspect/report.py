"""Errors, warnings and statistics of a dataset before training, as an `Inspection`."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from retinanet_tf.config.config import Config
from retinanet_tf.data.inspect import anchor_coverage
from retinanet_tf.data.records.box_rules import clean, doubt_format, nothing_to_learn, shares_of_image
from retinanet_tf.data.records.images import BadImage, ImagePolicy, load_image
from retinanet_tf.data.repeat_factors import repeat_factors
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.coco import SIZE_BOUNDS
from retinanet_tf.detection.boxes import iou
from retinanet_tf.text import printable

_LISTED = 20  # categories in a sentence
_COCO_LIMIT = 100  # detections per image
_MATTERS = 2.0  # repeat factor of a category with a quarter of the median's images


@dataclass
class Inspection:
    """The report of a dataset.

    Attributes:
        errors, warnings: sentences; with an error the dataset isn't fit to train on.
        facts: numbers by name.
        suspicious: (reason, image, box xyxy, text) of boxes worth a look.
        settings: better anchor settings, see `anchor_coverage.suggestions`.
    """

    source: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    suspicious: list[tuple[str, ImageAnnotations, np.ndarray, str]] = field(default_factory=list)
    settings: list[tuple[str, float, float]] = field(default_factory=list)


def inspect(annotations: Annotations, config: Config, images: str | None = None) -> Inspection:
    """Inspects annotations, and how the anchors and the image size of `config` fit them.

    Args:
        annotations: images whose size neither annotation nor file has are left out of statistics that need a size.
        config: the configuration to train with.
        images: the image folder; with it every file's header is checked against its annotation.
    """
    report = Inspection(annotations.source, warnings=list(annotations.warnings))
    if shares := shares_of_image(annotations):
        report.errors.append(shares)
    cleaned = []
    for image in tqdm(annotations.images, unit="image", disable=None, delay=2):
        if _set_size(image, images, annotations.exif or "stop", report):
            cleaned.append(_clean(image, report))
    wrong = sum(reason in ("clipped boxes", "zero size boxes", "outside boxes") for reason, *_ in report.suspicious)
    if doubt := doubt_format(wrong, annotations.num_boxes):
        report.warnings.insert(0, doubt)
    _count(annotations, report)
    _rare(annotations, config, report)
    if cleaned:
        _measure(cleaned, annotations, config, report)
    return report


def _set_size(image: ImageAnnotations, folder: str | None, exif: str, report: Inspection) -> bool:
    """Gives the image the size of its file; whether it has a size and can be used."""
    if folder is not None:
        name = f"image {image.file_name} (id {image.image_id})"
        try:
            real = load_image(folder, image, ImagePolicy(verify="header", exif=exif))
        except BadImage as error:
            report.errors.append(f"{name} {error}.")
            return False
        image.width, image.height = real.width, real.height
    return bool(image.width and image.height)


def _clean(image: ImageAnnotations, report: Inspection) -> ImageAnnotations:
    """Applies the rules of `prepare` and notes their findings, and boxes that they let pass but that look wrong."""
    assert image.width and image.height
    cleaned, findings = clean(image, image.width, image.height)
    for finding in findings:
        kind = finding.kind.replace("_", " ")
        problems = report.warnings if finding.kind in ("clipped_boxes", "duplicate_boxes") else report.errors
        problems.append(f"{finding.image}: {finding.detail}: {kind[:-2]}")
        report.suspicious.append((kind, image, image.boxes[finding.row], finding.detail))
    sides = cleaned.boxes[:, 2:] - cleaned.boxes[:, :2]
    for row, (width, height) in enumerate(sides):
        if min(width, height) < 2:
            reason = "less than two pixels wide or high"
        elif max(width / height, height / width) > 10:
            reason = "longer than ten times its other side"
        elif width * height > 0.95 * image.width * image.height and not cleaned.iscrowd[row]:
            reason = "as large as the image"
        else:
            continue
        text = f"annotation {cleaned.annotation_ids[row]}: {width:.4g}x{height:.4g}"
        report.suspicious.append((reason, cleaned, cleaned.boxes[row], text))
    for first, second, overlap in _near_duplicates(cleaned):
        ids = cleaned.annotation_ids
        text = f"annotations {ids[first]} and {ids[second]}: IoU {overlap:.2f}"
        report.suspicious.append(("near duplicates", cleaned, cleaned.boxes[second], text))
    return cleaned


def _near_duplicates(image: ImageAnnotations) -> list[tuple[int, int, float]]:
    """Pairs of objects of one category, no crowds, with IoU above 0.85 that are not the same box."""
    if len(image) < 2:
        return []
    boxes = tf.constant(image.boxes)
    overlap = iou(boxes[:, None], boxes[None]).numpy()
    same = (image.category_ids[:, None] == image.category_ids[None]) & ~image.iscrowd[:, None] & ~image.iscrowd[None]
    rows, columns = np.nonzero(np.triu(same & (overlap > 0.85) & (overlap < 1.0), 1))
    return [(int(a), int(b), float(overlap[a, b])) for a, b in zip(rows, columns, strict=True)]


def _count(annotations: Annotations, report: Inspection) -> None:
    label_map, images = annotations.label_map, annotations.images
    counts = Counter(category for image in images for category in image.category_ids[~image.iscrowd].tolist())
    by_name = {name: counts[i] for i, name in zip(label_map.ids, label_map.unique_names, strict=True)}
    objects = np.array([int((~image.iscrowd).sum()) for image in images], int)
    report.facts |= {
        "images": len(images),
        "boxes": annotations.num_boxes,
        "crowds": annotations.num_boxes - int(objects.sum()),
        "images without objects": int((objects == 0).sum()),
        "categories": by_name,
        "imbalance (most over least frequent)": round(max(counts.values()) / min(counts.values()), 1)
        if counts
        else None,
        "objects per image": _spread(objects),
    }
    if images and (nothing := nothing_to_learn(annotations)):
        report.warnings.append(nothing)
    for few, names in {
        "no object": [name for name, count in by_name.items() if not count],
        "fewer than 10 objects": [name for name, count in by_name.items() if 0 < count < 10],
    }.items():
        if names:
            listed = ", ".join(printable(name, 40) for name in names[:_LISTED]) + ", …" * (len(names) > _LISTED)
            report.warnings.append(f"{len(names)} of {len(by_name)} categories have {few}: {listed}.")
    many = objects[objects > _COCO_LIMIT]
    if len(many):
        report.warnings.append(
            f"{len(many)} images have more than {_COCO_LIMIT} objects (up to {many.max()}): by default a detector "
            f"finds, and COCO's evaluation counts, {_COCO_LIMIT} detections per image; raise max_detections for both."
        )


def _rare(annotations: Annotations, config: Config, report: Inspection) -> None:
    """Shares of the images by category, and whether repeat-factor sampling or an α by class would matter."""
    names = dict(zip(annotations.label_map.ids, annotations.label_map.unique_names, strict=True))
    present = [image.present for image in annotations.images]
    found = repeat_factors(present, config.data.repeat_threshold or "auto")
    if not found.shares:
        return
    report.facts["images with each category"] = {
        names[i]: f"{share:.2%}, repeat factor {found.categories[i]:.2f}" for i, share in found.shares.items()
    }
    report.facts["repeat_threshold of these factors"] = f"{found.threshold:.3g} (auto: {found.median:.3g})"
    if not config.data.repeat_threshold and max(found.categories.values()) >= _MATTERS:
        report.warnings.append(
            f"rare categories, which training could see more often: {found.sentence(annotations.label_map)}"
        )
    objects = {names[i]: report.facts["categories"][names[i]] for i in found.shares}
    median, (fewest, name) = np.median([*objects.values()]), min((count, name) for name, count in objects.items())
    if median / fewest >= _MATTERS**2 and not config.loss.class_alpha:
        report.warnings.append(
            f"{printable(name, 40)} has {fewest} objects, half of the categories at least {median:g}: where its scores "
            f"stay low, an alpha of its own above {config.loss.alpha:g} (class_alpha) weighs them more."
        )


def _measure(images: list[ImageAnnotations], annotations: Annotations, config: Config, report: Inspection) -> None:
    """Sizes of images and boxes, and how many boxes no anchor reaches."""
    facts, counts = report.facts, [int((~image.iscrowd).sum()) for image in images]
    facts["image width"] = _spread([image.width for image in images])
    facts["image height"] = _spread([image.height for image in images])
    sizes = Counter((image.width, image.height) for image in images).most_common(10)
    facts["image sizes"] = {f"{width}x{height}": count for (width, height), count in sizes}
    if not sum(counts):
        return

    def objects(column: str) -> np.ndarray:
        return np.concatenate([getattr(image, column)[~image.iscrowd] for image in images])

    boxes, categories, area = objects("boxes"), objects("category_ids"), objects("area")
    sides = boxes[:, 2:] - boxes[:, :2]
    facts["box side (square root of area)"] = _spread(np.sqrt(np.prod(sides, axis=1)))
    facts["box aspect (height over width)"] = _spread(sides[:, 1] / sides[:, 0])
    facts["boxes by COCO's size"] = {
        name: int(((area >= low) & (area < high)).sum()) for name, (low, high) in SIZE_BOUNDS.items()
    }
    image_sizes = np.repeat([(image.height, image.width) for image in images], counts, axis=0)
    if side := config.data.crop:  # each box in the middle of a crop, as far as its image goes
        corner = (boxes[:, :2] + boxes[:, 2:] - side) // 2
        boxes = boxes - np.tile(np.clip(corner, 0, np.maximum(image_sizes[:, ::-1] - side, 0)), 2)
        image_sizes = np.minimum(image_sizes, side)
        facts["crop of the images"] = side
    short, long, rule = config.model.image_size, config.model.max_size, config.model.resize
    seen, new_sizes = anchor_coverage.resized(boxes, image_sizes, short, long, rule)
    best = anchor_coverage.best_iou(seen, new_sizes, config.anchors)
    facts["image size of the model"] = f"{short}, at most {long}"
    facts["box side at that size"] = _spread(np.sqrt(np.prod(seen[:, 2:] - seen[:, :2], axis=1)))
    label_map = annotations.label_map
    groups = {
        "": {"all": np.ones(len(boxes), bool)},
        " by class": {name: categories == i for i, name in zip(label_map.ids, label_map.unique_names, strict=True)},
        " by size": {name: (area >= low) & (area < high) for name, (low, high) in SIZE_BOUNDS.items()},
    }
    for title, members in groups.items():
        for limit in (0.5, 0.4):
            shares = {name: _share(best[which] < limit) for name, which in members.items() if which.any()}
            facts[f"unreached at IoU {limit}{title}"] = shares if title else shares["all"]
    report.settings = anchor_coverage.suggestions(boxes, image_sizes, config.anchors, config.model)
    share = float((best < 0.5).mean())
    if share > 0.05:
        advice = f" {report.settings[0][0]} would leave {report.settings[0][1]:.1%}." if report.settings else ""
        report.warnings.append(f"no anchor reaches {share:.1%} of the objects at IoU 0.5 at this image size.{advice}")


def _share(flags: np.ndarray) -> str:
    return f"{flags.mean():.1%} ({int(flags.sum())} of {len(flags)})"


def _spread(values) -> dict:
    values = np.asarray(values, float)
    if not len(values):
        return {}
    percentiles = {"least": 0, "5 %": 5, "median": 50, "95 %": 95, "most": 100}
    return {"mean": round(float(values.mean()), 2)} | {
        name: round(float(np.percentile(values, percent)), 2) for name, percent in percentiles.items()
    }
