"""Identifies a checkpoint's architecture and maps its tensors to our layers."""

import dataclasses
import itertools
import re

import numpy as np

from retinanet_tf.config.config import Config
from retinanet_tf.errors import InputError
from retinanet_tf.models.resnet import VARIANTS, Variant
from retinanet_tf.pretrained.names import KERAS, SOURCES, Names, backbone_layers, pyramid_layers, subnet_layers

_TRAINING_ONLY = re.compile(
    r"_momentum$|num_batches_tracked$|^fc1000|^pred_[wb]$|^lr$|^(fc|probs|predictions)\b|^pixel_|cell_anchors"
)
"""Tensors of optimizers and classifiers, which no detector uses."""


@dataclasses.dataclass
class Architecture:
    """A checkpoint that matches one of a source's name tables. Shapes are read off its tensors."""

    tensors: dict[str, np.ndarray]
    names: Names
    file: str
    backbone: str = ""
    detects: bool = False
    depth: int = 0
    subnet_norm: bool = False
    unused: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def kernel(self, layer: str) -> np.ndarray | None:
        """The kernel of a source's layer as `(rows, columns, in / groups, out)`, None if it is missing or no kernel."""
        kernel = self.tensors.get(layer + self.names.kernel)
        if kernel is None or kernel.ndim != 4:
            return None
        return kernel if self.names is KERAS else kernel.transpose(2, 3, 1, 0)

    def _channels(self, layer: str) -> tuple[int, int]:
        """Input and output channels of a layer that is there."""
        kernel = self.kernel(layer)
        assert kernel is not None, layer
        return kernel.shape[2], kernel.shape[3]

    @property
    def grouped(self) -> bool:
        """Whether the backbone is a ResNeXt."""
        return VARIANTS[self.backbone].groups > 1

    @property
    def fpn_channels(self) -> int:
        """C of the pyramid."""
        return self._channels(dict(pyramid_layers(self.names, VARIANTS[self.backbone].blocks))["fpn_output3"])[1]

    @property
    def subnet_channels(self) -> int:
        """Filters of the subnets' convolutions."""
        return self._channels(self.names.class_predictor)[0]

    @property
    def anchors_per_cell(self) -> int:
        """A, from the box layer's 4·A outputs."""
        return self._channels(self.names.box_predictor)[1] // 4

    @property
    def class_columns(self) -> int:
        """Outputs of the class layer per anchor."""
        return self._channels(self.names.class_predictor)[1] // max(1, self.anchors_per_cell)

    @property
    def p6_from(self) -> str:
        """'p5' where P6's kernel takes as many channels as the pyramid has, else 'c5'."""
        return "p5" if self._channels(self.names.coarse.format(level=6))[0] == self.fpn_channels else "c5"

    def arrays(self, config: Config) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """{"layer/weight": array} by our names, and {"layer/weight": tensor name}. Fills `unused` and `notes`."""
        variant = VARIANTS[self.backbone]
        layers = list(backbone_layers(self.names, variant.blocks, 3 if variant.bottleneck else 2))
        if self.detects:
            layers += pyramid_layers(self.names, variant.blocks)
            layers += subnet_layers(self.names, self.depth, self.subnet_norm)
        arrays: dict[str, np.ndarray] = {}
        sources: dict[str, str] = {}
        conv_biases = {}
        for ours, layer in layers:
            if ours.endswith("_norm") or "/norm" in ours:
                tensors = {layer + suffix: f"{ours}/{weight}" for weight, suffix in self.names.norm.items()}
                arrays |= {key: self.tensors[name] for name, key in tensors.items() if name in self.tensors}
                sources |= {key: name for name, key in tensors.items() if name in self.tensors}
                continue
            kernel = self.kernel(layer)
            if kernel is not None:
                arrays[f"{ours}/kernel"], sources[f"{ours}/kernel"] = kernel, layer + self.names.kernel
            bias = self.tensors.get(layer + self.names.bias)
            if bias is None:
                continue
            if not ours.startswith(("stem", "stage")):
                arrays[f"{ours}/bias"], sources[f"{ours}/bias"] = bias, layer + self.names.bias
            elif self.names is KERAS:
                conv_biases[ours.removesuffix("_conv")] = layer + self.names.bias
            elif np.any(bias):
                self.notes.append(f"{layer + self.names.bias} isn't zero; it is left out, as its own program does.")
        used = set(sources.values())
        self._fill_statistics(arrays, sources, config.model.norm_epsilon)
        for ours, name in conv_biases.items():
            # norm(conv + bias) = norm with a mean that is smaller by the bias.
            mean = arrays.get(f"{ours}_norm/moving_mean")
            if mean is not None and mean.shape == self.tensors[name].shape:
                arrays[f"{ours}_norm/moving_mean"] = mean - self.tensors[name]
                used.add(name)
            elif mean is not None:
                raise InputError(f"{self.file}: {name} has shape {self.tensors[name].shape}, its mean {mean.shape}.")
        self.unused = sorted(set(self.tensors) - used)
        strange = [n for n in self.unused if not _TRAINING_ONLY.search(n) and not n.endswith(self.names.bias)]
        if strange:
            self.notes.append(f"{len(strange)} tensors match no layer of this network, e.g. {', '.join(strange[:3])}.")
        return arrays, sources

    def _fill_statistics(self, arrays: dict, sources: dict, epsilon: float) -> None:
        """Statistics that were folded into scale and shift: mean 0, variance + epsilon = 1."""
        if "moving_mean" in self.names.norm:
            return
        for key in [key for key in arrays if key.endswith("_norm/gamma")]:
            layer, size = key.removesuffix("gamma"), arrays[key].size
            arrays[f"{layer}moving_mean"] = np.zeros(size, np.float32)
            arrays[f"{layer}moving_variance"] = np.full(size, 1.0 - epsilon, np.float32)
            sources[f"{layer}moving_mean"] = sources[f"{layer}moving_variance"] = sources[key]


def identify(tensors: dict[str, np.ndarray], source: str, file: str) -> Architecture:
    """Identifies the architecture of a source's checkpoint.

    Raises:
        InputError: no name table of the source matches; another source that would match is named.
    """
    if source not in SOURCES:
        raise InputError(f"source={source} is not known; choose one of {', '.join(SOURCES)}.")
    for names in SOURCES[source]:
        architecture = _match(tensors, names, file)
        if architecture is not None:
            return architecture
    others = [name for name in SOURCES if any(_match(tensors, names, file) for names in SOURCES[name])]
    hint = f"its names are those of source={others[0]}" if others else f"it has {', '.join(sorted(tensors)[:3])}, …"
    stem = SOURCES[source][0].stem[0] + SOURCES[source][0].kernel
    raise InputError(f"{file} is not a checkpoint of {source}: no table fits (wanted e.g. {stem}); {hint}.")


def _match(tensors: dict[str, np.ndarray], names: Names, file: str) -> Architecture | None:
    result = Architecture(tensors, names, file)
    backbone = _variant(result)
    if backbone is None:
        return None
    result.backbone = backbone
    if not names.detects:
        return result
    heads = dict(pyramid_layers(names, VARIANTS[backbone].blocks)) | dict(subnet_layers(names, 1, False))
    present = [layer for layer in heads.values() if result.kernel(layer) is not None]
    result.detects = len(present) == len(heads)
    if result.detects:
        convs = (result.kernel(names.class_conv.format(i=i, even=2 * i)) for i in range(100))
        result.depth = next(i for i, kernel in enumerate(convs) if kernel is None)
        norm = names.subnet_norm[0]
        result.subnet_norm = bool(norm) and norm.format(i=0) + names.norm["gamma"] in tensors
        return result
    # Some heads and not all of them: another program's, or a damaged file.
    partial = any(name.startswith(("backbone.fpn", "fpn_", "head.", "retnet_")) for name in tensors)
    return None if present or partial else result


def _variant(architecture: Architecture) -> str | None:
    """The name in VARIANTS of the backbone with the tensors' shapes, None if there is none."""
    names = architecture.names

    def kernel(stage: int, block: int, n: int) -> np.ndarray | None:
        values = {"stage": stage, "layer": stage - 1, "block": block, "block1": block + 1}
        return architecture.kernel(names.block[0].format(**values, n=n, letter="abc"[n - 1]))

    def blocks(stage: int) -> int:
        return next(count for count in itertools.count() if kernel(stage, count, 1) is None)

    stem, first, second = architecture.kernel(names.stem[0]), kernel(2, 0, 1), kernel(2, 0, 2)
    if stem is None or first is None or second is None:
        return None
    groups = max(1, first.shape[3] // max(1, second.shape[2]))
    counts = (blocks(2), blocks(3), blocks(4), blocks(5))
    shape = Variant(counts, kernel(2, 0, 3) is not None, groups, second.shape[3] // groups, stem.shape[3])
    return next((name for name, variant in VARIANTS.items() if variant == shape), None)
