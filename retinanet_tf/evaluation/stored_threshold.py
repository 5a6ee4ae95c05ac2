"""The least score with the best F1 that an evaluation of a model has left in the model's folder."""

import dataclasses
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from retinanet_tf.config.config import DetectConfig
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_json


def stored_threshold(model: str | os.PathLike, detector: Mapping[str, Any] | None = None) -> tuple[float, Path]:
    """The threshold of the newest metrics.json that `evaluate` wrote into a model's folder or a folder in it.

    Args:
        model: the folder.
        detector: its `describe()`, since scores are those of an evaluation with the same sizes, test-time augmentation
            and tiles; None takes any evaluation.

    Returns:
        The score and the path of its metrics.json.

    Raises:
        InputError: there is none, or the newest evaluation found no object.
    """
    folder, name = Path(model), os.fspath(model)
    if not folder.is_dir():
        raise InputError(f"min_score=auto looks for evaluations in the model's folder; {name} is none: give a number.")
    files = [*folder.glob("metrics.json"), *folder.glob("*/metrics.json")]
    contents = {}
    for path in files:
        with suppress(InputError):  # another program's
            contents[path] = read_json(path, "the metrics")
    evaluations = [path for path, content in contents.items() if isinstance(content, dict) and "threshold" in content]
    evaluations = [path for path in evaluations if contents[path].get("detector") != {}]  # of finished detections
    same = [path for path in evaluations if detector is None or _is_of(detector, contents[path].get("detector"))]
    if not same:
        other = f" with this detector's sizes, test-time augmentation and tiles ({len(evaluations)} with others)"
        raise InputError(
            f"min_score=auto finds no evaluation{other if evaluations else ''} in {name}; `retinanet evaluate "
            f"--model={name} --data=… --output={folder / 'val'}` writes one; or give a number."
        )
    newest = max(same, key=lambda path: path.stat().st_mtime)
    score = contents[newest]["threshold"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise InputError(
            f"min_score=auto: the evaluation {newest} has no best score, since it found no object; give a number."
        )
    return float(score), newest


def _is_of(detector: Mapping[str, Any], evaluated: Any) -> bool:
    """Whether an evaluation's detector, unknown in training's own metrics.json, has the same scores."""
    if not isinstance(evaluated, dict):
        return not any(name.startswith(("test_", "tile")) for name in detector)
    counts = {field.name for field in dataclasses.fields(DetectConfig)}
    return all(detector.get(name) == evaluated.get(name) for name in {*detector, *evaluated} - counts)
