"""Soft-NMS and weighted box fusion beside NMS, for test-time augmentation and tiles: AP on a validation split.

    python -m experiments.merging --model=runs/cards --data='data/cards/val-*.tfrecord' --sizes=256,320,400 \
        --json=experiments/results/real/merging_cards.json

The library merges by NMS, and test-time augmentation also by box fusion; this compares them with soft-NMS and with
fusion of tiles. Every version of a picture (size, mirror
image, tile) is detected by itself; "NMS" here merges those detections as the others do, so that the rows differ by the
merging alone.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from experiments.bench.timing import JSON, hardware, stack
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.data.decoding import decode_image
from retinanet_tf.evaluation.coco import coco_scores
from retinanet_tf.evaluation.source import open_source
from retinanet_tf.inference.box_fusion import FUSION_IOU, average, overlap
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.results import to_results
from retinanet_tf.inference.tiles import TiledDetector, Window
from retinanet_tf.pretrained.by_name import load_detector

_MODEL = flags.DEFINE_string("model", None, "Run directory.", required=True)
_DATA = flags.DEFINE_string("data", None, "Pattern of the split's shards.", required=True)
_SIZES = flags.DEFINE_list("sizes", [], "Shorter sides; the mirror image is looked at in each too.")
_TILES = flags.DEFINE_integer("tiles", None, "Side of tiles, instead of sizes.")
_MAX_DETECTIONS = flags.DEFINE_integer("max_detections", 100, "Per image, that count.")


class Found(NamedTuple):
    """What is found on one version of a picture, in the picture's pixels."""

    boxes: np.ndarray  # (n, 4)
    scores: np.ndarray  # (n,)
    labels: np.ndarray  # (n,)
    window: Window  # the part of the picture that the version shows


def main() -> None:
    """Detects all versions once and scores each way of merging them."""
    detector, source = load_detector(_MODEL.value), open_source(_DATA.value)
    wide = detector.with_config(replace(detector.config, max_detections=max(300, _MAX_DETECTIONS.value)))
    results: dict[str, list[dict]] = {name: [] for name in MERGES}
    for record, encoded in zip(source.instances["images"], source.encoded(), strict=True):
        versions = list(_versions(wide, decode_image(tf.constant(encoded)).numpy()))
        for name, merge in MERGES.items():
            merged = merge(versions)
            best = np.argsort(-merged["scores"], kind="stable")[: _MAX_DETECTIONS.value]
            detections = {field: values[best] for field, values in merged.items()}
            results[name] += to_results(detections, record["id"], detector.label_map.ids)
    scores = {
        name: coco_scores(source.instances, rows, _MAX_DETECTIONS.value).metrics for name, rows in results.items()
    }
    for name, metrics in scores.items():
        shown = "  ".join(f"{key} {100 * metrics[key]:.1f}" for key in ("AP", "AP50", "AP75"))
        print(f"{name:28} {shown}")
    settings = {flag.name: flag.value for flag in (_MODEL, _DATA, _SIZES, _TILES, _MAX_DETECTIONS) if flag.value}
    if JSON.value:
        content = {"settings": settings, "stack": stack("tensorflow", "keras"), "hardware": hardware(), "rows": scores}
        files.write_json(JSON.value, json.loads(json.dumps(content)))


def _versions(detector: Detector, picture: np.ndarray) -> Iterator[Found]:
    """What is found on each version, the plain picture first."""
    height, width = picture.shape[:2]
    whole = Window(0, 0, width, height)
    if _TILES.value:
        for window in TiledDetector(detector, _TILES.value).windows(height, width)[::-1]:
            found = _found(detector, picture[window.y1 : window.y2, window.x1 : window.x2], window)
            yield found._replace(boxes=found.boxes + np.array([window.x1, window.y1] * 2, np.float32))
        return
    yield _found(detector, picture, whole)
    for size in map(int, _SIZES.value):
        longest = round(size * detector.max_size / detector.image_size)
        sized = Detector(detector.model, detector.label_map, detector.config, size, longest)
        if size != detector.image_size:
            yield _found(sized, picture, whole)
        mirrored = _found(sized, picture[:, ::-1], whole)
        x1, y1, x2, y2 = mirrored.boxes.T
        yield mirrored._replace(boxes=np.stack([width - x2, y1, width - x1, y2], axis=1))


def _found(detector: Detector, picture: np.ndarray, window: Window) -> Found:
    answer = detector(picture)
    count = int(answer["num_detections"][0])
    boxes, scores, labels = (answer[name][0, :count].numpy() for name in ("boxes", "scores", "labels"))
    return Found(boxes, scores, labels, window)


def _together(versions: Sequence[Found]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(values) for values in list(zip(*versions, strict=True))[:3])


def soft_nms(
    versions: Sequence[Found], weight: Callable[[np.ndarray], np.ndarray], lowest: float = 0.01
) -> dict[str, np.ndarray]:
    """Bodla et al. 2017, algorithm 1, by class: `weight` is the factor on a score by its IoU with a better box."""
    boxes, scores, labels = _together(versions)
    left, kept = np.ones(len(scores), bool), []
    while left.any():
        best = np.flatnonzero(left)[np.argmax(scores[left])]
        if scores[best] < lowest:
            break
        kept.append(best)
        left[best] = False
        others = left & (labels == labels[best])
        scores[others] *= weight(overlap(boxes[best], boxes[others]))
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


def box_fusion(versions: Sequence[Found], iou: float = FUSION_IOU) -> dict[str, np.ndarray]:
    """As `fuse`, but N counts the versions that show half of the fused box: with tiles most of them don't."""
    boxes, scores, labels = _together(versions)
    fused, means, counts, labels = average(boxes, scores, labels, iou)
    seen = np.zeros(len(fused))
    for one in versions:
        shown = np.minimum(fused[:, 2:], one.window[2:]) - np.maximum(fused[:, :2], one.window[:2])
        seen += np.maximum(shown, 0).prod(1) >= 0.5 * (fused[:, 2:] - fused[:, :2]).prod(1)
    seen = np.maximum(seen, 1)
    return {"boxes": fused, "scores": means * np.minimum(counts, seen) / seen, "labels": labels}


MERGES: dict[str, Callable[[Sequence[Found]], dict[str, np.ndarray]]] = {
    "one version": lambda versions: soft_nms(versions[:1], np.ones_like),
    "NMS, IoU 0.5": lambda versions: soft_nms(versions, lambda iou: (iou <= 0.5).astype(float)),
    "NMS, IoU 0.6": lambda versions: soft_nms(versions, lambda iou: (iou <= 0.6).astype(float)),
    "soft-NMS, linear from 0.5": lambda versions: soft_nms(versions, lambda iou: np.where(iou > 0.5, 1 - iou, 1.0)),
    "soft-NMS, linear from 0.3": lambda versions: soft_nms(versions, lambda iou: np.where(iou > 0.3, 1 - iou, 1.0)),
    "soft-NMS, Gaussian 0.5": lambda versions: soft_nms(versions, lambda iou: np.exp(-(iou**2) / 0.5)),
    "box fusion, IoU 0.55": box_fusion,
    "box fusion, IoU 0.65": lambda versions: box_fusion(versions, 0.65),
}


if __name__ == "__main__":
    run(main)
