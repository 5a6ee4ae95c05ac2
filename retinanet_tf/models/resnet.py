"""ResNet and ResNeXt backbones, as far as the stages C3–C5 that the pyramid reads (§4)."""

import dataclasses
from typing import Any

import keras

from retinanet_tf.config.config import ModelConfig
from retinanet_tf.errors import InputError
from retinanet_tf.models.layers import StopGradient, conv, normalization, regularizer


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the architecture table."""

    blocks: tuple[int, int, int, int]
    """Residual blocks in stages 2 to 5."""
    bottleneck: bool = True
    """1×1, 3×3, 1×1 blocks with a fourfold expansion; else two 3×3."""
    groups: int = 1
    """Cardinality of the 3×3 convolutions (ResNeXt)."""
    group_width: int = 64
    """Channels of one group in stage 2; doubled from stage to stage."""
    stem: int = 64
    """Channels after the 7×7 stem."""


VARIANTS: dict[str, Variant] = {
    "resnet18": Variant((2, 2, 2, 2), bottleneck=False),
    "resnet34": Variant((3, 4, 6, 3), bottleneck=False),
    "resnet50": Variant((3, 4, 6, 3)),
    "resnet101": Variant((3, 4, 23, 3)),
    "resnet152": Variant((3, 8, 36, 3)),
    "resnext50_32x4d": Variant((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Variant((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Variant((3, 4, 23, 3), groups=64, group_width=4),
    # For small images and two CPU cores: few basic blocks, a fraction of the width.
    "resnet10_w16": Variant((1, 1, 1, 1), bottleneck=False, group_width=16, stem=16),
    "resnet14_w24": Variant((1, 2, 2, 1), bottleneck=False, group_width=24, stem=24),
}


def variant(name: str) -> Variant:
    """The variant called `name`.

    Raises:
        InputError: no variant has that name.
    """
    if name not in VARIANTS:
        raise InputError(f"backbone={name!r} is not known; choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def resnet(pixels: Any, config: ModelConfig) -> list:
    """Builds the backbone on a symbolic input.

    Args:
        pixels: normalised images `(B, H, W, 3)`.
        config: `backbone`, `norm`, `norm_epsilon`, `stride_in`, `freeze_stages` and `weight_decay` are read.

    Returns:
        [C3, C4, C5], `(B, ⌈H/s⌉, ⌈W/s⌉, channels)` at strides s = 8, 16, 32.
    """
    builder = _Builder(config)
    # Without imported weights: pixels of deviation about 64 / std come down to 1.
    gain = sum(config.pixel_std) / 3 / 64
    features = builder.conv_norm(pixels, builder.row.stem, 7, strides=2, name="stem", stage=1, gain=gain)
    features = builder.relu(features, "stem")
    features = keras.layers.ZeroPadding2D(1, name="stem_pad")(features)  # zeros can't win: inputs come from a ReLU
    features = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(features)
    features = builder.cut_if_frozen(features, stage=1)
    stages = []
    for stage, blocks in enumerate(builder.row.blocks, start=2):
        for index in range(blocks):
            strides = 2 if index == 0 and stage > 2 else 1
            features = builder.block(features, stage, index, strides)
        features = builder.cut_if_frozen(features, stage)
        stages.append(features)
    return stages[1:]


class _Builder:
    """Makes the layers of one backbone."""

    def __init__(self, config: ModelConfig):
        self.config, self.row = config, variant(config.backbone)

    def conv_norm(self, features, filters, kernel_size, *, name, stage, strides=1, groups=1, gain=1.0):
        """A convolution without bias and its normalisation, both fixed where the stage is frozen."""
        config = self.config
        trainable = stage > config.freeze_stages
        norm = normalization(config.norm, filters, name=f"{name}_norm", epsilon=config.norm_epsilon, frozen_gamma=gain)
        kernel = conv(
            filters,
            kernel_size,
            strides,
            name=f"{name}_conv",
            affine=norm.fold(filters) if config.norm == "frozen" else None,
            groups=groups,
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=regularizer(config.weight_decay) if trainable else None,
        )
        if not trainable:
            kernel.trainable = norm.trainable = False
        return norm(kernel(features))

    @staticmethod
    def relu(features, name):
        return keras.layers.ReLU(name=f"{name}_relu")(features)

    def cut_if_frozen(self, features, stage):
        """Ends the backward pass after the last frozen stage."""
        if stage == self.config.freeze_stages:
            return StopGradient(name=f"stage{stage}_frozen")(features)
        return features

    def block(self, features, stage, index, strides):
        """One residual block (He et al. 2016, figure 5; Xie et al. 2017, figure 3c)."""
        row, name = self.row, f"stage{stage}_block{index}"
        group_width = row.group_width * 2 ** (stage - 2)
        inner = group_width * row.groups
        outer = 256 * 2 ** (stage - 2) if row.bottleneck else inner
        in_first = self.config.stride_in == "1x1"
        if row.bottleneck:
            plan = [(inner, 1, strides if in_first else 1, 1), (inner, 3, 1 if in_first else strides, row.groups)]
            plan += [(outer, 1, 1, 1)]
        else:
            plan = [(inner, 3, strides, 1), (outer, 3, 1, 1)]

        shortcut, out = features, features
        # Without imported weights: all branches together then add as much variance as the input has.
        branch_gain = sum(row.blocks) ** -0.5
        for number, (filters, kernel_size, stride, groups) in enumerate(plan, start=1):
            part = f"{name}_{number}"
            gain = branch_gain if number == len(plan) else 1.0
            out = self.conv_norm(
                out, filters, kernel_size, strides=stride, groups=groups, name=part, stage=stage, gain=gain
            )
            if number < len(plan):
                out = self.relu(out, part)
        if strides != 1 or features.shape[-1] != outer:
            shortcut = self.conv_norm(features, outer, 1, strides=strides, name=f"{name}_shortcut", stage=stage)
        return self.relu(keras.layers.Add(name=f"{name}_add")([shortcut, out]), name)
