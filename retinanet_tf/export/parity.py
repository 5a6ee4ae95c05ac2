"""Parity: an exported file in its own runtime beside the detector, on the same pictures, as a report that can fail.

Three comparisons: of the file and the detector on the same canvases; of the same conversion without a score
threshold, where every level of the pyramid answers with its best 100 pairs, whatever is in the pictures; and of the
file with the detector on the detector's own canvases, which are resized and padded otherwise. The first two must
agree; in int8, the first. A SavedModel makes the detector's own canvases itself, so that it has two comparisons.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.evaluator import analyse_results, evaluate
from retinanet_tf.evaluation.source import Source, category_ids
from retinanet_tf.inference.box_fusion import overlap
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.images import to_image
from retinanet_tf.inference.results import to_results
from retinanet_tf.inference.saved_model import SavedModelDetector
from retinanet_tf.runtime.exported import ExportedDetector

FEWEST_PAIRS = 20
"""Fewer compared pairs prove nothing."""
ROUNDING = 1e-5
"""Two scores that differ by less may be ranked either way."""
TIE = 1e-4
"""Share of a score by which two of overlapping candidates differ at most if either side may keep another one alone."""
PROBED_PER_LEVEL = 100
"""Pairs of anchor and class that each level answers with in the comparison without a threshold."""
CANDIDATES_PER_LEVEL = 5_000
"""At least so many of each level are looked through for a box that one side's NMS kept alone."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a file may be off.

    Attributes:
        box: largest difference of a coordinate in pixels of the canvas.
        score: largest difference of a score.
        off: share of the pairs that may be further off.
        unmatched: share of the detections that may have no counterpart. Of two boxes that overlap by the limit to a
            millionth, one side may drop another one.
        any_ties: whether tied detections may be of any number, not counted as unmatched.
    """

    box: float
    score: float
    off: float
    unmatched: float
    any_ties: bool = False


LIMITS = {
    "float32": Limits(box=0.5, score=1e-3, off=0.0, unmatched=0.01),
    "float16": Limits(box=2.0, score=0.02, off=0.05, unmatched=0.05),
    "bfloat16": Limits(box=8.0, score=0.1, off=0.05, unmatched=0.1),
    "int8": Limits(box=np.inf, score=np.inf, off=1.0, unmatched=0.5),
}


@dataclasses.dataclass
class Comparison:
    """Two answers to the same pictures.

    Attributes:
        name: what was compared.
        limits: that the differences are held against.
        compared: pairs of detections of one class at one place.
        missing: detections of the detector alone, without those tied.
        extra: detections of the file alone, without those tied.
        off: pairs beyond the limits, without those tied.
        tied: overlapping candidates of one score, of which either side's NMS kept another, in pairs or alone: the
            file's box is among the detector's candidates.
        box: largest difference of a coordinate over all pairs that aren't tied, in pixels.
        score: largest difference of a score over the same.
    """

    name: str
    limits: Limits
    compared: int = 0
    missing: int = 0
    extra: int = 0
    off: int = 0
    tied: int = 0
    box: float = 0.0
    score: float = 0.0

    def fault(self) -> str | None:
        """Why the answers aren't shown to be the same, or None."""
        return self.difference() or self.lack()

    def lack(self) -> str | None:
        """Why it is no proof, or None."""
        if self.compared >= FEWEST_PAIRS:
            return None
        return (
            f"{self.compared} pairs of detections are no proof, which takes {FEWEST_PAIRS}: give validation, shards "
            "with objects that the detector finds"
        )

    def difference(self) -> str | None:
        """How the answers differ by more than the limits, or None."""
        alone, tied = max(self.missing, self.extra), 0 if self.limits.any_ties else self.tied
        if alone + tied > self.limits.unmatched * (self.compared + alone):
            others = f", and {self.tied} are others of the same score" if self.tied else ""
            return (
                f"{self.missing} of the detector's detections are missing in the file, and {self.extra} are extra"
                f"{others}"
            )
        if self.off > self.limits.off * self.compared:
            return (
                f"{self.off} of {self.compared} detections are off by more than {self.limits.box:g} pixels or "
                f"{self.limits.score:g} in their score, by up to {self.box:.3g} pixels and {self.score:.2g}"
            )
        return None


def without_threshold(detector: Detector) -> Detector:
    """The detector with score threshold 0, PROBED_PER_LEVEL pairs of each level and room for all of them."""
    room = {"pre_nms_top_k": PROBED_PER_LEVEL, "max_detections": 5 * PROBED_PER_LEVEL}
    return detector.with_config(dataclasses.replace(detector.config, score_threshold=0.0, **room))


def without_nms(detector: Detector) -> Detector:
    """The detector with its candidates as detections, up to the 100,000 that there can be.

    These are more of each level than it has itself, which of equal scores might have chosen others.
    """
    top_k = max(CANDIDATES_PER_LEVEL, detector.config.pre_nms_top_k)
    everything = min(100_000, len(detector.levels.output["class_logits"]) * top_k)
    config = dataclasses.replace(detector.config, nms_iou=1.0, pre_nms_top_k=top_k, max_detections=everything)
    return detector.with_config(config)


def compare_file(
    name: str, limits: Limits, file: ExportedDetector, detector: Detector, pictures: Sequence[np.ndarray]
) -> Comparison:
    """The file beside the detector, on the same canvases."""
    result, prepared = Comparison(name, limits), [file.prepare(picture) for picture in pictures]
    size, unsuppressed = file.input_shape[0] or min(4, len(prepared)), without_nms(detector)

    def detect(detector: Detector, canvases: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        found = detector.detect_canvases(tf.cast(canvases, tf.float32), tf.ones_like(sizes), tf.constant(sizes))
        return {key: value.numpy() for key, value in found.items()}

    for start in range(0, len(prepared), size):
        part = [prepared[(start + row) % len(prepared)] for row in range(size)]
        canvases, sizes = np.stack([one.canvas for one in part]), np.stack([one.size for one in part])
        answer = file.run(canvases, sizes)
        expected = detect(detector, canvases, sizes)
        for row in range(min(size, len(prepared) - start)):

            def candidates(one=slice(row, row + 1), canvases=canvases, sizes=sizes):
                return _row(detect(unsuppressed, canvases[one], sizes[one]), 0)

            _compare(result, _row(expected, row), _row(answer, row), detector.config.score_threshold, candidates)
    return result


def compare_own(
    name: str,
    limits: Limits,
    file: ExportedDetector | SavedModelDetector,
    detector: Detector,
    pictures: Sequence[np.ndarray],
) -> Comparison:
    """The file beside the detector, each with its own canvas; boxes in the pictures' pixels."""
    result, unsuppressed = Comparison(name, limits), without_nms(detector)

    def detect(detector: Detector, index: int) -> dict[str, np.ndarray]:
        return _row({key: value.numpy() for key, value in detector([pictures[index]]).items()}, 0)

    for index, answer in file.detect_all(pictures):
        candidates = functools.partial(detect, unsuppressed, index)
        _compare(result, detect(detector, index), answer, detector.config.score_threshold, candidates)
    return result


def _row(answer: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """One picture's detections."""
    return {name: answer[name][index][: answer["num_detections"][index]] for name in ("boxes", "scores", "labels")}


def _compare(
    result: Comparison, ours: dict, theirs: dict, threshold: float, candidates: Callable[[], dict[str, np.ndarray]]
) -> None:
    """Adds one picture's detections to a comparison; `candidates` finds the detector's before NMS."""
    limits = result.limits
    distance = np.abs(ours["boxes"][:, None] - theirs["boxes"]).max(-1)
    difference = np.abs(ours["scores"][:, None] - theirs["scores"])
    pairs = _pairs(ours, theirs, distance, difference)
    result.compared += len(pairs)
    # A score at the threshold may be below it on the other side; INT8's half of the detections leaves room for that.
    margin = min(limits.score, threshold) if np.isfinite(limits.score) else 0.0
    alone = []
    for side, paired in ((ours, {i for i, _ in pairs}), (theirs, {j for _, j in pairs})):
        sure = np.flatnonzero(side["scores"] > threshold + margin)
        alone.append([index for index in sure if index not in paired])
    tied = [pair for pair in pairs if distance[pair] > limits.box and difference[pair] <= ROUNDING]
    many = np.isfinite(limits.score) and max(map(len, alone)) > limits.unmatched * len(pairs)
    if tied or many:
        others = candidates()
        tied = [pair for pair in tied if _is_among(theirs, pair[1], others, limits)]
        result.tied += len(tied)
        if many:
            counts = [len(indices) for indices in alone]
            alone = [
                [index for index in indices if not _has_rival(side, index, others, limits)]
                for side, indices in zip((ours, theirs), alone, strict=True)
            ]
            result.tied += max(count - len(indices) for count, indices in zip(counts, alone, strict=True))
    for pair in set(pairs) - set(tied):
        result.box, result.score = max(result.box, float(distance[pair])), max(result.score, float(difference[pair]))
        result.off += bool(distance[pair] > limits.box or difference[pair] > limits.score)
    result.missing += len(alone[0])
    result.extra += len(alone[1])


def _is_among(detections: dict, index: int, others: dict, limits: Limits) -> bool:
    """Whether one detection is among others, up to the limits."""
    box, score, label = (detections[name][index] for name in ("boxes", "scores", "labels"))
    near = np.abs(others["boxes"] - box).max(-1) <= limits.box
    return bool((near & (np.abs(others["scores"] - score) <= limits.score) & (others["labels"] == label)).any())


def _has_rival(detections: dict, index: int, others: dict, limits: Limits) -> bool:
    """Whether one is among others, and tied with one that it overlaps or with more than a level has room for."""
    if not _is_among(detections, index, others, limits):
        return False
    box, score, label = (detections[name][index] for name in ("boxes", "scores", "labels"))
    tied = np.abs(others["scores"] - score) <= TIE * score
    boxes = others["boxes"][tied & (others["labels"] == label) & (np.abs(others["boxes"] - box).max(-1) > limits.box)]
    return bool((overlap(box, boxes) > 0).any()) or int(tied.sum()) > PROBED_PER_LEVEL


def _pairs(ours: dict, theirs: dict, distance: np.ndarray, difference: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i, j) of one class whose boxes overlap by half or lie within a pixel, the most similar ones first."""
    near = (overlap(ours["boxes"][:, None], theirs["boxes"]) > 0.5) | (distance <= 1)
    rows, columns = np.nonzero(near & (ours["labels"][:, None] == theirs["labels"]))
    cost = distance[rows, columns] / LIMITS["float32"].box + difference[rows, columns] / LIMITS["float32"].score
    pairs: list[tuple[int, int]] = []
    free = np.ones(len(ours["boxes"]), bool), np.ones(len(theirs["boxes"]), bool)
    for index in np.argsort(cost, kind="stable"):
        i, j = int(rows[index]), int(columns[index])
        if free[0][i] and free[1][j]:
            free[0][i] = free[1][j] = False
            pairs.append((i, j))
    return pairs


@dataclasses.dataclass
class Report:
    """What a file was shown to do.

    Attributes:
        file: its name.
        precision: of its network.
        pictures: how many were compared, and where they come from.
        comparisons: by `compare_file` and `compare_own`.
        ap: COCO's AP in [0, 1] of "detector" and "file" on a validation split, or nothing.
        fault: why the file isn't equal, a sentence, or None.
    """

    file: str
    precision: str
    pictures: str
    comparisons: list[Comparison]
    ap: dict[str, float]
    fault: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain values; a limit that there isn't is None."""

        def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {name: None if value == np.inf else value for name, value in items}

        return dataclasses.asdict(self, dict_factory=plain)

    def table(self) -> str:
        """As text."""
        rows: list[tuple[str, ...]] = [("", "compared", "missing", "extra", "off", "tied", "box (px)", "score")]
        for one in self.comparisons:
            counts = map(str, (one.compared, one.missing, one.extra, one.off, one.tied))
            rows.append((one.name, *counts, f"{one.box:.2g}", f"{one.score:.2g}"))
        name, *others = ([cell.rjust(max(map(len, column))) for cell in column] for column in zip(*rows, strict=True))
        name = [cell.lstrip().ljust(len(cell)) for cell in name]
        lines = [f"{self.file}, {self.precision}, beside the detector on {self.pictures}:"]
        lines += ["  ".join(cells) for cells in zip(name, *others, strict=True)]
        lines += [f"{one.name}: {lack}." for one in self.comparisons[:2] if (lack := one.lack())]
        if any(one.missing or one.extra for one in self.comparisons[2:]):
            lines.append(
                "The last row is only reported: the file has one canvas (--fixed_shapes), the detector chooses its own."
            )
        if self.ap and self.ap["detector"] >= 0:  # -1 where the split has no objects
            ours, theirs = 100 * self.ap["detector"], 100 * self.ap["file"]
            lines.append(f"AP {ours:.1f} of the detector, {theirs:.1f} of the file: it costs {ours - theirs:.1f}.")
        return "\n".join(lines)


class DifferentAnswers(InputError):
    """A file whose answers aren't the detector's; `report` has the numbers."""

    def __init__(self, path: str | os.PathLike, report: Report):
        super().__init__(f"{os.fspath(path)} isn't written: {report.fault}.")
        self.report = report


def check(
    file: ExportedDetector | SavedModelDetector,
    probe: ExportedDetector | SavedModelDetector,
    detector: Detector,
    pictures: Sequence[np.ndarray],
    precision: str = "float32",
    origin: str = "",
    validation: Source | None = None,
) -> Report:
    """Runs a file and the detector that it was made from.

    Args:
        file: the file.
        probe: the same conversion of `without_threshold(detector)`.
        detector: computes in float32.
        pictures: uint8 RGB, of any sizes.
        precision: of the file, which says how far it may be off.
        origin: of the pictures, for the report.
        validation: a split to compare AP on.
    """
    limits = LIMITS[precision]
    # So many boxes overlap without a threshold that a few always do by just the limit of NMS.
    probing = dataclasses.replace(limits, off=max(limits.off, limits.unmatched), any_ties=True)
    if isinstance(file, SavedModelDetector) or isinstance(probe, SavedModelDetector):
        comparisons = [
            compare_own("same canvas", limits, file, detector, pictures),
            compare_own("same canvas, no threshold", probing, probe, without_threshold(detector), pictures),
        ]
    else:
        comparisons = [
            compare_file("same canvas", limits, file, detector, pictures),
            compare_file("same canvas, no threshold", probing, probe, without_threshold(detector), pictures),
            compare_own("each its own canvas", limits, file, detector, pictures),
        ]
    # A detector may find nothing in the pictures; without a threshold it can't.
    fault = comparisons[0].difference()
    if precision != "int8" or comparisons[0].lack():  # its low scores are another matter, unless there are no others
        fault = fault or comparisons[1].fault()
    ap = {}
    if validation:
        ap = {"detector": evaluate(detector, validation, progress=False)["AP"], "file": _ap(file, validation)}
    name = os.path.basename(file.path)
    return Report(name, precision, f"{len(pictures)} pictures{origin}", comparisons, ap, fault)


def _ap(file: ExportedDetector | SavedModelDetector, source: Source) -> float:
    ids = category_ids(file.label_map, source.label_map, source.name)
    known, records = set(source.label_map.ids), source.instances["images"]
    pictures = (to_image(encoded, index).numpy() for index, encoded in enumerate(source.encoded()))
    results = [
        row
        for index, detections in file.detect_all(pictures)
        for row in to_results(detections, records[index]["id"], ids)
        if row["category_id"] in known
    ]
    return analyse_results(source, results).metrics["AP"]
