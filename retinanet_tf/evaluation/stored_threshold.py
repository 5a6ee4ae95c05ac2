"""The least score with the best F1 that an evaluation of a model has left in the model's folder."""

import math
import os
from contextlib import suppress
from pathlib import Path

from retinanet_tf.errors import InputError
from retinanet_tf.files import read_json


def stored_threshold(model: str | os.PathLike) -> tuple[float, Path]:
    """The threshold of the newest metrics.json that `evaluate` wrote into a model's folder or a folder in it.

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
    if not evaluations:
        raise InputError(
            f"min_score=auto finds no evaluation in {name}; `retinanet evaluate --model={name} --data=… "
            f"--output={folder / 'val'}` writes one; or give a number."
        )
    newest = max(evaluations, key=lambda path: path.stat().st_mtime)
    score = contents[newest]["threshold"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise InputError(
            f"min_score=auto: the evaluation {newest} has no best score, since it found no object; give a number."
        )
    return float(score), newest
