"""Plots of an evaluation: curves, sizes and scores, confusion matrix, kinds of errors."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_tf.data.sources.coco import SIZE_BOUNDS
from retinanet_tf.evaluation.analysis import Analysis, percent, threshold_numbers
from retinanet_tf.evaluation.coco import Scores
from retinanet_tf.fonts import default_font, legible
from retinanet_tf.visualize import new_figure, save_figure

_NAMED_CURVES, _NUMBERED_CELLS, _NAMED_CELLS = 10, 20, 100  # most classes with a legend, with counts, with names
_SHOWN_IOUS = (0, 5, 8)  # of 0.5, 0.55, … 0.95: 0.50, 0.75, 0.90


def write_plots(analysis: Analysis, folder: Path) -> None:
    """Writes precision_recall.png, sizes_scores.png, classes.png, confusion_matrix.png and errors.png."""
    truth, scores = analysis.truth.instances, analysis.scores
    precision_recall_plot(scores, folder / "precision_recall.png")
    size_score_plot(truth, analysis.results, scores, folder / "sizes_scores.png")
    classes_plot(analysis, folder / "classes.png")
    confusion_plot(analysis, folder / "confusion_matrix.png")
    errors_plot(analysis, folder / "errors.png")


def classes_plot(analysis: Analysis, path: str | os.PathLike) -> Path:
    """Precision over recall and F1 over score at IoU 0.5 by class; names for the classes with most objects."""
    figure = new_figure(11.0, 4.2)
    by_recall, by_score = figure.subplots(1, 2)
    totals = analysis.matching.objects_per_class
    most = np.argsort(-totals, kind="stable")
    named = set(most[:_NAMED_CURVES].tolist())
    best_f1 = [threshold_numbers(best, total)[1] for best, total in zip(analysis.thresholds, totals, strict=True)]
    panels = (
        (by_recall, analysis.scores.recalls, analysis.precision, analysis.ap50, "AP50"),
        (by_score, analysis.levels, analysis.f1["classes"], best_f1, "F1"),
    )
    for axes, x, curves, numbers, what in panels:
        for index in most.tolist():
            if curves[index] is None:
                continue
            style: dict[str, Any] = {"color": "lightgrey", "linewidth": 0.8, "zorder": 1}
            if index in named:
                label = f"{what} {percent(numbers[index])} {_name(analysis, index)}"
                style = {"linewidth": 1.3, "label": label}
            axes.plot(x, curves[index], **style)
    by_recall.set(xlabel="recall", ylabel="precision", title="precision and recall by class, IoU 0.5")
    by_score.set(xlabel="least score", ylabel="F1", title="F1 by class, IoU 0.5")
    if analysis.f1["all"] is not None:
        label = f"F1 {percent(analysis.best.f1 if analysis.best else 0.0)} all"
        by_score.plot(analysis.levels, analysis.f1["all"], color="black", linewidth=2.2, label=label)
    if analysis.best:
        by_score.axvline(analysis.best.score, color="black", linestyle=":", label=f"score {analysis.best.score:.3f}")
    for axes in (by_recall, by_score):
        axes.set_ylim(0, 1.02)
        if axes.lines:
            axes.legend(edgecolor="none", framealpha=0.9, fontsize=8)
    return save_figure(figure, path)


def confusion_plot(analysis: Analysis, path: str | os.PathLike) -> Path:
    """The confusion matrix at the best score: shares of each row by colour, counts where there is room."""
    counts, number = analysis.confusion, len(analysis.names) + 1
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = min(3.2 + 0.42 * number, 18.0)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, shrink=0.7, label="share of the row")
    if number <= _NAMED_CELLS + 1:
        names = [*(_name(analysis, index) for index in range(number - 1)), "background"]
        axes.set_xticks(range(number), names, rotation=90, fontsize=9 if number <= 30 else 6)
        axes.set_yticks(range(number), names, fontsize=9 if number <= 30 else 6)
    if number <= _NUMBERED_CELLS + 1:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="predicted", ylabel="true", title=f"score ≥ {analysis.threshold:.3f}, IoU ≥ 0.5")
    return save_figure(figure, path, grid=False)


def errors_plot(analysis: Analysis, path: str | os.PathLike) -> Path:
    """What AP50 loses by each kind of errors, and how many there are."""
    errors = analysis.errors
    figure = new_figure(9.0, 3.0)
    by_cost, by_count = figure.subplots(1, 2, sharey=True)
    kinds = list(errors.counts)[::-1]
    costs = [errors.costs[kind] for kind in kinds]
    bars = by_cost.barh(kinds, [100 * (cost or 0.0) for cost in costs], color="tab:red")
    by_cost.bar_label(bars, [percent(cost) for cost in costs], padding=3)
    by_cost.set(xlabel="AP50 lost", title=f"AP50 {percent(errors.ap50)}")
    at_threshold = analysis.error_counts[::-1, analysis.level]
    bars = by_count.barh(kinds, at_threshold, color="tab:blue")
    by_count.bar_label(bars, [str(count) for count in at_threshold], padding=3)
    by_count.set(xlabel="errors", title=f"score ≥ {analysis.threshold:.3f}")
    for axes in (by_cost, by_count):
        axes.set_xlim(0, 1.15 * max(1.0, max(bar.get_width() for bar in axes.patches)))
    return save_figure(figure, path)


def _name(analysis: Analysis, index: int) -> str:
    """A class's name for a plot; its id where Matplotlib's font lacks a letter."""
    text, font = legible(analysis.names[index], 12, otherwise="")
    has_letters = text and font.path == default_font(12).path
    return text.replace("$", r"\$") if has_letters else str(analysis.truth.label_map.ids[index])


def mean_precision(scores: Scores, iou_index: int) -> np.ndarray:
    """Precision `(101,)` at each recall, averaged over the categories that have objects; NaN if none has."""
    precision = scores.precision[iou_index]
    determined = precision.max(axis=0) > -1
    return precision[:, determined].mean(axis=1) if determined.any() else np.full(len(scores.recalls), np.nan)


def precision_recall_plot(scores: Scores, path: str | os.PathLike) -> Path:
    """Precision over recall at three IoUs, mean over categories; the area under a curve is its AP."""
    figure = new_figure(5.2, 4.0)
    axes = figure.subplots()
    for index in _SHOWN_IOUS:
        curve = mean_precision(scores, index)
        ap = percent(None if np.isnan(curve).any() else curve.mean())
        axes.plot(scores.recalls, curve, label=f"IoU {0.5 + 0.05 * index:.2f}: AP {ap}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="precision and recall")
    axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)


def size_score_plot(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], scores: Scores, path: str | os.PathLike
) -> Path:
    """Three panels: objects and detections by size, detections by score, AP of COCO's three sizes."""
    areas = np.array([row["area"] for row in ground_truth["annotations"] if not row.get("iscrowd")])
    objects, detections = np.sqrt(areas), np.sqrt([max(row["bbox"][2] * row["bbox"][3], 1e-6) for row in results])
    figure = new_figure(12.0, 3.4)
    by_size, by_score, by_area = figure.subplots(1, 3)
    bins = np.geomspace(4.0, 1.01 * max(64.0, objects.max(initial=0.0), detections.max(initial=0.0)), 25)
    for values, label in ((objects, f"{len(objects)} objects"), (detections, f"{len(detections)} detections")):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            by_size.hist(np.clip(values, bins[0], None), bins, weights=weights, alpha=0.55, label=label)
    for limit in (32, 96):
        by_size.axvline(limit, color="grey", linestyle=":", linewidth=1)
    by_size.set(xscale="log", xlabel="√area, pixels", ylabel="share", title="size")
    if by_size.patches:
        by_size.legend(frameon=False, fontsize=9)
    by_score.hist([row["score"] for row in results], np.linspace(0, 1, 21), color="tab:orange", alpha=0.8)
    by_score.set(xlabel="score", ylabel="detections", title="score", xlim=(0, 1))
    counts = {name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in SIZE_BOUNDS.items()}
    heights = [max(0.0, 100 * scores.metrics[key]) for key in ("APs", "APm", "APl")]
    bars = by_area.bar([f"{name}\n{count} objects" for name, count in counts.items()], heights, color="tab:blue")
    texts = [f"{height:.1f}" if count else "–" for height, count in zip(heights, counts.values(), strict=True)]
    by_area.bar_label(bars, texts)
    by_area.set(ylabel="AP", title="AP by size", ylim=(0, max(100.0 if not any(heights) else 1.2 * max(heights), 1.0)))
    return save_figure(figure, path)
