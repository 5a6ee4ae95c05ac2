"""Identifies a checkpoint's architecture and maps its tensors to our layers."""

import dataclasses
import itertools
import re
from typing import Any

import numpy as np

from retinanet_tf.errors import InputError
from retinanet_tf.models.resnet import VARIANTS, Variant
from retinanet_tf.pretrained.loading import BACKBONE_LAYERS, PREDICTOR
from retinanet_tf.pretrained.names import SOURCES, Names

_HEADS = (
    *(f"fpn_{part}{level}/kernel" for part in ("lateral", "output") for level in (3, 4, 5)),
    *("fpn_p6/kernel", "fpn_p7/kernel"),
    *(f"{subnet}_subnet/{layer}/kernel" for subnet in ("class", "box") for layer in ("conv0", "predictor")),
)
_HEAD_NAMES = ("backbone.fpn", "fpn_", "head.", "retnet_")
_TRAINING_ONLY = re.compile(
    r"_momentum$|num_batches_tracked$|^fc1000|^pred_[wb]$|^lr$|^(fc|probs|predictions)\b|^pixel_|cell_anchors"
)
"""Tensors of optimizers and classifiers, which no detector uses."""


@dataclasses.dataclass
class Architecture:
    """A checkpoint whose tensors have a source's names. What it is, is read off their shapes.

    Attributes:
        arrays: {"layer/weight": array} by our names, kernels `(rows, columns, in / groups, out)`.
        sources: the tensors' names by ours.
        backbone: a name of VARIANTS.
        detects: whether it has pyramid and subnets.
        notes: sentences for the report.
    """

    arrays: dict[str, np.ndarray]
    sources: dict[str, str]
    backbone: str
    detects: bool
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def anchors_per_cell(self) -> int:
        """A, from the box layer's 4·A outputs."""
        return self.arrays["box_subnet/predictor/kernel"].shape[3] // 4

    @property
    def class_columns(self) -> int:
        """Outputs of the class layer per anchor."""
        return self.arrays[f"{PREDICTOR}/kernel"].shape[3] // max(1, self.anchors_per_cell)

    def head_settings(self) -> dict[str, Any]:
        """The fields of a `ModelConfig` that pyramid and subnets determine."""
        channels = self.arrays["fpn_output3/kernel"].shape[3]
        return {
            "subnet_depth": _count(self.arrays, "class_subnet/conv{}/kernel"),
            "subnet_norm": "group" if "class_subnet/norm0_0/gamma" in self.arrays else "none",
            "fpn_channels": channels,
            "subnet_channels": self.arrays[f"{PREDICTOR}/kernel"].shape[2],
            "p6_from": "p5" if self.arrays["fpn_p6/kernel"].shape[2] == channels else "c5",
        }

    def fold(self, source: str, epsilon: float, file: str) -> set[str]:
        """Puts the backbone's biases into means, and statistics that are folded into scale and shift beside them.

        Returns:
            Names of the tensors of those biases.
        """
        folded = set()
        for key in [key for key in self.arrays if key.startswith(BACKBONE_LAYERS) and key.endswith("_conv/bias")]:
            bias, name = self.arrays.pop(key), self.sources.pop(key)
            mean_key = key.replace("_conv/bias", "_norm/moving_mean")
            if source != "keras":
                if np.any(bias):
                    self.notes.append(f"{name} isn't zero; it is left out, as its own program does.")
            elif mean_key in self.arrays:
                if self.arrays[mean_key].shape != bias.shape:
                    raise InputError(f"{file}: {name} has shape {bias.shape}, its mean {self.arrays[mean_key].shape}.")
                # norm(conv + bias) = norm with a mean that is smaller by the bias.
                self.arrays[mean_key] = self.arrays[mean_key] - bias
                folded.add(name)
        if "moving_mean" not in SOURCES[source].norm.values():
            for key in [key for key in self.arrays if key.endswith("_norm/gamma")]:
                # Variance + epsilon = 1.
                for weight, value in (("moving_mean", 0.0), ("moving_variance", 1.0 - epsilon)):
                    other = key.replace("gamma", weight)
                    self.arrays[other] = np.full(self.arrays[key].size, value, np.float32)
                    self.sources[other] = self.sources[key]
        return folded


def note_strange(unused: list[str], source: str) -> list[str]:
    """A sentence on unused tensors that aren't of training alone, if there are any."""
    biases = tuple(suffix for suffix, weight in SOURCES[source].conv.items() if weight == "bias")
    strange = [name for name in unused if not _TRAINING_ONLY.search(name) and not name.endswith(biases)]
    names = ", ".join(strange[:3])
    return [f"{len(strange)} tensors match no layer of this network, e.g. {names}."] if strange else []


def without_prefix(tensors: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The tensors without the name of the attribute that holds the detector in a module of somebody's own."""
    first = SOURCES[source].example
    prefixes = {name.removesuffix(first) for name in tensors if name.endswith(f".{first}")}
    if first in tensors or len(prefixes) != 1:
        return tensors
    (prefix,) = prefixes
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return bare if len(bare) == len(tensors) else tensors


def identify(tensors: dict[str, np.ndarray], source: str, file: str) -> Architecture:
    """Identifies the architecture of a source's checkpoint.

    Raises:
        InputError: the names or shapes aren't the source's; another source that would match is named.
    """
    architecture = _match(tensors, SOURCES[source])
    if architecture is not None:
        return architecture
    others = [name for name, names in SOURCES.items() if _match(tensors, names)]
    hint = f"its names are those of source={others[0]}" if others else f"it has {', '.join(sorted(tensors)[:3])}, …"
    wanted = SOURCES[source].example
    raise InputError(f"{file} is not a checkpoint of {source}: its names don't fit (wanted e.g. {wanted}); {hint}.")


def _match(tensors: dict[str, np.ndarray], names: Names) -> Architecture | None:
    arrays, sources = {}, {}
    for name, tensor in tensors.items():
        ours = names.ours(name)
        is_kernel = ours is not None and ours.endswith("/kernel")
        if ours and not (is_kernel and tensor.ndim != 4):
            arrays[ours], sources[ours] = tensor.transpose(names.kernel_axes) if is_kernel else tensor, name
    backbone, detects = _variant(arrays), all(key in arrays for key in _HEADS)
    # Some heads and not all of them: another program's, or a damaged file.
    if backbone is None or not detects and any(name.startswith(_HEAD_NAMES) for name in tensors):
        return None
    return Architecture(arrays, sources, backbone, detects)


def _variant(arrays: dict[str, np.ndarray]) -> str | None:
    """The name in VARIANTS of the backbone with the arrays' shapes, None if there is none."""
    keys = ("stem_conv/kernel", "stage2_block0_1_conv/kernel", "stage2_block0_2_conv/kernel")
    if not all(key in arrays for key in keys):
        return None
    stem, first, second = (arrays[key] for key in keys)
    two, three, four, five = (_count(arrays, f"stage{stage}_block{{}}_1_conv/kernel") for stage in (2, 3, 4, 5))
    groups = max(1, first.shape[3] // max(1, second.shape[2]))
    bottleneck = "stage2_block0_3_conv/kernel" in arrays
    shape = Variant((two, three, four, five), bottleneck, groups, second.shape[3] // groups, stem.shape[3])
    return next((name for name, variant in VARIANTS.items() if variant == shape), None)


def _count(arrays: dict[str, np.ndarray], template: str) -> int:
    return next(count for count in itertools.count() if template.format(count) not in arrays)
