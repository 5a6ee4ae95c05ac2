"""Names of a RetinaNet's tensors in each source's checkpoints, as patterns that lead to our names."""

import dataclasses
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Names:
    """One source's names.

    A pattern's groups are put into the template of our layer's name: {stage} 2–5, {block} from 0, {n} a block's
    convolution from 1, {level}, {i} a subnet's convolution from 0. Sources count some of them in another way, whose
    groups `_values` converts: {layer} is stage − 1, {block1} block + 1, {letter} n, {from3} level − 3, {even} 2i.
    """

    example: str
    """The first kernel's name."""
    layers: tuple[tuple[str, str], ...]
    """(pattern of a layer's name, template of ours)."""
    conv: dict[str, str]
    """Suffix of a convolution's tensor → our weight."""
    norm: dict[str, str]
    """The same of a normalization."""
    kernel_axes: tuple[int, int, int, int] = (2, 3, 1, 0)
    """Axes of a kernel here that are ours: rows, columns, in / groups, out."""

    def ours(self, tensor: str) -> str | None:
        """Our name "layer/weight" of a tensor; None if no pattern fits."""
        for suffix in (*self.conv, *self.norm):
            for pattern, template in self.layers if tensor.endswith(suffix) else ():
                if match := re.fullmatch(pattern, tensor.removesuffix(suffix)):
                    layer = template.format(**_values(match.groupdict()))
                    weight = (self.norm if "norm" in layer else self.conv).get(suffix)
                    return weight and f"{layer}/{weight}"
        return None


_WORDS = {
    **dict.fromkeys(("", "0"), "conv"),
    **dict.fromkeys(("bn", "_bn", ".norm", "1"), "norm"),
    **dict.fromkeys(("cls", "classification"), "class"),
    **dict.fromkeys(("bbox", "regression"), "box"),
    **{"inner": "lateral", "layer": "output"},
}


def _values(groups: dict[str, str]) -> dict[str, Any]:
    words = ("kind", "part", "task")
    values: dict[str, Any] = {n: _WORDS.get(text, text) if n in words else text for n, text in groups.items()}
    for theirs, ours, offset in (("layer", "stage", 1), ("block1", "block", -1), ("from3", "level", 3)):
        if theirs in groups:
            values[ours] = int(groups[theirs]) + offset
    if "even" in groups:
        values["i"] = int(groups["even"]) // 2
    if "letter" in groups:
        values["n"] = 1 + "abc".index(groups["letter"])
    return values


_BLOCK, _SHORTCUT = "stage{stage}_block{block}_{n}_{kind}", "stage{stage}_block0_shortcut_{kind}"
_CONV, _PREDICTOR = "{task}_subnet/conv{i}", "{task}_subnet/predictor"
_TORCH_CONV = {".weight": "kernel", ".bias": "bias"}
_TORCH_NORM = {
    ".weight": "gamma",
    ".bias": "beta",
    ".running_mean": "moving_mean",
    ".running_var": "moving_variance",
}
_BODY, _BOTTOM_UP = r"(?:backbone\.body\.)?", r"backbone\.bottom_up\."
_HEAD = r"head\.(?P<task>classification|regression)_head\."

SOURCES = {
    "keras": Names(
        "conv1_conv/kernel",
        (
            (r"conv1_(?P<kind>conv|bn)", "stem_{kind}"),
            (r"conv(?P<stage>\d)_block(?P<block1>\d{1,3})_(?P<n>[123])_(?P<kind>conv|bn)", _BLOCK),
            (r"conv(?P<stage>\d)_block1_0_(?P<kind>conv|bn)", _SHORTCUT),
        ),
        conv={"/kernel": "kernel", "/bias": "bias"},
        norm={f"/{weight}": weight for weight in ("gamma", "beta", "moving_mean", "moving_variance")},
        kernel_axes=(0, 1, 2, 3),
    ),
    "detectron": Names(
        "conv1_w",
        (
            (r"conv1", "stem_conv"),
            (r"res_conv1_bn", "stem_norm"),
            (r"res(?P<stage>\d)_(?P<block>\d{1,3})_branch2(?P<letter>[abc])(?P<kind>_bn|)", _BLOCK),
            (r"res(?P<stage>\d)_0_branch1(?P<kind>_bn|)", _SHORTCUT),
            (r"fpn_inner_res(?P<level>[34])_\d+_sum_lateral", "fpn_lateral{level}"),
            (r"fpn_inner_res(?P<level>5)_\d+_sum", "fpn_lateral{level}"),
            (r"fpn_res(?P<level>\d)_\d+_sum", "fpn_output{level}"),
            (r"fpn_(?P<level>\d)", "fpn_p{level}"),
            (r"retnet_(?P<task>cls|bbox)_conv_n(?P<i>\d{1,3})_fpn3", _CONV),
            (r"retnet_(?P<task>cls|bbox)_pred_fpn3", _PREDICTOR),
        ),
        conv={"_w": "kernel", "_b": "bias"},
        norm={"_s": "gamma", "_b": "beta"},  # statistics are folded into scale and shift
    ),
    "detectron2": Names(
        "backbone.bottom_up.stem.conv1.weight",
        (
            (_BOTTOM_UP + r"stem\.conv1(?P<kind>\.norm|)", "stem_{kind}"),
            (_BOTTOM_UP + r"res(?P<stage>\d)\.(?P<block>\d{1,3})\.conv(?P<n>\d)(?P<kind>\.norm|)", _BLOCK),
            (_BOTTOM_UP + r"res(?P<stage>\d)\.0\.shortcut(?P<kind>\.norm|)", _SHORTCUT),
            (r"backbone\.fpn_(?P<part>lateral|output)(?P<level>\d)", "fpn_{part}{level}"),
            (r"backbone\.top_block\.p(?P<level>\d)", "fpn_p{level}"),
            (r"head\.(?P<task>cls|bbox)_subnet\.(?P<even>\d{0,2}[02468])", _CONV),
            (r"head\.(?P<task>cls|bbox)_(?:score|pred)", _PREDICTOR),
        ),
        conv=_TORCH_CONV,
        norm=_TORCH_NORM,
    ),
    # Classifiers name the layers without the prefix; later releases of the detector wrap convolutions in sequences.
    "torchvision": Names(
        "backbone.body.conv1.weight",
        (
            (_BODY + r"(?P<kind>conv|bn)1", "stem_{kind}"),
            (_BODY + r"layer(?P<layer>\d)\.(?P<block>\d{1,3})\.(?P<kind>conv|bn)(?P<n>\d)", _BLOCK),
            (_BODY + r"layer(?P<layer>\d)\.0\.downsample\.(?P<kind>[01])", _SHORTCUT),
            (r"backbone\.fpn\.(?P<part>inner|layer)_blocks\.(?P<from3>\d)(?:\.0)?", "fpn_{part}{level}"),
            (r"backbone\.fpn\.extra_blocks\.p(?P<level>\d)", "fpn_p{level}"),
            (_HEAD + r"conv\.(?P<i>\d{1,3})\.0", _CONV),
            (_HEAD + r"conv\.(?P<i>\d{1,3})\.1", "{task}_subnet/norm{i}_0"),
            (_HEAD + r"conv\.(?P<even>\d{0,2}[02468])", _CONV),
            (_HEAD + r"(?:cls_logits|bbox_reg)", _PREDICTOR),
        ),
        conv=_TORCH_CONV,
        norm=_TORCH_NORM,
    ),
}
