"""Checkpoints of trained detectors: configuration, label map and weights of a run directory or of imported weights."""

import io
import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf import files
from retinanet_tf.compat import tensorflow_variables
from retinanet_tf.config.config import Config
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError, refusing
from retinanet_tf.hdf5 import opened
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.network import variables
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
    """Writes a model's weights; the file is whole or absent. InputError if the disk hasn't the space."""
    check_space(model, path)  # first: HDF5 crashes on a disk that becomes full
    with files.written_aside(path) as aside:
        partial = f"{aside}{SUFFIX}"
        try:
            model.save_weights(partial)
            os.replace(partial, aside)
        finally:
            Path(partial).unlink(missing_ok=True)


def check_space(model: RetinaNet, path: Path) -> None:
    """Raises InputError if the disk hasn't the space for a model's weights."""
    needed, free = 4 * model.count_params(), shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(f"{path} can't be written: it needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free.")


def read_json(path: Path) -> dict:
    """The content of a run's JSON file; InputError if it can't be read or isn't an object."""
    content = files.read_json(path, "the record of a run or of imported weights,")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; is this the folder of a training run?")
    return content


def load_config(checkpoint: str | os.PathLike) -> Config:
    """The configuration of a run or of imported weights."""
    path = file_of(checkpoint, "run.json")
    if os.fspath(checkpoint).lower().endswith((".onnx", ".tflite")) or newest_version(checkpoint) is not None:
        raise InputError(
            f"{checkpoint} is an export, which `retinanet predict` can run; for anything else give the run or the "
            "weights that it was made from. `retinanet export --validation=SHARDS` says the AP of an export."
        )
    if not os.path.lexists(path):
        folder = Path(checkpoint).parent
        if Path(checkpoint).name == WEIGHTS and (folder / "run.json").exists():
            raise InputError(f"{checkpoint} is one file of a run; give its folder, {folder}.")
        raise InputError(
            f"{path} doesn't exist, or its folder can't be read: {checkpoint} is neither a training job's run_dir nor "
            "what `retinanet import-weights` wrote, nor a name that `retinanet models` lists."
        )
    record = read_json(path)
    with refusing(f"{path} doesn't describe a detector"):
        return Config.from_dict(record["config"])


def newest_version(path: str | os.PathLike) -> str | None:
    """A SavedModel's folder: `path` itself, or the highest number in a folder of versions; None if there is none.

    A run's folder is none, though its exports may lie in it.
    """
    folder = os.fspath(path)
    if os.path.lexists(os.path.join(folder, "run.json")):
        return None
    numbers = [int(name) for name in os.listdir(folder) if name.isdecimal()] if os.path.isdir(folder) else []
    for candidate in (folder, *(os.path.join(folder, str(number)) for number in sorted(numbers, reverse=True))):
        if os.path.isfile(os.path.join(candidate, "saved_model.pb")):
            return candidate
    return None


def imported(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """What imported weights say of themselves; "parts" is 'backbone' or 'detector', '' for a training job's result."""
    path = file_of(checkpoint, "run.json")
    record = read_json(path).get("imported", {"parts": ""})
    if not isinstance(record, dict) or record.get("parts") not in ("", "backbone", "detector"):
        raise InputError(f"{path} doesn't say what was imported; import the weights again.")
    return record


def load_model(checkpoint: str | os.PathLike) -> RetinaNet:
    """The network of a finished run or of imported weights.

    Raises:
        InputError: there is no run, or it isn't finished, or its files are damaged.
    """
    config, weights = load_config(checkpoint), file_of(checkpoint, WEIGHTS)
    if not weights.exists():
        raise InputError(f"{weights} is missing: the training in {checkpoint} hasn't finished; run its command again.")
    check_size({**vars(config.model), **vars(config.anchors)}, weights)
    with refusing(f"{file_of(checkpoint, 'run.json')} describes no network that can be built"):
        model = RetinaNet.from_config(config)
    load_weights(model, weights)
    return model


def load_unfinished(run_dir: str | os.PathLike) -> tuple[RetinaNet, str]:
    """The network of an unfinished run with the weights of its newest checkpoint, whose name is the second result.

    The checkpoint may be of Keras 2 or 3, whichever runs.

    Raises:
        InputError: there is no checkpoint, or it can't be read.
    """
    folder, model = Path(run_dir) / "checkpoints", RetinaNet.from_config(load_config(run_dir))
    link, steps = link_without_wildcards(folder), saved_steps(folder)
    if not steps:
        raise InputError(f"{run_dir} holds neither weights nor checkpoints: run its training first.")
    newest = f"step-{steps[-1]}"
    with refusing(f"the checkpoints in {folder} can't be read"):
        path = os.path.join(link.name, "checkpoints", newest) if link else str(folder / newest)
        restored = tf.train.Checkpoint(weights=named_weights(model)).restore(path)
        restored.expect_partial().assert_existing_objects_matched()
    return model, newest


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints `FOLDER/step-N`, rising.

    Of the files themselves: TensorFlow's list of them, `FOLDER/checkpoint`, may be lost or damaged.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for match in (re.fullmatch(r"step-(\d+)\.index", name) for name in names) if match)


def named_weights(model: keras.Model) -> dict[str, tf.Variable]:
    """The variables of a checkpoint of a model's weights, by names that Keras 2 and 3 share."""
    named = variables(model)
    return dict(zip(named, tensorflow_variables(named.values()), strict=True))


def link_without_wildcards(folder: Path) -> tempfile.TemporaryDirectory | None:
    """A temporary folder with the link "checkpoints" to `folder`, if TensorFlow takes its name for a pattern.

    TensorFlow would not find the checkpoints in "run [1]", and would remove those of other folders for "run*".

    Raises:
        InputError: the system allows no links.
    """
    if not re.search(r"[\[\]*?\\]", str(folder)):
        return None
    files.make_folder(folder, "run_dir")
    link = tempfile.TemporaryDirectory()
    try:
        os.symlink(folder.resolve(), os.path.join(link.name, "checkpoints"), target_is_directory=True)
    except OSError as error:
        raise InputError(
            f"TensorFlow takes {folder} for a pattern, because of [ ] * ? or \\ in it, and no link to it can be made "
            f"({error.strerror}); choose another run_dir."
        ) from None
    return link


def check_size(settings: Mapping[str, Any], weights: Path) -> None:
    """Raises InputError, before anything is allocated, if weights are smaller than the network of the settings.

    Args:
        settings: the fields of a `ModelConfig` and an `AnchorConfig`.
        weights: the file.
    """
    depth, width, channels = (settings[name] for name in ("subnet_depth", "subnet_channels", "fpn_channels"))
    anchors = len(settings["anchor_scales"]) * len(settings["anchor_ratios"])
    subnets = 2 * (channels * width + (depth - 1) * width**2) if depth else 0
    predictors = (width if depth else channels) * anchors * (settings["num_classes"] + 4)
    # Kernels of 3x3 in float32; the backbone comes on top.
    smallest = 4 * 9 * (3 * channels**2 + subnets + predictors)
    if smallest > weights.stat().st_size:
        raise InputError(
            f"{weights} has {weights.stat().st_size} bytes, but the network that is described beside it at least "
            f"{smallest}: it isn't whole, or of another network; copy it again."
        )


def load_weights(model: RetinaNet, path: Path) -> None:
    """Fills a model from a `.weights.h5` file; InputError if it is damaged, another model's, or lacks a weight."""
    with opened(path):
        pass
    # Keras leaves some weights that a file lacks as they are, with a warning.
    model.set_weights([np.full(value.shape, np.nan, np.float32) for value in model.weights])
    with refusing(f"{path} doesn't hold the weights of the network that is described beside it"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_weights(str(path))
        if not all(np.isfinite(value).all() for value in model.get_weights()):
            raise InputError("weights are missing or not finite")


def load_detector(checkpoint: str | os.PathLike) -> Detector:
    """`pretrained.by_name.load_detector` of a path; Keras' own loader would build whatever classes a file names."""
    path = Path(checkpoint)
    if path.suffix == ".keras":
        model = _load_keras_file(path)
        labels_json = path.parent / "labels.json"
        return Detector(model, LabelMap.load(labels_json) if labels_json.exists() else None)
    config = load_config(path)
    if imported(path)["parts"] == "backbone":
        raise InputError(f"{path} holds a backbone alone, which detects nothing; train with init_weights={path}.")
    return Detector.from_config(config, load_model(path), LabelMap.load(file_of(path, "labels.json")))


def _load_keras_file(path: Path) -> RetinaNet:
    content = files.read_bytes(path, "the .keras file")
    with (
        refusing(f"{path} is no .keras file of a RetinaNet"),
        zipfile.ZipFile(io.BytesIO(content)) as archive,
        tempfile.TemporaryDirectory() as folder,
    ):
        if sum(entry.file_size for entry in archive.infolist()) > 20 * len(content):
            raise InputError("it unpacks to more than 20 times its size")
        described = json.loads(archive.read("config.json"))
        if described["class_name"] != "RetinaNet":
            raise InputError(f"it holds a model of class {described['class_name']}")
        settings, weights = described["config"], Path(archive.extract(WEIGHTS, folder))
        settings["precision"] = "float32"  # as every detector computes
        check_size({**settings, **settings["anchors"]}, weights)
        model = RetinaNet.from_config(settings)
        load_weights(model, weights)
        return model
