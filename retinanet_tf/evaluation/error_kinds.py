"""Errors by kind and what each costs in AP50, after TIDE (Bolya et al. 2020, arXiv:2008.08115)."""

from typing import NamedTuple

import numpy as np

from retinanet_tf.evaluation.coco import mean_of_determined
from retinanet_tf.evaluation.matching import CLASSIFICATION, KINDS, LOCALISATION, NOT_COUNTED, RIGHT, Matching

_RECALLS = np.linspace(0.0, 1.0, 101)


class Errors(NamedTuple):
    """Kinds of errors of a detector."""

    ap50: float | None  # `coco_scores`' AP50; None if no class has an object
    counts: dict[str, int]  # by KINDS
    costs: dict[str, float | None]  # what AP50 gains if all errors of this kind, and no others, are mended
    beyond_limit: int  # objects that only detections beyond AP's limit found: no error of the detector


def precisions(hits: np.ndarray, num_objects: int) -> np.ndarray:
    """Precision `(101,)` at the recalls 0, .01, …, 1, as pycocotools interpolates it; its mean is AP.

    Args:
        hits: `(N,)` bool, whether each detection is right, by falling score.
        num_objects: of the class, at least 1.
    """
    right, wrong = np.cumsum(hits, dtype=float), np.cumsum(~hits, dtype=float)
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / num_objects, _RECALLS, side="left")
    return np.append(envelope, 0.0)[places]


def error_costs(matching: Matching) -> Errors:
    """Counts and costs of the six kinds of errors.

    Mended means: a classification error gets the class of its object, a localisation error its box, unless the object
    has been found or a better detection is mended to find it; then the detection goes, as those of the other kinds do.
    Missed objects are those that no detection found and no classification or localisation error is about: mended,
    they aren't counted as objects, and a class without any object left has AP 1.
    """
    order = matching.order[matching.kinds[matching.order] != NOT_COUNTED]
    kinds, classes = matching.kinds[order], matching.classes[order]
    targets, right = matching.targets[order], kinds == RIGHT
    totals = matching.objects_per_class
    anywhere, counted = (np.zeros(len(matching.object_classes), bool) for _ in range(2))
    anywhere[matching.found[matching.found >= 0]] = True
    counted[matching.found[order][right]] = True
    missed = ~(anywhere | matching.ignored_objects)
    missed[targets[targets >= 0]] = False
    missed_per_class = np.bincount(matching.object_classes[missed], minlength=len(totals))

    def ap50(keep: np.ndarray, hits: np.ndarray, classes: np.ndarray, left: np.ndarray) -> float:
        table = np.full((len(_RECALLS), len(totals)), -1.0)
        for index in np.flatnonzero(totals):
            of_class = keep & (classes == index)
            table[:, index] = precisions(hits[of_class], left[index]) if left[index] else 1.0
        return mean_of_determined(table)

    every = np.ones(len(order), bool)
    counts = {kind: int((kinds == index).sum()) for index, kind in enumerate(KINDS)}
    counts["missed"] = int(missed.sum())
    beyond_limit = int((anywhere & ~counted & ~matching.ignored_objects).sum())
    if not totals.any():
        return Errors(None, counts, dict.fromkeys(KINDS), beyond_limit)
    base = ap50(every, right, classes, totals)
    costs: dict[str, float | None] = {}
    for index, kind in enumerate(KINDS[:-1]):
        keep, hits, mended = kinds != index, right.copy(), classes.copy()
        if index in (CLASSIFICATION, LOCALISATION):
            rows = np.flatnonzero((kinds == index) & ~counted[targets])
            best = rows[np.unique(targets[rows], return_index=True)[1]]
            keep[best] = hits[best] = True
            mended[best] = matching.object_classes[targets[best]]
        costs[kind] = ap50(keep, hits, mended, totals) - base
    costs["missed"] = ap50(every, right, classes, totals - missed_per_class) - base
    return Errors(base, counts, costs, beyond_limit)
