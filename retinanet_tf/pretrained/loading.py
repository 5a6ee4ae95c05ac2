"""Loads weights by name into a model: imported checkpoints, or another run's weights to start from."""

import dataclasses
import os
from typing import Any

import numpy as np

from retinanet_tf.config.config import AnchorConfig, Config, ModelConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference import checkpoint
from retinanet_tf.models.network import variables
from retinanet_tf.models.retinanet import RetinaNet

PREDICTOR = "class_subnet/predictor"
BACKBONE_LAYERS = ("stem", "stage")
"""Prefixes of the backbone's layers."""
_BACKBONE_FIELDS = ("backbone", "norm_epsilon", "stride_in", "channel_order", "pixel_mean", "pixel_std")
_DETECTOR_FIELDS = (*_BACKBONE_FIELDS, "p6_from", "fpn_channels", "subnet_depth", "subnet_channels", "subnet_norm")


@dataclasses.dataclass(frozen=True)
class Report:
    """Every tensor of an import: matched, unused or missing."""

    source: str
    matched: dict[str, str]
    """Our weight → the source's tensor."""
    unused: list[str]
    """The source's tensors without a weight here."""
    missing: list[str]
    """Our weights that keep their initial values."""
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def parts(self) -> str:
        """'backbone' or 'detector'."""
        return "backbone" if self.missing else "detector"

    def to_json(self) -> dict:
        """As plain containers."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.matched)} tensors matched"]
        for title, names in (("unused", self.unused), ("left at their initial values", self.missing)):
            if names:
                more = ", …" if len(names) > 6 else ""
                lines.append(f"  {len(names)} {title}: {', '.join(names[:6])}{more}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def assign(model: RetinaNet, arrays: dict[str, np.ndarray], file: str, sources: dict[str, str]) -> list[str]:
    """Assigns arrays to a model's weights; all are checked before the first is assigned.

    Args:
        model: the network.
        arrays: {"layer/weight": array}.
        file: the arrays' origin, for errors.
        sources: the arrays' names in the file, for errors.

    Returns:
        Names of weights without an array.

    Raises:
        InputError: a shape differs, a value isn't finite, or the network has no such weight.
    """
    weights = variables(model)
    for name, array in arrays.items():
        source = f"{file}: {sources.get(name, name)}"
        if name not in weights:
            raise InputError(f"{source} is for {name}, which this network doesn't have.")
        if tuple(weights[name].shape) != array.shape:
            raise InputError(
                f"{source} has shape {array.shape}, but {name} wants {tuple(weights[name].shape)} (both in "
                "TensorFlow's order)."
            )
        if not np.isfinite(array).all():
            raise InputError(f"{source} holds values that are not finite.")
    for name, array in arrays.items():
        weights[name].assign(array.astype(np.float32))
    return [name for name in weights if name not in arrays]


def settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that go with weights to start from, by field: of a backbone, its own and its input's.

    Of a detector those of network, anchors, assignment and losses, but for the number of classes and weight decay,
    which belongs to the optimizer; where a preset goes with the weights, it also has the normalisation's training.
    """
    return settings_of(checkpoint.load_config(path), checkpoint.imported(path)["parts"], preset(path))


def settings_of(config: Config, kind: str, preset: str) -> dict[str, Any]:
    """`settings` of weights with a configuration, of a kind as `checkpoint.imported` names it."""
    if kind == "backbone":
        return {name: getattr(config.model, name) for name in _BACKBONE_FIELDS}
    sections = (config.model, config.anchors, config.assign, config.loss)
    others = {"num_classes", "weight_decay", *(("norm",) if preset else ())}
    return {name: value for section in sections for name, value in vars(section).items() if name not in others}


def preset(path: str | os.PathLike) -> str:
    """The name of the preset that weights were trained with, or '' if none is known."""
    name = checkpoint.imported(path).get("preset", "")
    return name if name in presets else ""


def check(network: ModelConfig, anchors: AnchorConfig, path: str | os.PathLike) -> None:
    """Raises InputError if the weights at `path` are of another network than the configured one."""
    config = checkpoint.load_config(path)
    backbone_only = checkpoint.imported(path)["parts"] == "backbone"
    wanted, stored = ({**vars(network), **vars(anchors)}, {**vars(config.model), **vars(config.anchors)})
    names = _BACKBONE_FIELDS if backbone_only else (*_DETECTOR_FIELDS, *vars(anchors))
    differing = [
        f"{name} ({wanted[name]} here, {stored[name]} there)" for name in names if wanted[name] != stored[name]
    ]
    if differing:
        raise InputError(
            f"init_weights={path} was made for another network: {', '.join(differing)}; set the fields of "
            f"{checkpoint.file_of(path, 'flags.txt')} (flagfile)."
        )


def initialize(model: RetinaNet, path: str | os.PathLike, label_map: LabelMap | None = None) -> Report:
    """`by_name.initialize` from a folder."""
    check(model.config, model.anchors.config, path)
    backbone_only = checkpoint.imported(path)["parts"] == "backbone"
    notes = []
    if os.path.isdir(path) and not checkpoint.file_of(path, checkpoint.WEIGHTS).exists():
        source, step = checkpoint.load_unfinished(path)
        notes.append(f"the run isn't finished; these are the weights of its checkpoint {step}.")
    else:
        source = checkpoint.load_model(path)
    arrays = {name: np.array(value) for name, value in variables(source).items()}
    if backbone_only:
        arrays = {name: value for name, value in arrays.items() if name.startswith(BACKBONE_LAYERS)}
    else:
        before = LabelMap.load(checkpoint.file_of(path, "labels.json"))
        if model.config.num_classes != before.num_classes or (label_map is not None and label_map != before):
            arrays = {name: value for name, value in arrays.items() if not name.startswith(PREDICTOR)}
            notes.append(
                f"the last class convolution keeps its initial values: its {before.num_classes} categories are not the "
                f"{model.config.num_classes} here."
            )
    names = {name: name for name in arrays}
    return Report(str(path), names, [], assign(model, arrays, str(path), names), notes)
