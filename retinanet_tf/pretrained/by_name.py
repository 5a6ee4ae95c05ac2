"""Published names in place of paths: whatever takes a run's folder takes the name of a published model."""

import difflib
import os
from pathlib import Path

from retinanet_tf.config.config import Config
from retinanet_tf.config.presets import presets
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference import checkpoint
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.pretrained import importing, loading
from retinanet_tf.pretrained.download import install
from retinanet_tf.pretrained.loading import Report
from retinanet_tf.pretrained.zoo import ZOO, find


def resolve(model: str | os.PathLike) -> Path:
    """The path of a model: what exists is a path; a published name gives its folder, downloaded at the first call.

    Args:
        model: a run's folder, imported weights, a .keras file, or a name that `retinanet models` lists.

    Raises:
        InputError: nothing is there and it is nearly a published name, which is suggested; or the download fails.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model={model!r} must be a path, or a name that `retinanet models` lists.")
    text = os.fspath(model)
    families = {name.partition("/")[0] for name in ZOO}
    is_path = text.partition("/")[0] not in families and not difflib.get_close_matches(text, ZOO, n=1, cutoff=0.8)
    return Path(text) if os.path.lexists(text) or is_path else install(find(text))


def load_detector(model: str | os.PathLike) -> Detector:
    """A detector by its published name, from a run directory, from imported weights, or from a `.keras` file.

    >>> import retinanet_tf as rn
    >>> detector = rn.load_detector("torchvision/retinanet_resnet50_fpn_v2")  # doctest: +SKIP
    >>> detector("photo.jpg")["scores"]  # doctest: +SKIP

    Imported weights are a folder or `.weights.h5`. A `.keras` file has the dataset's labels.json beside it; only
    RetinaNet's own settings and weights are read from it. A published model is downloaded once (`retinanet models`
    lists the names).

    Raises:
        InputError: there is none of these, or it can't be read or downloaded, or it is a backbone alone.
    """
    return checkpoint.load_detector(resolve(model))


def initialize(model: RetinaNet, path: str | os.PathLike, label_map: LabelMap | None = None) -> Report:
    """Initializes a model from an imported checkpoint or a run; one that isn't finished gives its newest checkpoint.

    An ImageNet checkpoint fills only the backbone. If the categories differ, the last class convolution keeps its
    initial values and the report says so.

    Args:
        model: the network to fill.
        path: a published name, a folder written by `import_weights`, or a run directory.
        label_map: the model's categories; without it only their number is compared.

    Raises:
        InputError: the checkpoint was made for another network, each differing setting named with both values; or it
            can't be read or downloaded.
    """
    return loading.initialize(model, resolve(path), label_map)


def keep_backbone(model: str | os.PathLike, output: str | os.PathLike) -> Report:
    """Writes the backbone of a detector, to start jobs with another pyramid, other subnets or classes.

    Args:
        model: a finished job's directory, a published name, or imported weights.
        output: as of `import_weights`; the result works as an ImageNet backbone does.

    Raises:
        InputError: there is no finished run, or it can't be read or downloaded.
    """
    return importing.keep_backbone(resolve(model), output)


def starting_config(model: str | os.PathLike, preset: str = "") -> Config:
    """The configuration of a training that starts from weights (`init_weights`): a preset, with what goes with them.

    >>> import retinanet_tf as rn
    >>> name = "torchvision/retinanet_resnet50_fpn_v2"
    >>> config = rn.pretrained.starting_config(name).replace(num_classes=3, steps=2000)  # doctest: +SKIP
    >>> rn.train(config, data="data/train-*.tfrecord", run_dir="runs/mine", init_weights=name)  # doctest: +SKIP

    Args:
        model: a published name, imported weights, or another run's folder.
        preset: by default the one that the weights were trained with where it is known, else 'paper'.

    Raises:
        InputError: there is no such preset, or the weights can't be read or downloaded.
    """
    weights = resolve(model)
    name = preset or loading.preset(weights) or "paper"
    if name not in presets:
        raise InputError(f"preset={name} is not one of {', '.join(presets)}.")
    return presets[name].replace(**loading.settings(weights))
