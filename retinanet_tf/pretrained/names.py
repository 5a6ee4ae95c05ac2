"""What each source calls the layers of a RetinaNet: one table a source, as templates.

In a template, {stage} is 2–5, {block} counts from 0 within a stage ({block1} from 1), {n} counts a block's
convolutions from 1 ({letter} from a), {last} is the last block of a stage, {level} the pyramid level, {i} a subnet's
convolution.
"""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Names:
    """One source's names. Pairs are (convolution, normalisation); an empty template is a layer the source lacks."""

    stem: tuple[str, str]
    block: tuple[str, str]
    shortcut: tuple[str, str]
    kernel: str
    """What follows a convolution's name for its kernel."""
    bias: str
    norm: dict[str, str]
    """Our weight of a normalisation → what follows its name."""
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
    """Normalisations of the class and the box subnet."""

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
    norm={part: f"/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")},
)
DETECTRON = Names(
    stem=("conv1", "res_conv1_bn"),
    block=("res{stage}_{block}_branch2{letter}", "res{stage}_{block}_branch2{letter}_bn"),
    shortcut=("res{stage}_{block}_branch1", "res{stage}_{block}_branch1_bn"),
    kernel="_w",
    bias="_b",
    # Statistics are folded into scale and shift; these are all there is.
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
    """torchvision's detector; its later releases wrap each convolution in a sequence."""

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
"""Every source's tables, the first that fits a file is taken; `--source` names the key."""


def backbone_layers(names: Names, blocks: tuple[int, ...], convs: int) -> Iterator[tuple[str, str]]:
    """(our layer, theirs) for a backbone of `blocks` residual blocks a stage with `convs` convolutions each."""
    yield "stem_conv", names.stem[0]
    yield "stem_norm", names.stem[1]
    for stage, count in enumerate(blocks, start=2):
        for block in range(count):
            place = {"stage": stage, "layer": stage - 1, "block": block, "block1": block + 1}
            for n in range(1, convs + 1):
                for part, template in zip(("conv", "norm"), names.block, strict=True):
                    theirs = template.format(**place, n=n, letter="abc"[n - 1])
                    yield f"stage{stage}_block{block}_{n}_{part}", theirs
            if block == 0:
                for part, template in zip(("conv", "norm"), names.shortcut, strict=True):
                    yield f"stage{stage}_block0_shortcut_{part}", template.format(**place)


def pyramid_layers(names: Names, blocks: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """(our layer, theirs) for P3–P7."""
    for level in (3, 4, 5):
        place = {"stage": level, "last": blocks[level - 2] - 1, "from3": level - 3}
        lateral = names.top_lateral if level == 5 and names.top_lateral else names.lateral
        yield f"fpn_lateral{level}", lateral.format(**place)
        yield f"fpn_output{level}", names.output.format(**place)
    for level in (6, 7):
        yield f"fpn_p{level}", names.coarse.format(level=level)


def subnet_layers(names: Names, depth: int, normed: bool) -> Iterator[tuple[str, str]]:
    """(our layer, theirs) for both subnets."""
    rows = (
        ("class_subnet", names.class_conv, names.class_predictor),
        ("box_subnet", names.box_conv, names.box_predictor),
    )
    for (ours, conv, predictor), norm in zip(rows, names.subnet_norm, strict=True):
        for i in range(depth):
            yield f"{ours}/conv{i}", conv.format(i=i, even=2 * i)
            if normed:
                yield f"{ours}/norm{i}_0", norm.format(i=i)
        yield f"{ours}/predictor", predictor
