"""What an evaluation looks like: precision against recall, objects by size, detections by score."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_tf.evaluation.coco import Scores
from retinanet_tf.visualize import new_figure, save_figure

_SHOWN_IOUS = (0, 5, 8)  # of 0.5, 0.55, … 0.95: 0.50, 0.75, 0.90
_AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}


def mean_precision(scores: Scores, iou_index: int) -> np.ndarray:
    """Precision `(101,)` at each recall, averaged over the categories that have objects; NaN if none has."""
    precision = scores.precision[iou_index]
    known = precision.max(axis=0) > -1
    return precision[:, known].mean(axis=1) if known.any() else np.full(len(scores.recalls), np.nan)


def precision_recall_plot(scores: Scores, path: str | os.PathLike) -> Path:
    """Precision over recall at three IoUs, mean over categories; the area under a curve is its AP."""
    figure = new_figure(5.2, 4.0)
    axes = figure.add_subplot()
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
    objects = np.sqrt([a["area"] for a in ground_truth["annotations"] if not a.get("iscrowd")])
    found = np.array([(np.sqrt(max(r["bbox"][2] * r["bbox"][3], 1e-6)), r["score"]) for r in results]).reshape(-1, 2)
    figure = new_figure(12.0, 3.4)
    sizes, confident, areas = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    together = np.concatenate([objects, found[:, 0]])
    top = max(64.0, float(together.max(initial=0.0)))
    bins = np.geomspace(4.0, top * 1.01, 25)
    for values, label in ((objects, f"{len(objects)} objects"), (found[:, 0], f"{len(found)} detections")):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            sizes.hist(np.clip(values, bins[0], None), bins, weights=weights, alpha=0.55, label=label)
    for limit in (32, 96):
        sizes.axvline(limit, color="grey", linestyle=":", linewidth=1)
    sizes.set(xscale="log", xlabel="√area, pixels", ylabel="share", title="size")
    sizes.legend(frameon=False, fontsize=9)
    confident.hist(found[:, 1], np.linspace(0, 1, 21), color="tab:orange", alpha=0.8)
    confident.set(xlabel="score", ylabel="detections", title="score", xlim=(0, 1))
    counts = {name: int(((objects**2 >= low) & (objects**2 < high)).sum()) for name, (low, high) in _AREAS.items()}
    heights = [max(0.0, 100 * scores.metrics[key]) for key in ("APs", "APm", "APl")]
    bars = areas.bar([f"{name}\n{count} objects" for name, count in counts.items()], heights, color="tab:blue")
    shown = zip(heights, counts.values(), strict=True)
    areas.bar_label(bars, [f"{height:.1f}" if count else "–" for height, count in shown])
    areas.set(ylabel="AP", title="AP by size", ylim=(0, max(100.0 if not any(heights) else 1.2 * max(heights), 1.0)))
    return save_figure(figure, path)
