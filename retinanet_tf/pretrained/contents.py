"""What a checkpoint's tensors are: which backbone, which heads, and each as an array of our layer."""

import dataclasses
import itertools
import re

import numpy as np

from retinanet_tf.config.config import Config
from retinanet_tf.errors import InputError
from retinanet_tf.models.resnet import VARIANTS, Variant
from retinanet_tf.pretrained.names import (
    KERAS,
    SOURCES,
    Names,
    backbone_layers,
    pyramid_layers,
    subnet_layers,
)

_KNOWN_UNUSED = re.compile(
    r"_momentum$|num_batches_tracked$|^fc1000|^pred_[wb]$|^lr$|^(fc|probs|predictions)\b|^pixel_|cell_anchors"
)
"""What belongs to training or classification and is left out by every detector."""


@dataclasses.dataclass
class Contents:
    """A checkpoint that one of a source's tables fits."""

    tensors: dict[str, np.ndarray]
    names: Names
    place: str
    backbone: str = ""
    detects: bool = False
    depth: int = 0
    subnet_norm: bool = False
    unused: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def kernel(self, layer: str) -> np.ndarray | None:
        """The kernel of one of their layers as (rows, columns, in / groups, out), None if it isn't there."""
        kernel = self.tensors.get(layer + self.names.kernel)
        if kernel is None or kernel.ndim != 4 or self.names is KERAS:
            return kernel
        return kernel.transpose(2, 3, 1, 0)

    def outputs(self, layer: str) -> int:
        """Filters of a layer that is there."""
        return self._shape(layer)[3]

    def inputs(self, layer: str) -> int:
        """Channels that a layer that is there takes."""
        return self._shape(layer)[2]

    def _shape(self, layer: str) -> tuple[int, ...]:
        kernel = self.kernel(layer)
        assert kernel is not None, layer
        return kernel.shape

    @property
    def grouped(self) -> bool:
        """Whether the backbone is a ResNeXt."""
        return VARIANTS[self.backbone].groups > 1

    @property
    def fpn_channels(self) -> int:
        """C of the pyramid."""
        return self.outputs(dict(pyramid_layers(self.names, VARIANTS[self.backbone].blocks))["fpn_output3"])

    @property
    def subnet_channels(self) -> int:
        """Filters of the subnets' convolutions."""
        return self.inputs(self.names.class_predictor)

    @property
    def anchors_per_cell(self) -> int:
        """A, from the box layer's 4·A outputs."""
        return self.outputs(self.names.box_predictor) // 4

    @property
    def class_columns(self) -> int:
        """Outputs of the class layer an anchor."""
        return self.outputs(self.names.class_predictor) // self.anchors_per_cell

    @property
    def p6_from(self) -> str:
        """'p5' where P6's kernel takes as many channels as the pyramid has, else 'c5'."""
        return "p5" if self.inputs(self.names.coarse.format(level=6)) == self.fpn_channels else "c5"

    def arrays(self, config: Config) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """{"layer/part": array} in our names, and {"layer/part": their tensor}. Fills `unused` and `notes`."""
        row = VARIANTS[self.backbone]
        pairs = list(backbone_layers(self.names, row.blocks, 3 if row.bottleneck else 2))
        if self.detects:
            pairs += pyramid_layers(self.names, row.blocks)
            pairs += subnet_layers(self.names, self.depth, self.subnet_norm)
        arrays: dict[str, np.ndarray] = {}
        theirs: dict[str, str] = {}
        conv_biases = {}
        for ours, layer in pairs:
            if ours.endswith("_norm") or "/norm" in ours:
                for part, ending in self.names.norm.items():
                    if layer + ending in self.tensors:
                        arrays[f"{ours}/{part}"], theirs[f"{ours}/{part}"] = (
                            self.tensors[layer + ending],
                            layer + ending,
                        )
                continue
            kernel = self.kernel(layer)
            if kernel is not None:
                arrays[f"{ours}/kernel"], theirs[f"{ours}/kernel"] = kernel, layer + self.names.kernel
            bias = self.tensors.get(layer + self.names.bias)
            if bias is None:
                continue
            if not ours.startswith(("stem", "stage")):
                arrays[f"{ours}/bias"], theirs[f"{ours}/bias"] = bias, layer + self.names.bias
            elif self.names is KERAS:
                conv_biases[ours.removesuffix("_conv")] = layer + self.names.bias
            elif np.any(bias):
                self.notes.append(f"{layer + self.names.bias} isn't zero; it is left out, as its own program does.")
        used = set(theirs.values())
        self._fill_statistics(arrays, theirs, config.model.norm_epsilon)
        for ours, name in conv_biases.items():
            # norm(conv + bias) = norm with a mean that is smaller by the bias.
            if f"{ours}_norm/moving_mean" in arrays:
                arrays[f"{ours}_norm/moving_mean"] = arrays[f"{ours}_norm/moving_mean"] - self.tensors[name]
                used.add(name)
        rest = sorted(set(self.tensors) - used)
        self.unused = rest
        strange = [name for name in rest if not _KNOWN_UNUSED.search(name) and not name.endswith(self.names.bias)]
        if strange:
            self.notes.append(f"{len(strange)} tensors have no place in this network, e.g. {', '.join(strange[:3])}.")
        return arrays, theirs

    def _fill_statistics(self, arrays: dict, theirs: dict, epsilon: float) -> None:
        """Statistics that were folded into scale and shift: mean 0, variance + epsilon = 1."""
        if "moving_mean" in self.names.norm:
            return
        for key in [key for key in arrays if key.endswith("_norm/gamma")]:
            layer, size = key.removesuffix("gamma"), len(arrays[key])
            arrays[f"{layer}moving_mean"] = np.zeros(size, np.float32)
            arrays[f"{layer}moving_variance"] = np.full(size, 1.0 - epsilon, np.float32)
            theirs[f"{layer}moving_mean"] = theirs[f"{layer}moving_variance"] = theirs[key]


def identify(tensors: dict[str, np.ndarray], source: str, place: str) -> Contents:
    """Finds which of the source's tables fits, and what there is.

    Raises:
      InputError: none does; another source whose table would is named.
    """
    if source not in SOURCES:
        raise InputError(f"--source={source} is not known; choose one of {', '.join(SOURCES)}.")
    for names in SOURCES[source]:
        contents = _fit(tensors, names, place)
        if contents is not None:
            return contents
    others = [name for name in SOURCES if any(_fit(tensors, names, place) for names in SOURCES[name])]
    hint = f"its names are those of --source={others[0]}" if others else f"it has {', '.join(sorted(tensors)[:3])}, …"
    stem = SOURCES[source][0].stem[0] + SOURCES[source][0].kernel
    raise InputError(f"{place} is not a checkpoint of {source}: no table fits (wanted e.g. {stem}); {hint}.")


def _fit(tensors: dict[str, np.ndarray], names: Names, place: str) -> Contents | None:
    contents = Contents(tensors, names, place)
    backbone = _variant(contents)
    if backbone is None:
        return None
    contents.backbone = backbone
    if not names.detects:
        return contents
    heads = dict(pyramid_layers(names, VARIANTS[backbone].blocks)) | dict(subnet_layers(names, 1, False))
    present = [layer for layer in heads.values() if contents.kernel(layer) is not None]
    contents.detects = len(present) == len(heads)
    if contents.detects:
        found = (contents.kernel(names.class_conv.format(i=i, even=2 * i)) is not None for i in range(100))
        contents.depth = next(i for i, there in enumerate(found) if not there)
        norm = names.subnet_norm[0]
        contents.subnet_norm = bool(norm) and norm.format(i=0) + names.norm["gamma"] in tensors
        return contents
    # Some heads and not all of them: another program's, or a damaged file.
    leads = any(name.startswith(("backbone.fpn", "fpn_", "head.", "retnet_")) for name in tensors)
    return None if present or leads else contents


def _variant(contents: Contents) -> str | None:
    """The name in VARIANTS of the backbone that the tensors make, None if they make none."""
    names = contents.names

    def kernel(stage: int, block: int, n: int) -> np.ndarray | None:
        place = {"stage": stage, "layer": stage - 1, "block": block, "block1": block + 1}
        return contents.kernel(names.block[0].format(**place, n=n, letter="abc"[n - 1]))

    stem = contents.kernel(names.stem[0])
    first, second = kernel(2, 0, 1), kernel(2, 0, 2)
    if stem is None or first is None or second is None:
        return None

    def blocks(stage: int) -> int:
        return next(count for count in itertools.count() if kernel(stage, count, 1) is None)

    groups = max(1, first.shape[3] // max(1, second.shape[2]))
    counts = (blocks(2), blocks(3), blocks(4), blocks(5))
    row = Variant(
        counts,
        kernel(2, 0, 3) is not None,
        groups,
        second.shape[3] // groups,
        stem.shape[3],
    )
    return next((name for name, variant in VARIANTS.items() if variant == row), None)
