"""The run directory: what a training job leaves behind, and how others read it.

flags.txt      every setting as a flagfile: `python -m experiments.train --flagfile=DIR/flags.txt` repeats the run
run.json       the configuration, data, versions, seed, git commit
labels.json    the dataset's category ids and names
checkpoints/   the newest training states
log.csv        losses by epoch
model.weights.h5   the trained weights, written at the end
metrics.json   the twelve COCO numbers, where there is validation data
training.png   the curves of log.csv
"""

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
    lines = [f"--{name}={value}" for name, value in paths.items() if value]
    for name, value in config.flat().items():
        text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"--{name}={text.lower() if isinstance(value, bool) else text}")
    return "\n".join(lines) + "\n"


def start(run_dir: str | os.PathLike, config: Config, label_map: LabelMap, *, data: str, validation: str) -> bool:
    """Prepares a run directory, or finds the same job in it.

    Returns:
      Whether the job was started before.

    Raises:
      InputError: another job's directory (the differing fields are named), or one that can't be written.
    """
    run_dir = Path(run_dir)
    record = {"config": config.to_dict(), "data": data, "validation": validation, "labels": label_map.to_json()}
    # Through JSON and back, tuples are lists as in the file.
    record = json.loads(json.dumps(record))
    existing = run_dir / "run.json"
    if existing.exists():
        before = _read_json(existing)
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
    files.write_text(run_dir / "flags.txt", flagfile(config, data=data, validation=validation, run_dir=str(run_dir)))
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
    """The configuration of a run."""
    path = Path(run_dir) / "run.json"
    if not path.exists():
        raise InputError(f"{run_dir} holds no run.json; give the run_dir of a training job.")
    return Config.from_dict(_read_json(path)["config"])


def load_model(run_dir: str | os.PathLike) -> RetinaNet:
    """The trained network of a finished run.

    Raises:
      InputError: there is no run, or it isn't finished.
    """
    run_dir = Path(run_dir)
    config = load_config(run_dir)
    weights = run_dir / WEIGHTS
    if not weights.exists():
        raise InputError(f"{weights} is missing: the training in {run_dir} hasn't finished; run its command again.")
    model = RetinaNet.from_config(config)
    model.load_weights(str(weights))
    return model


def load_detector(checkpoint: str | os.PathLike) -> Detector:
    """A detector from a run directory, or from a `.keras` file with the dataset's labels.json beside it."""
    path = Path(checkpoint)
    if path.suffix == ".keras":
        if not path.exists():
            raise InputError(f"{path} does not exist; give a run directory or a .keras file.")
        model = keras.models.load_model(path, compile=False)
        labels = path.parent / "labels.json"
        return Detector(model, LabelMap.load(labels) if labels.exists() else None)
    config = load_config(path)
    return Detector.from_config(config, load_model(path), LabelMap.load(path / "labels.json"))
