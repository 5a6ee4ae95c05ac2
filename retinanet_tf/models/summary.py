"""Summary of a network: parameters and multiply-adds of each part, and a drawing like Figure 3."""

import dataclasses
import math
import os

import keras
import tensorflow as tf

from retinanet_tf.detection.anchors import grid_sizes
from retinanet_tf.models.network import variables
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.visualize import new_figure, save_figure

PARTS = ("stem", "stage2", "stage3", "stage4", "stage5", "fpn", "class_subnet", "box_subnet")


@dataclasses.dataclass(frozen=True)
class Row:
    """One part of a network: its parameters (statistics of normalisations included) and multiply-adds per image."""

    part: str
    parameters: int
    multiply_adds: int


def count(model: RetinaNet, height: int, width: int) -> list[Row]:
    """Counts every part of PARTS for one image of `height` × `width` pixels.

    Multiply-adds are those of the convolutions: output cells × kernel size × input channels / groups × filters.
    """
    sizes = dict.fromkeys(PARTS, 0)
    work = dict.fromkeys(PARTS, 0)
    for name, variable in variables(model).items():
        part = next(part for part in PARTS if name.startswith(part))
        sizes[part] += math.prod(variable.shape)
    for layer, shape in _output_shapes(model, height, width).items():
        part = next(part for part in PARTS if layer.startswith(part))
        work[part] += shape[1] * shape[2] * math.prod(model.get_layer(layer).kernel.shape)
    cells = sum(rows * columns for rows, columns in grid_sizes(height, width, model.anchors.config))
    for part in ("class_subnet", "box_subnet"):
        subnet = model.get_layer(part)
        work[part] = cells * sum(math.prod(layer.kernel.shape) for layer in (*subnet.convs, subnet.predictor))
    return [Row(part, sizes[part], work[part]) for part in PARTS]


def flop(model: RetinaNet, height: int, width: int, training: bool = False) -> float:
    """Floating-point operations of the convolutions for one image of `height` × `width` pixels.

    Forward, and in training for layers that aren't frozen backward to kernels and to inputs; a multiply-add is two.
    """
    frozen = PARTS[: model.config.freeze_stages]
    rows = count(model, height, width)
    return 2.0 * sum(row.multiply_adds * (3 if training and row.part not in frozen else 1) for row in rows)


def _output_shapes(model: RetinaNet, height: int, width: int) -> dict[str, tuple]:
    """Shapes of the outputs of backbone and pyramid convolutions; nothing is computed."""
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    taps = keras.Model(model.input, {layer.name: layer.output for layer in convolutions})
    traced = tf.function(lambda images: taps(images, training=False)).get_concrete_function(
        tf.TensorSpec((1, height, width, 3), tf.float32)
    )
    return {name: tuple(value.shape) for name, value in traced.structured_outputs.items()}


def table(rows: list[Row]) -> str:
    """The rows and their total as text."""
    total = Row("total", sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows))
    lines = [f"{'part':<14}{'parameters':>14}{'G multiply-adds':>18}"]
    lines += [f"{row.part:<14}{row.parameters:>14,}{row.multiply_adds / 1e9:>18.3f}" for row in (*rows, total)]
    return "\n".join(lines)


def draw(model: RetinaNet, height: int, width: int, path: str | os.PathLike) -> None:
    """Draws backbone, pyramid and subnets with the model's own shapes (Figure 3) into a picture file."""
    from matplotlib.patches import FancyBboxPatch

    figure = new_figure(12, 6.5)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 12), ylim=(0, 6.6))
    axes.axis("off")

    def box(x, y, width, text, colour):
        axes.add_patch(
            FancyBboxPatch((x, y), width, 0.72, boxstyle="round,pad=0.04", facecolor=colour, edgecolor="0.3")
        )
        axes.text(x + width / 2, y + 0.36, text, ha="center", va="center", fontsize=9)

    def arrow(start, end):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3"})

    config, levels = model.config, list(model.anchors.config.levels)
    shapes = _output_shapes(model, height, width)
    bottom = {level: 0.3 + 1.2 * (level - levels[0]) for level in levels}
    for level in (3, 4, 5):
        _, rows, columns, channels = [shape for name, shape in shapes.items() if name.startswith(f"stage{level}")][-1]
        y = bottom[level]
        box(0.3, y, 2.3, f"C{level}\n{rows}×{columns}×{channels}", "#dfe7f2")
        if level < 5:
            arrow((1.45, y + 0.76), (1.45, y + 1.16))
    source = "C5" if config.p6_from == "c5" else "P5"
    for level, (rows, columns) in zip(levels, grid_sizes(height, width, model.anchors.config), strict=True):
        y = bottom[level]
        box(4.2, y, 2.3, f"P{level}\n{rows}×{columns}×{config.fpn_channels}", "#e3f1df")
        if level <= 5:
            arrow((2.65, y + 0.36), (4.15, y + 0.36))
        if level in (3, 4):
            arrow((5.35, y + 1.16), (5.35, y + 0.76))
        if level == 6:
            start = (2.65, bottom[5] + 0.6) if source == "C5" else (5.35, bottom[5] + 0.76)
            arrow(start, (4.15, y + 0.2) if source == "C5" else (5.35, y - 0.04))
        if level == 7:
            arrow((5.35, bottom[6] + 0.76), (5.35, y - 0.04))
        arrow((6.55, y + 0.36), (7.7, 3.1))
    per_cell = model.anchors.config.anchors_per_cell
    for y, name, outputs in ((3.5, "class", config.num_classes), (2.0, "box", 4)):
        tower = f"{config.subnet_depth} × (3×3, {config.subnet_channels})"
        last_text = f"3×3, {outputs}·{per_cell} = {outputs * per_cell}"
        box(7.8, y, 3.9, f"{name} subnet, shared by all levels\n{tower}, then {last_text}", "#f6e6d6")
    title = f"{config.backbone}, image {height}×{width}, {model.count_params():,} parameters"
    axes.text(6, 6.45, title, ha="center", va="top", fontsize=11)
    save_figure(figure, path, grid=False)
