"""Checkpoints of trained detectors: configuration, label map and weights of a run directory or of imported weights."""

import os
from pathlib import Path

import keras

from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet

WEIGHTS = "model.weights.h5"
SUFFIX = ".weights.h5"


def file_of(checkpoint: str | os.PathLike, name: str) -> Path:
    """The file `name` of a run directory, or of `X.weights.h5`, whose files are called `X.name`."""
    path = Path(checkpoint)
    if not path.name.endswith(SUFFIX):
        return path / name
    return path if name == WEIGHTS else path.with_name(f"{path.name.removesuffix(SUFFIX)}.{name}")


def save_weights(model: RetinaNet, path: Path) -> None:
    """Writes a model's weights; the file is whole or absent."""
    with files.written_aside(path) as aside:
        partial = f"{aside}{SUFFIX}"
        model.save_weights(partial)
        os.replace(partial, aside)


def read_json(path: Path) -> dict:
    """The content of a run's JSON file; InputError if it can't be read."""
    return files.read_json(path, "the file of the run")


def load_config(checkpoint: str | os.PathLike) -> Config:
    """The configuration of a run or of imported weights."""
    path = file_of(checkpoint, "run.json")
    if not path.exists():
        raise InputError(
            f"{path} doesn't exist: {checkpoint} is neither a training job's run_dir nor what import_weights wrote."
        )
    return Config.from_dict(read_json(path)["config"])


def import_kind(checkpoint: str | os.PathLike) -> str:
    """'backbone' or 'detector' for imported weights, '' for a training job's result."""
    return read_json(file_of(checkpoint, "run.json")).get("imported", {}).get("parts", "")


def load_model(checkpoint: str | os.PathLike) -> RetinaNet:
    """The network of a finished run or of imported weights.

    Raises:
        InputError: there is no run, or it isn't finished.
    """
    config, weights = load_config(checkpoint), file_of(checkpoint, WEIGHTS)
    if not weights.exists():
        raise InputError(f"{weights} is missing: the training in {checkpoint} hasn't finished; run its command again.")
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
        labels_json = path.parent / "labels.json"
        label_map = LabelMap.load(labels_json) if labels_json.exists() else None
        return Detector(keras.models.load_model(path, compile=False), label_map)
    config = load_config(path)
    if import_kind(path) == "backbone":
        raise InputError(f"{path} holds a backbone alone, which detects nothing; train with init_weights={path}.")
    return Detector.from_config(config, load_model(path), LabelMap.load(file_of(path, "labels.json")))
