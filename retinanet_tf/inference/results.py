"""Detections in COCO's results format; needs no TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from retinanet_tf.data.sources.coco import xyxy_to_coco

MIN_SCORE = 0.3
"""Detections below aren't drawn or printed, unless another score is given."""


def to_results(
    detections: dict[str, np.ndarray], image_id: int | str, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format: {"image_id", "category_id", "bbox": [x, y, w, h], "score"}.

    Boxes are rounded to thousandths of a pixel; scores are the shortest numbers that give the same float32.
    """
    boxes = np.round(xyxy_to_coco(np.asarray(detections["boxes"], np.float64)), 3).tolist()
    scores = [float(str(np.float32(score))) for score in detections["scores"]]
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes, scores, detections["labels"], strict=True)
    ]
