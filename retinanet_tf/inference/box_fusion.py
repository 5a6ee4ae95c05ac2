"""Weighted box fusion: the detections of several versions of an image, averaged instead of suppressed."""

import numpy as np

FUSION_IOU = 0.55
"""From which on boxes are one object's, as in the source."""


def fuse(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, versions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fuses the detections of one image, class by class (Solovyev, Wang, Gabruseva 2021, arXiv:1910.13302, §3).

    From the best detection to the worst, each joins the fused box of its class that it overlaps most, if by more than
    `FUSION_IOU`, or begins a new one. A fused box is the mean of its T members weighted by their scores; its score is
    their mean times min(T, versions) / versions, so that what few versions show counts less.

    >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]], np.float32)
    >>> fused, scores, labels = fuse(boxes, np.array([0.8, 0.4, 0.6]), np.array([1, 1, 1]), versions=2)
    >>> [[round(float(side), 2) for side in box] for box in fused], [round(float(score), 2) for score in scores]
    ([[0.0, 0.0, 10.0, 10.67], [50.0, 50.0, 60.0, 60.0]], [0.6, 0.3])

    Args:
        boxes: `(N, 4)` xyxy of all versions, in the image's pixels.
        scores: `(N,)`.
        labels: `(N,)` class indices.
        versions: how many versions of the image were looked at.

    Returns:
        Boxes `(M, 4)` float32, scores `(M,)` float32 descending and labels `(M,)` of M ≤ N fused detections.
    """
    fused, means, counts, fused_labels = average(boxes, scores, labels)
    values = means * np.minimum(counts, versions) / versions
    order = np.argsort(-values, kind="stable")
    return fused[order].astype(np.float32), values[order].astype(np.float32), fused_labels[order]


def average(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float = FUSION_IOU
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fused boxes `(M, 4)` of `fuse`, with the mean score, the number and the label of their members, `(M,)` each.

    In the order in which they were begun.
    """
    weights = np.maximum(scores, 1e-12)  # a score may be 0
    members: list[list[int]] = []
    fused, fused_labels = np.zeros((len(boxes), 4)), np.zeros(len(boxes), int)
    for index in np.argsort(-scores, kind="stable"):
        count = len(members)
        overlaps = np.where(fused_labels[:count] == labels[index], overlap(boxes[index], fused[:count]), 0.0)
        place = int(overlaps.argmax()) if count and overlaps.max() > iou else count
        if place == count:
            members.append([])
            fused_labels[place] = labels[index]
        members[place].append(index)
        fused[place] = np.average(boxes[members[place]], axis=0, weights=weights[members[place]])
    count = len(members)
    means = np.array([scores[one].mean() for one in members])
    return fused[:count], means, np.array([len(one) for one in members]), fused_labels[:count]


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes `(…, 4)` with others, broadcast."""
    common = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return common / np.maximum(areas - common, 1e-9)
