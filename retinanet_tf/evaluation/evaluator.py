"""Evaluate: a detector's COCO numbers on a split, with detections and plots, as a function and as a callback."""

import math
import os
from pathlib import Path
from typing import Any

import keras
from tqdm import tqdm

from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.coco import METRICS, coco_scores
from retinanet_tf.evaluation.plots import precision_recall_plot, size_score_plot
from retinanet_tf.evaluation.source import GroundTruth, Source, category_ids, read_ground_truth, read_source
from retinanet_tf.files import make_folder, write_json
from retinanet_tf.inference.detector import DetectorLike, detect_all, to_results
from retinanet_tf.provenance import provenance


def evaluate(
    detector: DetectorLike,
    source: str | os.PathLike | Source,
    images: str | os.PathLike | None = None,
    *,
    batch_size: int = 8,
    output: str | os.PathLike | None = None,
    submission: str | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """The twelve COCO numbers of a detector on a split.

    Args:
        detector: a detector whose label map is the dataset's.
        source: pattern of shards, or a COCO instances file (then with `images`), or what `read_source` returned.
        images: folder of the images of a COCO file.
        batch_size: images that go through the network together (those with equal canvases), on every replica of the
            strategy in whose scope this is called.
        output: folder that gets metrics.json (the numbers, AP by category, thresholds, versions), detections.json
            (COCO's results format, the dataset's own ids), precision_recall.png and sizes_scores.png.
        submission: a name, with which detections.json is also written as COCO's test-dev server wants it.
        progress: whether to show a progress bar.

    Returns:
        {"AP": …, "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}; −1 where the
        ground truth doesn't determine a number: all of them where the source has no annotations, as COCO's test splits.

    Raises:
        InputError: unreadable input, an output folder that can't be written, another dataset's label map.
    """
    if output is not None:
        make_folder(output)
    source = read_source(source, images)
    ids = category_ids(detector.label_map, source.label_map, source.name)
    records = source.instances["images"]
    results: list[dict[str, Any]] = []
    stream = detect_all(detector, source.encoded(), batch_size)
    bar = tqdm(stream, total=len(records), desc="evaluate", unit="image", disable=not progress, mininterval=1)
    for index, detections in bar:
        results += to_results(detections, records[index]["id"], ids)
    return _score(source, results, output, submission, {"detector": detector.describe()})


def score_results(
    source: str | os.PathLike | GroundTruth,
    results: list[dict[str, Any]],
    *,
    output: str | os.PathLike | None = None,
    submission: str | None = None,
) -> dict[str, float]:
    """Like `evaluate`, but of finished detections in COCO's results format."""
    if output is not None:
        make_folder(output)
    truth = source if isinstance(source, GroundTruth) else read_ground_truth(source)
    return _score(truth, results, output, submission, {})


def _score(
    truth: GroundTruth, results: list, output: str | os.PathLike | None, submission: str | None, more: dict
) -> dict[str, float]:
    scores = coco_scores(truth.instances, results)
    if output is None:
        return scores.metrics
    folder, names = Path(output), dict(zip(truth.label_map.ids, truth.label_map.names, strict=True))
    write_json(folder / "detections.json", results)
    if submission:
        write_json(folder / f"detections_test-dev2017_{submission}_results.json", results)
    precision_recall_plot(scores, folder / "precision_recall.png")
    size_score_plot(truth.instances, results, scores, folder / "sizes_scores.png")
    content = {
        **scores.metrics,
        "per_category": {names[category]: value for category, value in scores.per_category.items()},
        "images": len(truth.instances["images"]),
        "objects": len(truth.instances["annotations"]),
        "detections": len(results),
        "source": truth.name,
        **more,
        "made_by": provenance(),
    }
    write_json(folder / "metrics.json", content)
    return scores.metrics


def report(metrics: dict[str, float]) -> str:
    """The twelve numbers as lines of text, in per cent as the paper has them; — where undetermined."""
    shown = {name: "—" if value < 0 else f"{100 * value:.1f}" for name, value in metrics.items()}
    lines = (METRICS[:6], METRICS[6:])
    return "\n".join("   ".join(f"{name:>5} {shown[name]:>5}" for name in line) for line in lines)


class CocoEvaluation(keras.callbacks.Callback):
    """Evaluates while training and puts the numbers into the logs as val_AP, val_AP50, ….

    Put it before callbacks that read them (ModelCheckpoint, CSVLogger, EarlyStopping; with mode="max"). Epochs
    without an evaluation have NaN, so that the logs have the same keys in every epoch.

    Args:
        detector: on the model that is trained.
        source: as in `evaluate`.
        images: folder of the images of a COCO file.
        every: epochs between evaluations; the last epoch has one too.
        metrics: the numbers for the logs.
        **options: further arguments of `evaluate`.
    """

    def __init__(
        self,
        detector: DetectorLike,
        source: str | os.PathLike | Source,
        images: str | os.PathLike | None = None,
        every: int = 1,
        metrics: tuple[str, ...] = ("AP", "AP50", "AP75"),
        **options: Any,
    ):
        super().__init__()
        unknown = [name for name in metrics if name not in METRICS]
        if unknown or every < 1:
            raise InputError(f"{unknown[0]!r} is not a COCO number." if unknown else f"every={every} must be above 0.")
        self.detector, self.every, self.names, self.options = detector, every, metrics, options
        self.source = read_source(source, images)
        self.history: dict[int, dict[str, float]] = {}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        values = dict.fromkeys(self.names, math.nan)
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.params.get("epochs"):
            values = evaluate(self.detector, self.source, **{"progress": False, **self.options})
            self.history[epoch] = values
            shown = "  ".join(f"{name} {values[name]:.3f}" for name in self.names)
            print(f"epoch {epoch + 1}: {shown}")
        if logs is not None:
            logs.update({f"val_{name}": values[name] for name in self.names})
