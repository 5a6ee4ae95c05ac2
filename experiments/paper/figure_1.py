"""Figure 1: the focal loss −(1 − p_t)^γ log p_t against p_t for γ in {0, 0.5, 1, 2, 5}; γ = 0 is cross entropy.

    python -m experiments.paper.figure_1

Exact at any scale: it follows from equation 4 alone. The paper's reading: well classified examples (p_t > 0.5) lose
less and less of the total the larger γ is.
"""

from functools import partial

import numpy as np

from experiments.paper import curves
from retinanet_tf.cli.main import run
from retinanet_tf.losses import classification as losses

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)


def main() -> None:
    """Draws the figure."""
    p_t = np.linspace(0.005, 0.999, 200)
    lines = {f"γ = {gamma:g}": partial(losses.focal, gamma=gamma) for gamma in GAMMAS}
    values = curves.points(lines, np.log(p_t / (1 - p_t)), curves.VALUE)
    curves.write(
        "figure_1", p_t, values, xlabel="probability of the true class p_t", ylabel="loss", ylim=(0, 5), title="FL"
    )


if __name__ == "__main__":
    run(main)
