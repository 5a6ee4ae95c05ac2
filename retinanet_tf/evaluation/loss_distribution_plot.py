"""Figure 4 as a picture: the share of the loss that the easiest examples carry, at several γ."""

import os
from collections.abc import Sequence
from pathlib import Path

from retinanet_tf.evaluation.loss_distribution import FIGURE_4_GAMMAS, LossDistribution
from retinanet_tf.visualize import new_figure, save_figure


def figure_4(
    distribution: LossDistribution, path: str | os.PathLike, gammas: Sequence[float] = FIGURE_4_GAMMAS
) -> Path:
    """Draws the cumulative normalised loss of foreground and background examples; returns the picture's path."""
    figure = new_figure(10, 4)
    for place, kind in enumerate(("foreground", "background"), start=1):
        axes = figure.add_subplot(1, 2, place)
        for gamma in gammas:
            axes.plot(*distribution.cumulative(kind, gamma), label=f"γ = {gamma:g}")
        examples = int(distribution.counts[kind].sum())
        axes.set(
            title=f"{kind}: {examples:,} examples",
            xlabel="fraction of the examples, easiest first",
            ylabel="fraction of their loss",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.legend(loc="upper left")
    return save_figure(figure, path)
