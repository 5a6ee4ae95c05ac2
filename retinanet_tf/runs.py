"""The run directory: what a training job leaves behind, and how others read it.

flags.txt      every setting as a flagfile: `python -m experiments.train --flagfile=DIR/flags.txt` repeats the run
run.json       the configuration, data, versions, seed, git commit
labels.json    the dataset's category ids and names
checkpoints/   the newest training states, by step
log.csv        losses, learning rate, images a second, AP by epoch (an epoch ends at every checkpoint)
tensorboard/   the same and pictures, for TensorBoard
best.weights.h5    (with best.json, best.run.json, best.labels.json) the weights of the best AP while training
model.weights.h5   the trained weights, written at the end
metrics.json   the twelve COCO numbers at the end, where there is validation data
training.png   the curves of log.csv
lock           held by the job at work
"""

import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.config import Config
from retinanet_tf.data import files
from retinanet_tf.data.labels import LabelMap
from retinanet_tf.detector import Detector
from retinanet_tf.errors import InputError
from retinanet_tf.model import RetinaNet
from retinanet_tf.version import __version__

WEIGHTS = "model.weights.h5"
LOG = "log.csv"
BEST_METRICS = "best.json"
SUFFIX = ".weights.h5"


def part(checkpoint: str | os.PathLike, name: str) -> Path:
    """The file `name` of a run directory, or of an imported `X.weights.h5`, whose files are called `X.name`."""
    path = Path(checkpoint)
    if not path.name.endswith(SUFFIX):
        return path / name
    return path if name == WEIGHTS else path.with_name(f"{path.name.removesuffix(SUFFIX)}.{name}")


def provenance() -> dict[str, str]:
    """What made a result: versions, hardware, git commit ('unknown' outside a checkout)."""
    here = Path(__file__).resolve().parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "retinanet_tf": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "commit": git.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {len(tf.config.list_physical_devices('GPU'))} GPUs",
    }


def flagfile(config: Config, **paths: str) -> str:
    """Every setting as the lines of an absl flagfile."""
    lines = [f"--{name}={value}\n" for name, value in paths.items() if value]
    return "".join(lines + flag_lines(config.flat()))


def flag_lines(settings: dict) -> list[str]:
    """Settings as lines of a flagfile."""
    lines = []
    for name, value in settings.items():
        text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"--{name}={text.lower() if isinstance(value, bool) else text}\n")
    return lines


def save_weights(model: RetinaNet, path: Path) -> None:
    """Writes a model's weights; the file is whole or absent."""
    with files.written_aside(path) as aside:
        partial = f"{aside}{SUFFIX}"
        model.save_weights(partial)
        os.replace(partial, aside)


def save_best(model: RetinaNet, run_dir: Path, metrics: dict) -> None:
    """Keeps weights beside the last ones, with all that `load_detector(run_dir / "best.weights.h5")` needs."""
    save_weights(model, run_dir / f"best{SUFFIX}")
    for name in ("run.json", "labels.json"):
        files.write_text(run_dir / f"best.{name}", (run_dir / name).read_text())
    files.write_json(run_dir / BEST_METRICS, metrics)


def trim_log(run_dir: Path, step: int) -> None:
    """Removes the rows of log.csv after `step`, which are about to be made again."""
    path = run_dir / LOG
    if not path.exists():
        return
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row.get("step") and float(row["step"]) <= step]
    if not kept:
        path.unlink()
    elif len(kept) < len(rows):
        with files.written_aside(path) as aside, open(aside, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(kept[0]))
            writer.writeheader()
            writer.writerows(kept)


def start(
    run_dir: str | os.PathLike,
    config: Config,
    label_map: LabelMap,
    *,
    data: str,
    validation: str,
    init_weights: str = "",
) -> bool:
    """Prepares a run directory, or finds the same job in it.

    Returns:
      Whether the job was started before.

    Raises:
      InputError: another job's directory (the differing fields are named), or one that can't be written.
    """
    run_dir = Path(run_dir)
    paths = {"data": data, "validation": validation, "init_weights": init_weights}
    record = {"config": config.to_dict(), **paths, "labels": label_map.to_json()}
    # Through JSON and back, tuples are lists as in the file.
    record = json.loads(json.dumps(record))
    existing = run_dir / "run.json"
    if existing.exists():
        before = {"init_weights": "", **_read_json(existing)}
        # A field that is newer than the run had its default then.
        before["config"] = json.loads(json.dumps(Config.from_dict(before["config"]).to_dict()))
        differing = sorted(_differences(before, record))
        if differing:
            raise InputError(
                f"run_dir={run_dir} holds a job that differs in {', '.join(differing)}; choose another run_dir, or the "
                f"settings of {run_dir / 'flags.txt'}."
            )
        return True
    files.make_folder(run_dir, "run_dir")
    files.write_text(run_dir / "flags.txt", flagfile(config, **paths, run_dir=str(run_dir)))
    label_map.save(run_dir / "labels.json")
    files.write_json(existing, {**record, "made_by": {**provenance(), "command": " ".join(sys.argv)}})
    return False


def _differences(before: dict, after: dict):
    for key, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            yield from _differences(before[key], value)
        elif before.get(key) != value:
            yield key


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as JSON ({error}); is this the folder of a training run?") from error


def load_config(run_dir: str | os.PathLike) -> Config:
    """The configuration of a run or of imported weights."""
    path = part(run_dir, "run.json")
    if not path.exists():
        raise InputError(
            f"{path} doesn't exist: {run_dir} is neither a training job's run_dir nor what import_weights wrote."
        )
    return Config.from_dict(_read_json(path)["config"])


def imported_parts(checkpoint: str | os.PathLike) -> str:
    """'backbone' or 'detector' for what import_weights wrote, '' for a training job's result."""
    return _read_json(part(checkpoint, "run.json")).get("imported", {}).get("parts", "")


def load_model(run_dir: str | os.PathLike) -> RetinaNet:
    """The network of a finished run or of imported weights.

    Raises:
      InputError: there is no run, or it isn't finished.
    """
    config = load_config(run_dir)
    weights = part(run_dir, WEIGHTS)
    if not weights.exists():
        raise InputError(f"{weights} is missing: the training in {run_dir} hasn't finished; run its command again.")
    model = RetinaNet.from_config(config)
    model.load_weights(str(weights))
    return model


def load_detector(checkpoint: str | os.PathLike) -> Detector:
    """A detector from a run directory, from imported weights (a folder or `.weights.h5`), or from a `.keras` file.

    A `.keras` file has the dataset's labels.json beside it.

    Raises:
      InputError: there is none of these, or imported weights are a backbone alone.
    """
    path = Path(checkpoint)
    if path.suffix == ".keras":
        if not path.exists():
            raise InputError(f"{path} does not exist; give a run directory or a .keras file.")
        model = keras.models.load_model(path, compile=False)
        labels = path.parent / "labels.json"
        return Detector(model, LabelMap.load(labels) if labels.exists() else None)
    config = load_config(path)
    if imported_parts(path) == "backbone":
        raise InputError(f"{path} holds a backbone alone, which detects nothing; train with --init_weights={path}.")
    return Detector.from_config(config, load_model(path), LabelMap.load(part(path, "labels.json")))
