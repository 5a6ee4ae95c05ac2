"""Matching of detections and objects at IoU 0.5: what became of each, for confusion matrices and kinds of errors.

AP50's own matching (pycocotools, by falling score, within a class) comes first. Detections and objects that it leaves
are then paired across classes by falling IoU, each at most once. What is left after that belongs to the background.
Crowds, and detections that lie in a crowd of their class, take no part.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask

from retinanet_tf.evaluation.coco import MATCHING_IOU, Matches

BACKGROUND_IOU = 0.1
"""Detections that overlap no object by this much are background to TIDE."""

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""The kinds of errors of TIDE (Bolya et al. 2020, arXiv:2008.08115, §2.2); the first five are of detections."""

CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
RIGHT, NOT_COUNTED = -1, -2


class Matching(NamedTuple):
    """N detections and M objects of a split; classes are the indices 0…K−1 of its sorted category ids.

    An image is its index in the ground truth.
    """

    num_classes: int
    num_images: int
    object_images: np.ndarray  # (M,)
    object_classes: np.ndarray  # (M,)
    ignored_objects: np.ndarray  # (M,) bool: crowds
    images: np.ndarray  # (N,)
    classes: np.ndarray  # (N,)
    scores: np.ndarray  # (N,)
    order: np.ndarray  # (N,) see Matches
    found: np.ndarray  # (N,) the object of the same class, −1 for none; beyond AP's limit of detections too
    ignored: np.ndarray  # (N,) bool: in a crowd
    kinds: np.ndarray  # (N,) the error in KINDS, RIGHT, or NOT_COUNTED where ignored or beyond AP's limit
    targets: np.ndarray  # (N,) the object that a classification or localisation error is about, else −1
    pairs: np.ndarray  # (P, 2) detection and object of other classes with an IoU of 0.5 or more, best first in an image

    @property
    def objects_per_class(self) -> np.ndarray:
        """`(K,)`, without crowds."""
        return np.bincount(self.object_classes[~self.ignored_objects], minlength=self.num_classes)

    @property
    def finders(self) -> np.ndarray:
        """`(M,)` the detection of the same class that found an object, −1 for none."""
        finders = np.full(len(self.object_classes), -1)
        rows = np.flatnonzero((self.found >= 0) & ~self.ignored)
        finders[self.found[rows]] = rows
        return finders


def match(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], matches: Matches) -> Matching:
    """Matches detections with objects.

    Args:
        ground_truth: the content of a COCO instances file, with iscrowd of every annotation.
        results: detections in COCO's results format.
        matches: what `coco_scores` found for the two.
    """
    numbers = {image["id"]: index for index, image in enumerate(ground_truth["images"])}
    indices = {one: index for index, one in enumerate(sorted(row["id"] for row in ground_truth["categories"]))}
    objects = ground_truth["annotations"]
    object_images, object_classes, object_boxes = _columns(objects, numbers, indices)
    images, classes, boxes = _columns(results, numbers, indices)
    scores = np.array([row["score"] for row in results], float)
    found, ignored = matches.found.copy(), matches.ignored.copy()
    kinds, targets = np.full(len(results), NOT_COUNTED), np.full(len(results), -1)
    pairs: list[np.ndarray] = []
    objects_of, detections_of = _by_image(object_images, len(numbers)), _by_image(images, len(numbers), matches.order)
    for mine, theirs in zip(detections_of, objects_of, strict=True):
        if not len(mine):
            continue
        beyond = mine[matches.limited[mine]]
        if len(beyond) and len(theirs):
            crowds = matches.ignored_objects[theirs]
            overlaps = mask.iou(boxes[beyond], object_boxes[theirs], crowds.astype(np.uint8))
            same = classes[beyond, None] == object_classes[theirs]
            _match_more(beyond, theirs, crowds, np.where(same, overlaps, 0.0), found, ignored)
        theirs = theirs[~matches.ignored_objects[theirs]]
        free = mine[(found[mine] < 0) & ~ignored[mine]]
        if not len(free):
            continue
        if not len(theirs):
            kinds[free] = BACKGROUND
            continue
        overlaps = mask.iou(boxes[free], object_boxes[theirs], np.zeros(len(theirs), np.uint8))
        same = classes[free, None] == object_classes[theirs]
        kinds[free], targets[free] = _kinds(overlaps, same, theirs)
        rows, columns = np.nonzero(~same & (overlaps >= MATCHING_IOU))
        best = np.argsort(-overlaps[rows, columns], kind="stable")
        pairs.append(np.stack([free[rows[best]], theirs[columns[best]]], axis=1))
    kinds[(found >= 0) & ~ignored] = RIGHT
    not_counted = ignored | matches.limited
    kinds[not_counted], targets[not_counted] = NOT_COUNTED, -1
    return Matching(
        num_classes=len(indices),
        num_images=len(numbers),
        object_images=object_images,
        object_classes=object_classes,
        ignored_objects=matches.ignored_objects,
        images=images,
        classes=classes,
        scores=scores,
        order=matches.order,
        found=found,
        ignored=ignored,
        kinds=kinds,
        targets=targets,
        pairs=np.concatenate(pairs) if pairs else np.zeros((0, 2), int),
    )


def _columns(rows: Sequence[Mapping[str, Any]], numbers: Mapping, indices: Mapping) -> tuple[np.ndarray, ...]:
    return (
        np.array([numbers[row["image_id"]] for row in rows], int),
        np.array([indices[row["category_id"]] for row in rows], int),
        np.array([row["bbox"] for row in rows], float).reshape(-1, 4),
    )


def _by_image(images: np.ndarray, count: int, order: np.ndarray | None = None) -> list[np.ndarray]:
    """The indices of each image's rows, in their own or in the given order."""
    order = np.arange(len(images)) if order is None else order
    grouped = order[np.argsort(images[order], kind="stable")]
    return np.split(grouped, np.searchsorted(images[grouped], np.arange(1, count)))


def _match_more(
    detections: np.ndarray,
    objects: np.ndarray,
    crowds: np.ndarray,
    overlaps: np.ndarray,
    found: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """Goes on where AP's limit of detections ended its matching within an image."""
    taken = np.isin(objects, found)
    for row, detection in enumerate(detections):
        if not (overlaps[row] >= MATCHING_IOU).any():
            continue
        free = np.where(taken | crowds, 0.0, overlaps[row])
        if free.max() >= MATCHING_IOU:
            best = len(free) - 1 - int(free[::-1].argmax())  # of equal ones the last, as pycocotools takes
            found[detection], taken[best] = objects[best], True
        else:
            ignored[detection] = (overlaps[row][crowds] >= MATCHING_IOU).any()


def _kinds(overlaps: np.ndarray, same: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kind of error of each detection that found nothing, and the object that it is about.

    Where several definitions fit, the larger overlap counts, and of two large or two small ones the right class's.
    """
    right, other = np.where(same, overlaps, 0.0), np.where(same, 0.0, overlaps)
    best_right, best_other = right.max(axis=1), other.max(axis=1)
    kinds = np.select(
        [
            best_right >= MATCHING_IOU,
            best_other >= MATCHING_IOU,
            best_right >= BACKGROUND_IOU,
            best_other >= BACKGROUND_IOU,
        ],
        [DUPLICATE, CLASSIFICATION, LOCALISATION, BOTH],
        BACKGROUND,
    )
    targets = np.full(len(kinds), -1)
    for kind, table in ((CLASSIFICATION, other), (LOCALISATION, right)):
        targets[kinds == kind] = objects[table[kinds == kind].argmax(axis=1)]
    return kinds, targets


class Outcomes(NamedTuple):
    """What became of every detection and object at each of L least scores, as changes from the highest to the lowest.

    A history is a list of (level, partner): from this level downwards the partner holds, an index or −1 for
    background. A detection's begins at the highest level that it reaches; an object's at L, above all.
    """

    events: np.ndarray  # (E, 5): image, true class, predicted class (K for background), level, +1 or −1 at and below it
    detections: dict[int, list[tuple[int, int]]]  # the histories of detections that aren't ignored
    objects: dict[int, list[tuple[int, int]]]  # of objects that aren't crowds

    def confusion(self, level: int, num_classes: int) -> np.ndarray:
        """`(K + 1, K + 1)` counts at a level: rows are true classes, columns predicted ones, background the last.

        A row's sum is the class's objects, a column's its detections that reach the level's score.
        """
        counts = np.zeros((num_classes + 1, num_classes + 1), int)
        _, true, predicted, _, sign = self.events[self.events[:, 3] >= level].T
        np.add.at(counts, (true, predicted), sign)
        return counts

    def errors_per_image(self, level: int, num_images: int) -> np.ndarray:
        """`(I,)` what isn't on the diagonal of the confusion matrix, by image."""
        wrong = self.events[(self.events[:, 3] >= level) & (self.events[:, 1] != self.events[:, 2])]
        return np.bincount(wrong[:, 0], wrong[:, 4], minlength=num_images).astype(int)


def outcomes(matching: Matching, levels: np.ndarray) -> Outcomes:
    """What a least score makes of a matching.

    Args:
        matching: of `match`.
        levels: `(L,)` rising least scores; no detection's score is below the first.
    """
    reached = np.searchsorted(levels, matching.scores, side="right") - 1
    finders, top = matching.finders, len(levels)
    kept = np.flatnonzero(~matching.ignored)
    detections = {int(one): [(int(reached[one]), int(matching.found[one]))] for one in kept}
    objects: dict[int, list[tuple[int, int]]] = {
        int(one): [(top, -1)] for one in np.flatnonzero(~matching.ignored_objects)
    }
    found_at = np.where(finders >= 0, reached[finders], -1) if len(reached) else np.full(len(finders), -1)
    _pair_across(matching, reached, found_at, detections, objects)
    for one in np.flatnonzero((finders >= 0) & ~matching.ignored_objects).tolist():
        level = int(found_at[one])
        objects[one] = [entry for entry in objects[one] if entry[0] > level] + [(level, int(finders[one]))]
    return Outcomes(_events(matching, detections, objects), detections, objects)


def _pair_across(
    matching: Matching,
    reached: np.ndarray,
    found_at: np.ndarray,
    detections: dict[int, list[tuple[int, int]]],
    objects: dict[int, list[tuple[int, int]]],
) -> None:
    """Writes pairs of different classes into the histories, by falling IoU at every level where something changes."""
    pairs = matching.pairs[reached[matching.pairs[:, 0]] > found_at[matching.pairs[:, 1]]]
    borders = np.flatnonzero(np.diff(matching.images[pairs[:, 0]])) + 1
    for group in np.split(pairs, borders):
        candidates = [(d, o, int(reached[d]), int(found_at[o])) for d, o in group.tolist()]
        levels = {level for _, _, *both in candidates for level in both if level >= 0}
        before: dict[int, int] = {}
        for level in sorted(levels, reverse=True):
            now: dict[int, int] = {}
            taken: set[int] = set()
            for detection, one, reach, found in candidates:
                if reach >= level > found and detection not in now and one not in taken:
                    now[detection] = one
                    taken.add(one)
            for detection in now.keys() | before.keys():
                if now.get(detection, -1) != before.get(detection, -1):
                    _append(detections[detection], level, now.get(detection, -1))
            partners, former = ({one: d for d, one in pairing.items()} for pairing in (now, before))
            for one in partners.keys() | former.keys():
                if partners.get(one, -1) != former.get(one, -1):
                    _append(objects[one], level, partners.get(one, -1))
            before = now


def _append(history: list[tuple[int, int]], level: int, partner: int) -> None:
    if history[-1][0] == level:
        history.pop()
    history.append((level, partner))


def _events(matching: Matching, detections: dict, objects: dict) -> np.ndarray:
    """A detection's events in its column; an object's in the background's column, while no detection has it."""
    background, rows = matching.num_classes, []
    object_classes, classes = matching.object_classes.tolist(), matching.classes.tolist()
    images, object_images = matching.images.tolist(), matching.object_images.tolist()
    for one, history in detections.items():
        image, predicted, former = images[one], classes[one], None
        for level, partner in history:
            true = object_classes[partner] if partner >= 0 else background
            if former is not None:
                rows.append((image, former, predicted, level, -1))
            rows.append((image, true, predicted, level, 1))
            former = true
    for one, history in objects.items():
        image, true, missed = object_images[one], object_classes[one], False
        for level, partner in history:
            if (partner < 0) != missed:
                missed = partner < 0
                rows.append((image, true, background, level, 1 if missed else -1))
    return np.array(rows, int).reshape(-1, 5)
