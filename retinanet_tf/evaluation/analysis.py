"""Analysis of an evaluation: AP and precision by class, F1 against score, confusion matrix, kinds of errors.

Everything is at IoU 0.5. A class without objects has no AP, no F1 and no threshold (None), but its detections count.
"""

import dataclasses
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from retinanet_tf.evaluation.coco import Scores
from retinanet_tf.evaluation.error_kinds import Errors, error_costs
from retinanet_tf.evaluation.matching import KINDS, Matching, Outcomes, match, outcomes
from retinanet_tf.evaluation.source import GroundTruth
from retinanet_tf.inference.results import MIN_SCORE
from retinanet_tf.text import printable

MEANINGS = {
    "classification": "in the right place (IoU ≥ 0.5), another class",
    "localisation": "right class, IoU from 0.1 to 0.5",
    "both": "another class, IoU from 0.1 to 0.5",
    "duplicate": "right, but a better detection has found the object",
    "background": "IoU below 0.1 with every object",
    "missed": "objects that no detection is about",
}
_LISTED_CLASSES, _PRINTED_MATRIX, _PRINTED_CONFUSIONS = 100, 8, 10


class Threshold(NamedTuple):
    """The least score with the best F1; of several, the highest."""

    score: float
    f1: float
    precision: float
    recall: float


def best_threshold(hits: np.ndarray, scores: np.ndarray, num_objects: int) -> Threshold | None:
    """The threshold of detections in order of falling score, or None where no least score has an F1 above 0.

    >>> best_threshold(np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1]), 2)
    Threshold(score=0.7, f1=0.8, precision=0.6666666666666666, recall=1.0)

    Args:
        hits: `(N,)` bool, whether a detection is right.
        scores: `(N,)` falling.
        num_objects: that could be found.
    """
    right = np.cumsum(hits)
    if not num_objects or not right.size or not right[-1]:
        return None
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # equal scores come together
    f1 = 2 * right[ends] / (ends + 1 + num_objects)
    best = int(f1.argmax())
    found, taken = int(right[ends[best]]), int(ends[best]) + 1
    return Threshold(float(scores[ends[best]]), float(f1[best]), found / taken, found / num_objects)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What explains the numbers of an evaluation.

    Attributes:
        truth: the ground truth.
        results: detections in COCO's results format.
        scores: the two compared by `coco_scores`.
        max_detections: AP's limit of detections per image and class.
    """

    truth: GroundTruth
    results: list[dict[str, Any]]
    scores: Scores
    max_detections: int

    @property
    def metrics(self) -> dict[str, float]:
        """The twelve COCO numbers."""
        return self.scores.metrics

    @property
    def names(self) -> tuple[str, ...]:
        """The K classes' names."""
        return self.truth.label_map.unique_names

    @cached_property
    def matching(self) -> Matching:
        """Which detection found which object."""
        return match(self.truth.instances, self.results, self.scores.matches)

    @cached_property
    def errors(self) -> Errors:
        """Kinds of errors and their costs."""
        return error_costs(self.matching)

    @cached_property
    def ap(self) -> list[float | None]:
        """AP by class."""
        return [None if value < 0 else value for value in self.scores.per_category.values()]

    @cached_property
    def precision(self) -> list[list[float] | None]:
        """Precision by class at the 101 recalls of COCO; a curve's mean is the class's AP50."""
        curves = np.asarray(self.scores.precision[0]).T
        return [None if curve.max() < 0 else curve.tolist() for curve in curves]

    @cached_property
    def ap50(self) -> list[float | None]:
        """AP50 by class."""
        return [None if curve is None else float(np.mean(curve)) for curve in self.precision]

    @cached_property
    def thresholds(self) -> list[Threshold | None]:
        """The least score with the best F1 by class."""
        return [self._threshold(index) for index in range(self.matching.num_classes)]

    @cached_property
    def best(self) -> Threshold | None:
        """The least score with the best F1 of all classes' detections and objects together."""
        return self._threshold(None)

    @property
    def threshold(self) -> float:
        """The least score that the confusion matrix is for: the best one, or MIN_SCORE where none has an F1 above 0."""
        return self.best.score if self.best else MIN_SCORE

    @cached_property
    def levels(self) -> np.ndarray:
        """A hundred least scores from 0 to 1 (or around scores outside of that), and the threshold, rising."""
        scores = self.matching.scores
        low, high = min(0.0, scores.min(initial=0.0)), max(1.0, scores.max(initial=1.0))
        return np.unique([*(low + (high - low) * np.arange(101) / 100), self.threshold])

    @cached_property
    def level(self) -> int:
        """The index of the threshold in `levels`."""
        return int(np.searchsorted(self.levels, self.threshold))

    @cached_property
    def outcomes(self) -> Outcomes:
        """What became of detections and objects at each of `levels`."""
        return outcomes(self.matching, self.levels)

    @cached_property
    def confusion(self) -> np.ndarray:
        """`(K + 1, K + 1)` at the threshold: rows true, columns predicted, background last."""
        return self.outcomes.confusion(self.level, self.matching.num_classes)

    @cached_property
    def f1(self) -> dict[str, Any]:
        """F1 at each of `levels`: "all" together, "mean" over the classes with objects, and "classes", each or None."""
        totals = self.matching.objects_per_class
        classes = [self._f1(index) if totals[index] else None for index in range(len(totals))]
        determined = [curve for curve in classes if curve is not None]
        return {
            "all": self._f1(None) if determined else None,
            "mean": np.mean(determined, axis=0) if determined else None,
            "classes": classes,
        }

    @cached_property
    def error_counts(self) -> np.ndarray:
        """`(6, L)` errors of each kind with a score of at least each of `levels`; the last row counts missed objects.

        An object is missed at a level where nothing has found it, nor is a classification or localisation error about
        it.
        """
        matching = self.matching
        reached = np.searchsorted(self.levels, matching.scores, side="right") - 1
        about = np.where(matching.found >= 0, matching.found, matching.targets)
        rows = np.flatnonzero((about >= 0) & ~matching.ignored)
        covered = np.full(len(matching.object_classes), -1)
        np.maximum.at(covered, about[rows], reached[rows])
        counts = [np.bincount(reached[matching.kinds == kind], minlength=len(self.levels)) for kind in range(5)]
        at_least = np.cumsum(np.array(counts)[:, ::-1], axis=1)[:, ::-1]
        covered = covered[~matching.ignored_objects]
        missed = [(covered < level).sum() for level in range(len(self.levels))]
        return np.concatenate([at_least, [missed]]).astype(int)

    def to_json(self) -> dict[str, Any]:
        """The content of metrics.json; what is undetermined is null, but −1 in the numbers that are pycocotools'."""
        confusion, errors = self.confusion, self.errors
        return {
            **self.metrics,
            "per_category": dict(zip(self.names, self.scores.per_category.values(), strict=True)),
            **_threshold_row(self.best, int(self.matching.objects_per_class.sum())),
            "classes": [self._class_row(index) for index in range(len(self.names))],
            "errors": {
                "AP50": errors.ap50,
                "kinds": {
                    kind: {
                        "count": errors.counts[kind],
                        "count_at_threshold": int(self.error_counts[index, self.level]),
                        "AP50_cost": errors.costs[kind],
                    }
                    for index, kind in enumerate(KINDS)
                },
                "objects_beyond_max_detections": errors.beyond_limit,
            },
            "confusion_matrix": {
                "rows": "true",
                "columns": "predicted",
                "classes": [*self.names, "background"],
                "min_score": self.threshold,
                "iou": 0.5,
                "counts": confusion.tolist(),
            },
            "precision_at_recall": {
                "recall": rounded(self.scores.recalls),
                "iou": 0.5,
                "classes": dict(zip(self.names, map(rounded, self.precision), strict=True)),
            },
            "F1_at_score": {
                "score": self.levels.tolist(),
                "all": rounded(self.f1["all"]),
                "mean": rounded(self.f1["mean"]),
                "classes": dict(zip(self.names, map(rounded, self.f1["classes"]), strict=True)),
            },
        }

    def text(self) -> str:
        """Tables for terminals, in per cent; — where undetermined."""
        lines = [f"{'class':<24} objects     AP   AP50 | best F1  score  precision  recall"]
        totals = self.matching.objects_per_class
        most = np.argsort(-totals, kind="stable")[:_LISTED_CLASSES]
        for index in sorted(most.tolist()):
            values = f"{totals[index]:>7} {percent(self.ap[index]):>6} {percent(self.ap50[index]):>6}"
            columns = _columns(self.thresholds[index], totals[index])
            lines.append(f"{printable(self.names[index], 24):<24} {values} | {columns}")
        rest = len(totals) - len(most)
        lines += [f"… and {rest} classes with fewer objects, in metrics.json"] * (rest > 0)
        ap, ap50 = (percent(None if value < 0 else value) for value in (self.metrics["AP"], self.metrics["AP50"]))
        lines.append(f"{'all':<24} {totals.sum():>7} {ap:>6} {ap50:>6} | {_columns(self.best, totals.sum())}")
        if self.best is None:
            lines.append(f"no detection finds an object; what follows is for scores of {self.threshold:g} or more")
        lines += ["", f"{'errors (IoU 0.5)':<24}  of score ≥ {self.threshold:<6.3g} of all scores  AP50 lost"]
        for index, (kind, count) in enumerate(self.errors.counts.items()):
            at_threshold, cost = self.error_counts[index, self.level], percent(self.errors.costs[kind])
            lines.append(f"{kind:<24} {at_threshold:>18} {count:>14} {cost:>10}  {MEANINGS[kind]}")
        if self.errors.beyond_limit:
            lines.append(self.limit_note())
        return "\n".join([*lines, "", *self._confusion_lines()])

    def limit_note(self) -> str:
        """What the objects are that AP leaves out for its limit of detections."""
        return (
            f"{self.errors.beyond_limit} objects were found only by detections beyond the best {self.max_detections} "
            "of their class on an image: AP doesn't count them as found, and they are no errors of the detector."
        )

    def _confusion_lines(self) -> list[str]:
        counts, names = self.confusion, [printable(name, 12) for name in (*self.names, "background")]
        title = f"confusion matrix, score ≥ {self.threshold:.3g}, IoU ≥ 0.5"
        if len(names) <= _PRINTED_MATRIX + 1:
            lines = [f"{title} (rows: true, columns: predicted)", " " * 12 + "".join(f"{name:>13}" for name in names)]
            for row, name in enumerate(names):
                cells = [str(count) for count in counts[row]]
                cells[-1] = "" if row == len(names) - 1 else cells[-1]
                lines.append(f"{name:<12}" + "".join(f"{cell:>13}" for cell in cells))
            return lines
        wrong = counts * ~np.eye(len(names), dtype=bool)
        lines = [f"{title}: {counts.trace()} right, {wrong[-1].sum()} on the background, {wrong[:, -1].sum()} missed"]
        wrong[-1] = wrong[:, -1] = 0
        for place in np.argsort(-wrong, axis=None, kind="stable")[:_PRINTED_CONFUSIONS]:
            row, column = np.unravel_index(place, wrong.shape)
            if wrong[row, column]:
                lines.append(f"{wrong[row, column]:>7}  {names[row]} taken for {names[column]}")
        return lines

    def _class_row(self, index: int) -> dict[str, Any]:
        matching = self.matching
        of_class = (matching.classes == index) & ~matching.ignored
        return {
            "id": self.truth.label_map.ids[index],
            "name": self.names[index],
            "objects": int(matching.objects_per_class[index]),
            "detections": int(of_class.sum()),
            "AP": self.ap[index],
            "AP50": self.ap50[index],
            **_threshold_row(self.thresholds[index], int(matching.objects_per_class[index])),
        }

    def _ranked(self, index: int | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Hits and scores of a class's detections by falling score, and its objects; None takes all classes."""
        matching, totals = self.matching, self.matching.objects_per_class
        order = matching.order[~matching.ignored[matching.order]]
        if index is not None:
            order = order[matching.classes[order] == index]
        return matching.found[order] >= 0, matching.scores[order], int(totals.sum() if index is None else totals[index])

    def _threshold(self, index: int | None) -> Threshold | None:
        return best_threshold(*self._ranked(index))

    def _f1(self, index: int | None) -> np.ndarray:
        hits, scores, num_objects = self._ranked(index)
        taken = np.searchsorted(-scores, -self.levels, side="right")
        right = np.concatenate([[0], np.cumsum(hits)])[taken]
        return 2 * right / (taken + num_objects)


def percent(value: float | None) -> str:
    """A number in per cent with one decimal; — for None."""
    return "—" if value is None else f"{100 * value:.1f}"


def threshold_numbers(best: Threshold | None, num_objects: int) -> tuple[float | None, ...]:
    """A threshold's score, F1, precision and recall; objects of which none is found have an F1 and a recall of 0."""
    return best or ((None, 0.0, None, 0.0) if num_objects else (None,) * 4)


def _threshold_row(best: Threshold | None, num_objects: int) -> dict[str, float | None]:
    return dict(zip(("threshold", "F1", "precision", "recall"), threshold_numbers(best, num_objects), strict=True))


def _columns(best: Threshold | None, num_objects: int) -> str:
    score, f1, precision, recall = threshold_numbers(best, num_objects)
    shown = "—" if score is None else f"{score:.3f}"
    return f"{percent(f1):>7} {shown:>6} {percent(precision):>10} {percent(recall):>7}"


def rounded(values: Any, digits: int = 4) -> list[float] | None:
    """Numbers for a JSON file; None stays."""
    return None if values is None else np.round(np.asarray(values, float), digits).tolist()
