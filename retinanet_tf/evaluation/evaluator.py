"""Evaluation of a detector as COCO does it: detections over a whole split, the twelve numbers, files, a callback."""

import math
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from retinanet_tf.data.sources.coco import xyxy_to_coco
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.coco import METRICS, Scores, coco_metrics, coco_scores
from retinanet_tf.evaluation.plots import precision_recall_plot, size_score_plot
from retinanet_tf.evaluation.source import Source, category_ids, read_source
from retinanet_tf.files import make_folder, write_json
from retinanet_tf.inference.detector import Detector, settings, to_image
from retinanet_tf.provenance import provenance

__all__ = ["METRICS", "CocoEvaluation", "coco_metrics", "detect_all", "evaluate", "score_results", "to_results"]


def evaluate(
    detector: Detector,
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
      detector: what is evaluated; its label map must be the dataset's.
      source: pattern of shards, or a COCO instances file (then with `images`), or what `read_source` returned.
      images: folder of the images of a COCO file.
      batch_size: images that go through the network together (those with equal canvases), on every replica of the
        strategy in whose scope this is called.
      output: folder that gets metrics.json (the numbers, AP by category, settings, versions), detections.json
        (COCO's result format, the dataset's own ids), precision_recall.png and sizes_scores.png.
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
    source = _open(source, images)
    ids = category_ids(detector.label_map, source.labels, source.name)
    results: list[dict[str, Any]] = []
    assert source.encoded is not None, "_open has seen to it"
    stream = detect_all(detector, source.encoded(), batch_size)
    total = len(source.ground_truth["images"])
    for index, found in tqdm(stream, total=total, desc="evaluate", unit="image", disable=not progress, mininterval=1):
        results.extend(to_results(found, source.ground_truth["images"][index]["id"], ids))
    scores = coco_scores(source.ground_truth, results)
    if output is not None:
        _write(Path(output), scores, results, source, submission, {"detector": settings(detector)})
    return scores.metrics


def score_results(
    source: str | os.PathLike | Source,
    results: list[dict[str, Any]],
    *,
    output: str | os.PathLike | None = None,
    submission: str | None = None,
) -> dict[str, float]:
    """Like `evaluate`, of detections in COCO's result format that are there already."""
    if output is not None:
        make_folder(output)
    if not isinstance(source, Source):
        source = read_source(source)
    scores = coco_scores(source.ground_truth, results)
    if output is not None:
        _write(Path(output), scores, results, source, submission, {})
    return scores.metrics


def detect_all(
    detector: Detector, images: Iterable[bytes | np.ndarray], batch_size: int = 8
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Runs a detector over many images (encoded, or arrays) of any sizes; decoding goes on beside the network.

    Images with equal canvases are batched however far apart they come, so the answers' order isn't the input's.
    In the scope of a strategy every replica gets `batch_size` of them.

    Yields:
      (index of the image, {"boxes" (n, 4), "scores" (n,), "labels" (n,)} in its own pixels), each image once.

    Raises:
      InputError: an image that doesn't decode, named by its index.
    """
    batch_size *= tf.distribute.get_strategy().num_replicas_in_sync
    waiting: dict[tuple, list[tuple[int, tuple]]] = {}
    for index, prepared in enumerate(_prepared(detector, images)):
        group = waiting.setdefault(tuple(prepared[0].shape), [])
        group.append((index, prepared))
        if len(group) == batch_size:
            yield from _detect(detector, waiting.pop(tuple(prepared[0].shape)))
    for group in waiting.values():
        yield from _detect(detector, group)


def to_results(found: dict[str, np.ndarray], image_id: int, ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """One image's detections in COCO's result format.

    Boxes are rounded to thousandths of a pixel; scores are the shortest numbers that give the same float32.
    """
    boxes = np.round(xyxy_to_coco(np.asarray(found["boxes"], np.float64)), 3).tolist()
    return [
        {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": float(str(np.float32(score)))}
        for box, score, label in zip(boxes, found["scores"], found["labels"], strict=True)
    ]


def _open(source: str | os.PathLike | Source, images: str | os.PathLike | None) -> Source:
    source = source if isinstance(source, Source) else read_source(source, images)
    if source.encoded is None:
        raise InputError(f"{source.name} needs the folder of its images: give images (--images=FOLDER).")
    return source


def _detect(detector: Detector, group: list[tuple[int, tuple]]):
    answer = {name: value.numpy() for name, value in detector.detect_prepared([image for _, image in group]).items()}
    for position, (index, _) in enumerate(group):
        count = int(answer["num_detections"][position])
        yield index, {name: answer[name][position, :count] for name in ("boxes", "scores", "labels")}


def _prepared(detector: Detector, images: Iterable[bytes | np.ndarray]) -> Iterator[tuple]:
    """Decoded, resized, padded images in order, made by a thread while the network works on earlier ones."""
    ready: queue.Queue = queue.Queue(maxsize=16)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for index, image in enumerate(images):
                put(detector.prepare(to_image(image, index)))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the reader, whatever it is
            put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        worker.join()


def _write(output: Path, scores: Scores, results: list, source: Source, submission: str | None, more: dict) -> None:
    names = dict(zip(source.labels.ids, source.labels.names, strict=True))
    content = {
        **scores.metrics,
        "per_category": {names[category]: value for category, value in scores.per_category.items()},
        "images": len(source.ground_truth["images"]),
        "objects": len(source.ground_truth["annotations"]),
        "detections": len(results),
        "source": source.name,
        **more,
        "made_by": provenance(),
    }
    write_json(output / "detections.json", results)
    if submission:
        write_json(output / f"detections_test-dev2017_{submission}_results.json", results)
    precision_recall_plot(scores, output / "precision_recall.png")
    size_score_plot(source.ground_truth, results, scores, output / "sizes_scores.png")
    write_json(output / "metrics.json", content)


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
      source: as `evaluate` has it.
      images: folder of the images of a COCO file.
      every: evaluate after every so many epochs, and after the last one.
      metrics: which numbers go into the logs.
      **options: further arguments of `evaluate`.
    """

    def __init__(
        self,
        detector: Detector,
        source: str | os.PathLike,
        images: str | os.PathLike | None = None,
        every: int = 1,
        metrics: tuple[str, ...] = ("AP", "AP50", "AP75"),
        **options: Any,
    ):
        super().__init__()
        unknown = [name for name in metrics if name not in METRICS]
        if unknown or every < 1:
            raise InputError(f"{unknown[0]!r} is not a COCO number." if unknown else "every must be at least 1.")
        self.detector, self.every, self.names, self.options = detector, every, metrics, options
        self.source = _open(source, images)
        self.history: dict[int, dict[str, float]] = {}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Evaluates if it is the epoch's turn."""
        values = dict.fromkeys(self.names, math.nan)
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.params.get("epochs"):
            values = evaluate(self.detector, self.source, **{"progress": False, **self.options})
            self.history[epoch] = values
            shown = "  ".join(f"{name} {values[name]:.3f}" for name in self.names)
            print(f"epoch {epoch + 1}: {shown}")
        if logs is not None:
            logs.update({f"val_{name}": values[name] for name in self.names})
