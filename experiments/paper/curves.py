"""Loss curves of Figures 1, 5 and 6: the points as JSON and a plot."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags

from retinanet_tf import files
from retinanet_tf.losses import classification as losses
from retinanet_tf.losses.classification import ValueAndSlope
from retinanet_tf.visualize import new_figure, save_figure

OUTPUT = flags.DEFINE_string("output", "experiments/results/exact", "Folder for the picture and the points.")

VALUE, SLOPE = 0, 1
FL_STAR: Mapping[str, Callable[[tf.Tensor], ValueAndSlope]] = {
    "CE": losses.cross_entropy,
    "FL γ = 2": partial(losses.focal, gamma=2.0),
    "FL* γ = 2, β = 1": partial(losses.focal_star, gamma=2.0, beta=1.0),
    "FL* γ = 4, β = 0": partial(losses.focal_star, gamma=4.0, beta=0.0),
}
"""The curves of Figures 5 and 6."""


def points(curves: Mapping[str, Callable[[tf.Tensor], ValueAndSlope]], margins: np.ndarray, part: int) -> dict:
    """{name: float64 values or slopes} at the margins x_t."""
    return {name: curve(tf.constant(margins, tf.float64))[part].numpy() for name, curve in curves.items()}


def write(name: str, x: np.ndarray, curves: Mapping[str, np.ndarray], **axes) -> Path:
    """Draws curves over `x` into NAME.png, with their points in NAME.json; returns the picture's path."""
    files.make_folder(OUTPUT.value, "--output")
    folder = Path(OUTPUT.value)
    figure = new_figure(6, 4.5)
    plot = figure.add_subplot()
    for label, values in curves.items():
        plot.plot(x, values, label=label)
    plot.set(xlim=(x[0], x[-1]), **axes)
    plot.legend()
    rows = {label: [round(float(value), 6) for value in values] for label, values in curves.items()}
    files.write_json(folder / f"{name}.json", {"x": [round(float(value), 6) for value in x], "curves": rows})
    path = save_figure(figure, folder / f"{name}.png")
    print(path)
    return path
