"""Layer names of a RetinaNet in each source's checkpoints, as templates.

In a template, {stage} is 2–5, {block} counts from 0 within a stage ({block1} from 1), {n} counts a block's
convolutions from 1 ({letter} from a), {last} is the last block of a stage, {level} the pyramid level, {i} numbers a
subnet's convolutions ({even} is 2i), {layer} is stage − 1 and {from3} level − 3.
"""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Names:
    """One source's names. Pairs are (convolution, normalization); a missing layer has an empty template."""

    stem: tuple[str, str]
    block: tuple[str, str]
    shortcut: tuple[str, str]
    kernel: str
    """Suffix of a convolution's kernel."""
    bias: str
    norm: dict[str, str]
    """Our name of a normalization's weight → its suffix."""
    lateral: str = ""
    top_lateral: str = ""
    """The lateral of C5 where it is named differently from those of C3 and C4."""
    output: str = ""
    coarse: str = ""
    class_conv: str = ""
    class_predictor: str = ""
    box_conv: str = ""
    box_predictor: str = ""
    subnet_norm: tuple[str, str] = ("", "")
    """Normalizations of the class and the box subnet."""

    @property
    def detects(self) -> bool:
        """Whether the source has more than a backbone."""
        return bool(self.class_predictor)


_TORCH_NORM = {
    "gamma": ".weight",
    "beta": ".bias",
    "moving_mean": ".running_mean",
    "moving_variance": ".running_var",
}

KERAS = Names(
    stem=("conv1_conv", "conv1_bn"),
    block=("conv{stage}_block{block1}_{n}_conv", "conv{stage}_block{block1}_{n}_bn"),
    shortcut=("conv{stage}_block{block1}_0_conv", "conv{stage}_block{block1}_0_bn"),
    kernel="/kernel",
    bias="/bias",
    norm={weight: f"/{weight}" for weight in ("gamma", "beta", "moving_mean", "moving_variance")},
)
DETECTRON = Names(
    stem=("conv1", "res_conv1_bn"),
    block=("res{stage}_{block}_branch2{letter}", "res{stage}_{block}_branch2{letter}_bn"),
    shortcut=("res{stage}_{block}_branch1", "res{stage}_{block}_branch1_bn"),
    kernel="_w",
    bias="_b",
    # Statistics are folded into scale and shift.
    norm={"gamma": "_s", "beta": "_b"},
    lateral="fpn_inner_res{stage}_{last}_sum_lateral",
    top_lateral="fpn_inner_res{stage}_{last}_sum",
    output="fpn_res{stage}_{last}_sum",
    coarse="fpn_{level}",
    class_conv="retnet_cls_conv_n{i}_fpn3",
    class_predictor="retnet_cls_pred_fpn3",
    box_conv="retnet_bbox_conv_n{i}_fpn3",
    box_predictor="retnet_bbox_pred_fpn3",
)
DETECTRON2 = Names(
    stem=("backbone.bottom_up.stem.conv1", "backbone.bottom_up.stem.conv1.norm"),
    block=(
        "backbone.bottom_up.res{stage}.{block}.conv{n}",
        "backbone.bottom_up.res{stage}.{block}.conv{n}.norm",
    ),
    shortcut=(
        "backbone.bottom_up.res{stage}.{block}.shortcut",
        "backbone.bottom_up.res{stage}.{block}.shortcut.norm",
    ),
    kernel=".weight",
    bias=".bias",
    norm=_TORCH_NORM,
    lateral="backbone.fpn_lateral{stage}",
    output="backbone.fpn_output{stage}",
    coarse="backbone.top_block.p{level}",
    class_conv="head.cls_subnet.{even}",
    class_predictor="head.cls_score",
    box_conv="head.bbox_subnet.{even}",
    box_predictor="head.bbox_pred",
)
_TORCHVISION_BODY = Names(
    stem=("conv1", "bn1"),
    block=("layer{layer}.{block}.conv{n}", "layer{layer}.{block}.bn{n}"),
    shortcut=("layer{layer}.{block}.downsample.0", "layer{layer}.{block}.downsample.1"),
    kernel=".weight",
    bias=".bias",
    norm=_TORCH_NORM,
)


def _torchvision(inner: str, head: str) -> Names:
    """torchvision's detector, whose later releases wrap each convolution in a sequence."""

    def pair(names: tuple[str, str]) -> tuple[str, str]:
        return f"backbone.body.{names[0]}", f"backbone.body.{names[1]}"

    return dataclasses.replace(
        _TORCHVISION_BODY,
        stem=pair(_TORCHVISION_BODY.stem),
        block=pair(_TORCHVISION_BODY.block),
        shortcut=pair(_TORCHVISION_BODY.shortcut),
        lateral=f"backbone.fpn.inner_blocks.{{from3}}{inner}",
        output=f"backbone.fpn.layer_blocks.{{from3}}{inner}",
        coarse="backbone.fpn.extra_blocks.p{level}",
        class_conv=f"head.classification_head.conv.{head}",
        class_predictor="head.classification_head.cls_logits",
        box_conv=f"head.regression_head.conv.{head}",
        box_predictor="head.regression_head.bbox_reg",
        subnet_norm=("head.classification_head.conv.{i}.1", "head.regression_head.conv.{i}.1"),
    )


SOURCES: dict[str, tuple[Names, ...]] = {
    "keras": (KERAS,),
    "detectron": (DETECTRON,),
    "detectron2": (DETECTRON2,),
    "torchvision": (
        _torchvision("", "{even}"),
        _torchvision(".0", "{i}.0"),
        _torchvision(".0", "{even}"),
        _torchvision("", "{i}.0"),
        _TORCHVISION_BODY,
    ),
}
"""Tables by source; the first one that matches a file is used."""


def backbone_layers(names: Names, blocks: tuple[int, ...], convs: int) -> Iterator[tuple[str, str]]:
    """(our layer, the source's) of a backbone with `blocks` residual blocks per stage of `convs` convolutions each."""
    yield "stem_conv", names.stem[0]
    yield "stem_norm", names.stem[1]
    for stage, count in enumerate(blocks, start=2):
        for block in range(count):
            values = {"stage": stage, "layer": stage - 1, "block": block, "block1": block + 1}
            for n in range(1, convs + 1):
                for kind, template in zip(("conv", "norm"), names.block, strict=True):
                    yield f"stage{stage}_block{block}_{n}_{kind}", template.format(**values, n=n, letter="abc"[n - 1])
            if block == 0:
                for kind, template in zip(("conv", "norm"), names.shortcut, strict=True):
                    yield f"stage{stage}_block0_shortcut_{kind}", template.format(**values)


def pyramid_layers(names: Names, blocks: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """(our layer, the source's) of P3–P7."""
    for level in (3, 4, 5):
        values = {"stage": level, "last": blocks[level - 2] - 1, "from3": level - 3}
        lateral = names.top_lateral if level == 5 and names.top_lateral else names.lateral
        yield f"fpn_lateral{level}", lateral.format(**values)
        yield f"fpn_output{level}", names.output.format(**values)
    for level in (6, 7):
        yield f"fpn_p{level}", names.coarse.format(level=level)


def subnet_layers(names: Names, depth: int, normed: bool) -> Iterator[tuple[str, str]]:
    """(our layer, the source's) of both subnets."""
    rows = (
        ("class_subnet", names.class_conv, names.class_predictor, names.subnet_norm[0]),
        ("box_subnet", names.box_conv, names.box_predictor, names.subnet_norm[1]),
    )
    for subnet, conv, predictor, norm in rows:
        for i in range(depth):
            yield f"{subnet}/conv{i}", conv.format(i=i, even=2 * i)
            if normed:
                yield f"{subnet}/norm{i}_0", norm.format(i=i)
        yield f"{subnet}/predictor", predictor
