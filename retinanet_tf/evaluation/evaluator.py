"""Evaluate: a detector's COCO numbers on a split, with detections and plots, as a function and as a callback."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
from absl import logging
from tqdm import tqdm

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError, check_count
from retinanet_tf.evaluation.analysis import Analysis, percent
from retinanet_tf.evaluation.coco import LEAST_MAX_DETECTIONS, MAX_DETECTIONS, METRICS, check_limit, coco_scores
from retinanet_tf.evaluation.page import html_page
from retinanet_tf.evaluation.plots import write_plots
from retinanet_tf.evaluation.source import GroundTruth, Source, category_ids, open_source, read_ground_truth
from retinanet_tf.files import make_folder, output_folder, write_json, write_text
from retinanet_tf.inference.detector import DetectorLike, detect_all
from retinanet_tf.inference.results import to_results
from retinanet_tf.inference.tiles import TiledDetector
from retinanet_tf.provenance import provenance


def evaluate(
    detector: DetectorLike,
    source: str | os.PathLike | Source,
    images: str | os.PathLike | None = None,
    *,
    batch_size: int = 8,
    max_detections: int | None = None,
    output: str | os.PathLike | None = None,
    submission: str | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """The twelve COCO numbers of a detector on a split.

    Args:
        detector: a detector whose label map is the dataset's; either may lack categories that the other one has.
        source: pattern of shards, or a COCO instances file (then with `images`), or what
            `evaluation.source.open_source` returned.
        images: folder of the images of a COCO file.
        batch_size: images that go through the network together (those with equal canvases), on every replica of the
            strategy in whose scope this is called.
        max_detections: see `coco_scores`; by default COCO's 100, with a `TiledDetector` as many as it finds. A detector
            finds at most its own `config.max_detections` per image.
        output: folder that gets metrics.json (the numbers, all of `Analysis.to_json`, settings, versions),
            detections.json (COCO's results format, the dataset's own ids and categories), evaluation.html (all of it
            with pictures) and plots.
        submission: a name, with which detections.json is also written as COCO's test-dev server wants it.
        progress: whether to show a progress bar.

    Returns:
        {"AP": …, "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}; −1 where the
        ground truth doesn't determine a number: all of them where the source has no annotations, as COCO's test splits.

    Raises:
        InputError: no detector, unreadable input, an output folder that can't be written, another dataset's label map.
    """
    options: dict[str, Any] = {"max_detections": max_detections, "output": output, "submission": submission}
    return analyse(detector, source, images, batch_size=batch_size, progress=progress, **options).metrics


def analyse(
    detector: DetectorLike,
    source: str | os.PathLike | Source,
    images: str | os.PathLike | None = None,
    *,
    batch_size: int = 8,
    max_detections: int | None = None,
    output: str | os.PathLike | None = None,
    submission: str | None = None,
    progress: bool = True,
) -> Analysis:
    """Like `evaluate`, but returns what explains the numbers too; it is computed when it is asked for."""
    if not (hasattr(detector, "label_map") and hasattr(detector, "config")):
        raise InputError(f"detector={detector!r} must be a Detector, as load_detector returns it.")
    check_count("batch_size", batch_size)
    limit, tiled = detector.config.max_detections, isinstance(detector, TiledDetector)
    if max_detections is None:
        max_detections = max(limit, LEAST_MAX_DETECTIONS) if tiled else MAX_DETECTIONS
    _check(max_detections, submission)
    source = open_source(source, images)
    ids = category_ids(detector.label_map, source.label_map, source.name)
    known = set(source.label_map.ids)
    source = _with_categories(source, detector.label_map)
    with output_folder(output) if output is not None else nullcontext():
        records = source.instances["images"]
        results: list[dict[str, Any]] = []
        stream = detect_all(detector, source.encoded(), batch_size)
        bar = tqdm(stream, total=len(records), desc="evaluate", unit="image", disable=not progress, mininterval=1)
        for index, detections in bar:
            rows = to_results(detections, records[index]["id"], ids)
            results += [row for row in rows if row["category_id"] in known]
        most = max(Counter(row["image_id"] for row in source.instances["annotations"]).values(), default=0)
        if most > limit:
            logging.warning(
                "%s has up to %d objects per image, of which the detector finds %d at most: raise its max_detections.",
                *(source.name, most, limit),
            )
        full = sum(count >= limit for count in Counter(row["image_id"] for row in results).values())
        if tiled and full:
            logging.warning(
                "%d of %d images reach the %d detections of all tiles together: raise the detector's max_detections.",
                *(full, len(records), limit),
            )
        return _score(source, results, output, submission, max_detections, {"detector": detector.describe()})


def analyse_results(
    source: str | os.PathLike | GroundTruth,
    results: list[dict[str, Any]],
    images: str | os.PathLike | None = None,
    *,
    max_detections: int = MAX_DETECTIONS,
    output: str | os.PathLike | None = None,
    submission: str | None = None,
) -> Analysis:
    """Like `analyse`, but of finished detections in COCO's results format; `images` are for the page's pictures."""
    _check(max_detections, submission)
    results = list(results)
    if isinstance(source, GroundTruth):
        truth = source
    elif output is None or (images is None and os.fspath(source).lower().endswith(".json")):
        truth = read_ground_truth(source)
    else:
        truth = open_source(source, images)
    return _score(truth, results, output, submission, max_detections, {"detector": {}})


def _check(max_detections: int, submission: str | None) -> None:
    check_limit(max_detections)
    if submission and os.path.basename(submission) != submission:
        raise InputError(f"submission={submission} is part of a file's name; it can't hold slashes.")


def _with_categories(source: Source, label_map: LabelMap) -> Source:
    """The split with the detector's categories beside its own: their AP is undetermined."""
    names = {row["id"]: row["name"] for row in (*label_map.to_json(), *source.label_map.to_json())}
    union = LabelMap(list(names), list(names.values()))
    return dataclasses.replace(source, instances={**source.instances, "categories": union.to_json()}, label_map=union)


def _remarks(truth: GroundTruth, results: list[dict[str, Any]], max_detections: int) -> Iterator[str]:
    """What the numbers don't say by themselves."""
    images, objects = truth.instances["images"], truth.instances["annotations"]
    counts = Counter((row["image_id"], row["category_id"]) for row in objects if not row["iscrowd"])
    if not objects:
        alarmed, sure = {row["image_id"] for row in results}, sum(row["score"] >= 0.5 for row in results)
        yield (
            f"{truth.name} has no object, so that its AP is undetermined. If its images are background alone, all "
            f"{len(results)} detections are false alarms: on {len(alarmed)} of {len(images)} images, {sure} of them "
            "with a score of 0.5 or more."
        )
    elif not counts:
        yield f"all {len(objects)} objects of {truth.name} are crowds (iscrowd): none counts, and AP is undetermined."
    full = {image for (image, _), count in counts.items() if count > max_detections}
    if full:
        yield (
            f"{len(full)} of {len(images)} images have more than {max_detections} objects of a category (up to "
            f"{max(counts.values())}), and detections of it beyond the best {max_detections} per image don't count; "
            "raise max_detections to count them."
        )


def _score(
    truth: GroundTruth,
    results: list[dict[str, Any]],
    output: str | os.PathLike | None,
    submission: str | None,
    max_detections: int,
    more: dict[str, Any],
) -> Analysis:
    scores = coco_scores(truth.instances, results, max_detections)
    for remark in _remarks(truth, results, max_detections):
        logging.warning("%s", remark)
    analysis = Analysis(truth, results, scores, max_detections)
    if output is None:
        return analysis
    make_folder(output)
    folder = Path(output)
    write_json(folder / "detections.json", results)
    if submission:
        write_json(folder / f"detections_test-dev2017_{submission}_results.json", results)
    content = {
        **analysis.to_json(),
        "images": len(truth.instances["images"]),
        "objects": int(analysis.matching.objects_per_class.sum()),
        "crowds": int(analysis.matching.ignored_objects.sum()),
        "detections": len(results),
        "max_detections": max_detections,
        "source": truth.name,
        **more,
        "made_by": provenance(),
    }
    write_json(folder / "metrics.json", content)
    write_plots(analysis, folder)
    write_text(folder / "evaluation.html", html_page(analysis, truth.encoded if isinstance(truth, Source) else None))
    return analysis


def report(metrics: dict[str, float]) -> str:
    """The twelve numbers as lines of text, in per cent as the paper has them; — where undetermined."""
    shown = {name: percent(None if value < 0 else value) for name, value in metrics.items()}
    lines = (METRICS[:6], METRICS[6:])
    return "\n".join("   ".join(f"{name:>5} {shown[name]:>5}" for name in line) for line in lines)


class CocoEvaluation(keras.callbacks.Callback):
    """Evaluates while training and puts the numbers into the logs as val_AP, val_AP50, ….

    Put it before callbacks that read them (ModelCheckpoint, EarlyStopping; with mode="max"). Epochs without an
    evaluation have no such keys: EarlyStopping's patience counts evaluations, and CSVLogger, which takes its columns
    from the first epoch, has them with every=1 alone.

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
        self.source = open_source(source, images)
        self.history: dict[int, dict[str, float]] = {}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % self.every and epoch + 1 != self.params.get("epochs"):
            return
        values = evaluate(self.detector, self.source, **{"progress": False, **self.options})
        self.history[epoch] = values
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in self.names)
        print(f"epoch {epoch + 1}: {shown}")
        if logs is not None:
            logs.update({f"val_{name}": values[name] for name in self.names})
