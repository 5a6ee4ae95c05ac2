"""Plots of an evaluation: precision against recall, objects by size, detections by score."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_tf.data.sources.coco import SIZE_BOUNDS
from retinanet_tf.evaluation.coco import Scores
from retinanet_tf.visualize import new_figure, save_figure

_SHOWN_IOUS = (0, 5, 8)  # of 0.5, 0.55, … 0.95: 0.50, 0.75, 0.90


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
        axes.plot(scores.recalls, curve, label=f"IoU {0.5 + 0.05 * index:.2f}: AP {100 * curve.mean():.1f}")
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
