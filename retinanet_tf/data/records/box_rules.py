"""Rules for malformed boxes: clip, drop or keep, and record every case."""

from dataclasses import dataclass, replace

import numpy as np

from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations

# Kinds of findings, each a list in summary.json, with the action.
KINDS = {
    "clipped_boxes": "overhung their image; cut at its edge and kept",
    "zero_size_boxes": "had no width or no height, or swapped corners; dropped",
    "outside_boxes": "lay wholly outside their image; dropped",
    "duplicate_boxes": "repeat an earlier box of the same category on the same image; kept",
    "converted_images": "were re-encoded as plain RGB",
    "exif_applied": "were turned upright, as their annotated size demands",
    "exif_left": "were left as stored, as their annotated size demands",
    "exif_ambiguous": "had an orientation that only `exif` could settle",
    "skipped_images": "could not be used; skipped",
}


@dataclass(frozen=True)
class Finding:
    """One action of a rule: its kind (a key of `KINDS`), the image, and the annotation or reason."""

    kind: str
    image: str
    detail: str
    row: int = -1
    """Of the object among the image's; −1 if the finding is about the image."""


def clean(image: ImageAnnotations, width: int, height: int) -> tuple[ImageAnnotations, list[Finding]]:
    """The image with boxes clipped to (width, height) pixels, and a finding per malformed box.

    Overhanging boxes are clipped; boxes without width or height, before or after, are dropped; exact duplicates are
    kept and named. An area that was its box's becomes the clipped box's; any other one, and crowd marks, stay.
    """
    boxes = image.boxes
    clipped = np.clip(boxes, 0.0, np.array([width, height, width, height], np.float64))
    empty_before = ((boxes[:, 2:] - boxes[:, :2]) <= 0).any(axis=1)
    empty = ((clipped[:, 2:] - clipped[:, :2]) <= 0).any(axis=1)
    cut = (np.abs(clipped - boxes) > 1e-6).any(axis=1) & ~empty  # less is rounding
    findings = []

    def note(kind: str, mask: np.ndarray) -> None:
        for row in np.flatnonzero(mask):
            corners = ", ".join(f"{value:g}" for value in boxes[row])
            text = f"annotation {image.annotation_ids[row]} [{corners}]"
            findings.append(Finding(kind, image.file_name, text, int(row)))

    note("clipped_boxes", cut)
    note("zero_size_boxes", empty_before)
    note("outside_boxes", empty & ~empty_before)
    before, after = (np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (boxes, clipped))
    area = np.where(cut & np.isclose(image.area, before), after, image.area)
    kept = replace(image, width=width, height=height, boxes=clipped, area=area).select(~empty)
    rows_kept = np.flatnonzero(~empty)
    if len(kept) > 1:
        rows = np.column_stack([kept.boxes, kept.category_ids])
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        earliest, ids = first[inverse.reshape(-1)], kept.annotation_ids
        for row in np.flatnonzero(earliest != np.arange(len(rows))):
            text = f"annotation {ids[row]} repeats annotation {ids[earliest[row]]}"
            findings.append(Finding("duplicate_boxes", image.file_name, text, int(rows_kept[row])))
    return kept, findings


def shares_of_image(annotations: Annotations) -> str:
    """An error text if all boxes lie between 0 and about 1, with fractions: shares, not pixels; else ''."""
    boxes = [image.boxes for image in annotations.images if len(image)]
    if not boxes or max(b.max() for b in boxes) > 1.5 or not any((b % 1.0).any() for b in boxes):
        return ""
    return (
        f"{annotations.source}: every box lies between 0 and 1, so they look like shares of the image; boxes are "
        "wanted in pixels (multiply x by the image's width, y by its height)."
    )


def nothing_to_learn(annotations: Annotations) -> str:
    """A sentence if no image has an object that is no crowd, else ''."""
    boxes = annotations.num_boxes
    if boxes > annotations.num_crowds:
        return ""
    if not boxes:
        return f"{annotations.source} has no box at all; there is nothing to learn a detector from."
    return (
        f"all {boxes} boxes of {annotations.source} are crowds (iscrowd, or difficult in Pascal VOC): neither learned "
        "nor counted, so there is nothing to learn a detector from."
    )


def doubt_format(wrong: int, boxes: int) -> str:
    """A warning if more than half of the boxes overhang their images or had to be dropped, else ''."""
    if 2 * wrong <= boxes:
        return ""
    return (
        f"{wrong} of {boxes} boxes overhang their images, lie outside them or have no size: are their four numbers "
        "what they should be (COCO: x, y, width, height; Pascal VOC and CSV: x1, y1, x2, y2)?"
    )
