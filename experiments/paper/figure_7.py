"""Figure 7: which settings (γ, β) of FL* are effective, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.figure_7 --scale=paper --data=… --validation=… --init_weights=…

The paper draws the loss of each setting over x_t, in blue where training converged to AP above 33.5 (focal loss: 34.0),
with α = .25 throughout; it prints neither the grid nor the AP of each, but for γ = 2, β = 1 and γ = 4, β = 0. The grid
here is 5 × 5 and holds both. About 10 hours per setting on 8 GPUs. At the other scales "effective" is the paper's share
of focal loss' own AP, 33.5 / 34.0.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from experiments.paper import report, study
from retinanet_tf.cli.main import run
from retinanet_tf.losses import classification as losses
from retinanet_tf.visualize import new_figure, save_figure

GAMMAS = (1.0, 2.0, 3.0, 4.0, 5.0)
BETAS = (-1.0, 0.0, 1.0, 2.0, 3.0)
PAPER = {(2.0, 1.0): (33.8, 52.7, 36.3), (4.0, 0.0): (33.9, 51.8, 36.4)}
EFFECTIVE = 33.5 / 34.0
STUDY = study.Study(
    "figure_7",
    "Figure 7: settings of FL*",
    (
        study.Row("focal loss", {}, (34.0, 52.5, 36.5)),
        *(
            study.Row(
                f"FL*, γ = {gamma:g}, β = {beta:g}",
                {"classification": "focal_star", "gamma": gamma, "star_beta": beta},
                PAPER.get((gamma, beta), ()),
            )
            for gamma in GAMMAS
            for beta in BETAS
        ),
    ),
)


def draw(folder: Path) -> Path:
    """The losses over x_t, effective settings in blue, and the grid of AP, from figure_7.json in `folder`."""
    focal, *rows = json.loads((folder / "figure_7.json").read_text())["rows"]
    limit = EFFECTIVE * report.mean(focal)[0]
    margin = np.linspace(-5, 5, 201)
    figure = new_figure(11, 4.5)
    curves, grid = figure.subplots(1, 2)
    points = np.full((len(GAMMAS), len(BETAS)), np.nan)
    for row in rows:
        gamma, beta = row["changes"]["gamma"], row["changes"]["star_beta"]
        points[GAMMAS.index(gamma), BETAS.index(beta)] = found = report.mean(row)[0]
        value = losses.focal_star(tf.constant(margin), gamma, beta)[0]
        curves.plot(margin, value, color="#1f77b4" if found > limit else "#dd8452", alpha=0.7)
    curves.plot(margin, losses.focal(tf.constant(margin), 2.0)[0], "k--", label="FL, γ = 2")
    curves.plot(margin, losses.cross_entropy(tf.constant(margin))[0], "k:", label="CE")
    curves.set(xlabel="x_t", ylabel="loss", ylim=(0, 5), title=f"FL*; blue: AP above {limit:.1f}")
    curves.legend()
    image = grid.imshow(points, cmap="viridis")
    for (row, column), found in np.ndenumerate(points):
        text = "–" if np.isnan(found) else f"{found:.1f}"
        grid.text(column, row, text, ha="center", va="center", color="white", fontweight="bold")
    grid.set(xticks=range(len(BETAS)), xticklabels=BETAS, yticks=range(len(GAMMAS)), yticklabels=GAMMAS)
    grid.set(xlabel="β", ylabel="γ", title=f"AP (focal loss {report.mean(focal)[0]:.1f})")
    figure.colorbar(image, ax=grid)
    return save_figure(figure, folder / "figure_7_grid.png")


def main() -> None:
    """Runs or collects the grid, then draws it."""
    study.main(STUDY)
    if not study.DRY_RUN.value:
        print(draw(Path(study.OUTPUT.value) / study.SCALE.value))


if __name__ == "__main__":
    run(main)
