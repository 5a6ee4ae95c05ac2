"""Arrays by our own names into a model, and another run's weights as a start."""

import dataclasses
import os

import keras
import numpy as np

from retinanet_tf.config.config import AnchorConfig, ModelConfig
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference import checkpoint
from retinanet_tf.models.heads import Subnet
from retinanet_tf.models.retinanet import RetinaNet

PREDICTOR = "class_subnet/predictor"
BACKBONE_LAYERS = ("stem", "stage")
"""How the names of the backbone's layers begin."""
_PARTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
_BACKBONE_FIELDS = ("backbone", "norm_epsilon", "stride_in", "channel_order", "pixel_mean", "pixel_std")
_DETECTOR_FIELDS = (*_BACKBONE_FIELDS, "p6_from", "fpn_channels", "subnet_depth", "subnet_channels", "subnet_norm")


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every tensor."""

    source: str
    matched: dict[str, str]
    """Ours → theirs."""
    unused: list[str]
    """Theirs that have no place here."""
    missing: list[str]
    """Ours that keep their initial values."""
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def parts(self) -> str:
        """'backbone' or 'detector'."""
        return "backbone" if self.missing else "detector"

    def to_json(self) -> dict:
        """Plain containers."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The report in a few lines."""
        lines = [f"{self.source}: {len(self.matched)} tensors matched"]
        for title, names in (("unused", self.unused), ("left at their initial values", self.missing)):
            if names:
                more = ", …" if len(names) > 6 else ""
                lines.append(f"  {len(names)} {title}: {', '.join(names[:6])}{more}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def variables(model: RetinaNet) -> dict:
    """Every weight of a model as {"layer/part": variable}, e.g. "stem_conv/kernel", "box_subnet/predictor/bias"."""
    found = {}
    for layer in model.layers:
        parts = [(layer.name, layer)]
        if isinstance(layer, Subnet):
            inner = (*layer.convs, *layer.norms, layer.predictor)
            parts = [(f"{layer.name}/{part.name}", part) for part in inner]
        for name, part in parts:
            for kind in _PARTS:
                if isinstance(part, keras.layers.Layer) and getattr(part, kind, None) is not None:
                    found[f"{name}/{kind}"] = getattr(part, kind)
    return found


def assign(model: RetinaNet, arrays: dict[str, np.ndarray], place: str, theirs: dict[str, str]) -> list[str]:
    """Puts arrays into the model's weights; all shapes are checked before the first is assigned.

    Args:
      model: the network.
      arrays: {"layer/part": array}.
      place: what an error calls the source.
      theirs: the arrays' names at the source, for errors.

    Returns:
      Names of weights that no array was for.

    Raises:
      InputError: a shape differs, or an array has no weight here; all three names are told.
    """
    ours = variables(model)
    for name, array in arrays.items():
        if name not in ours:
            raise InputError(f"{place}: {theirs.get(name, name)} is for {name}, which this network doesn't have.")
        if tuple(ours[name].shape) != array.shape:
            raise InputError(
                f"{place}: {theirs.get(name, name)} has shape {array.shape}, but {name} wants "
                f"{tuple(ours[name].shape)} (both in TensorFlow's order)."
            )
        if not np.isfinite(array).all():
            raise InputError(f"{place}: {theirs.get(name, name)} holds values that are not finite.")
    for name, array in arrays.items():
        ours[name].assign(array.astype(np.float32))
    return [name for name in ours if name not in arrays]


def check(network: ModelConfig, anchors: AnchorConfig, path: str | os.PathLike) -> None:
    """Raises `InputError` where the weights at `path` were made for another network than the configured one."""
    config = checkpoint.load_config(path)
    backbone_only = checkpoint.imported_parts(path) == "backbone"
    wanted, found = ({**vars(network), **vars(anchors)}, {**vars(config.model), **vars(config.anchors)})
    names = _BACKBONE_FIELDS if backbone_only else (*_DETECTOR_FIELDS, *vars(anchors))
    differing = [f"{name} ({wanted[name]} here, {found[name]} there)" for name in names if wanted[name] != found[name]]
    if differing:
        raise InputError(
            f"--init_weights={path} was made for another network: {', '.join(differing)}; add "
            f"--flagfile={checkpoint.part(path, 'flags.txt')} to the command."
        )


def initialize(model: RetinaNet, path: str | os.PathLike, label_map: LabelMap | None = None) -> Report:
    """Starts a model from an imported checkpoint or a finished run.

    Everything is taken over; of an ImageNet checkpoint the backbone alone. The last class convolution stays fresh
    where the categories differ, and the report says so.

    Args:
      model: the network to fill.
      path: what `import_weights` wrote, or a run directory.
      label_map: the categories the model is for; without it only their number is compared.

    Raises:
      InputError: the checkpoint was made for another network; each differing setting is named with both values.
    """
    check(model.config, model.anchors.config, path)
    backbone_only = checkpoint.imported_parts(path) == "backbone"
    arrays = {name: np.array(value) for name, value in variables(checkpoint.load_model(path)).items()}
    notes = []
    if backbone_only:
        arrays = {name: value for name, value in arrays.items() if name.startswith(BACKBONE_LAYERS)}
    else:
        before = LabelMap.load(checkpoint.part(path, "labels.json"))
        if model.config.num_classes != before.num_classes or (label_map is not None and label_map != before):
            arrays = {name: value for name, value in arrays.items() if not name.startswith(PREDICTOR)}
            notes.append(
                f"the last class convolution stays fresh: {before.num_classes} categories there, "
                f"{model.config.num_classes} here, not the same ones."
            )
    same = {name: name for name in arrays}
    missing = assign(model, arrays, str(path), same)
    return Report(str(path), same, [], missing, notes)
