"""Figure 5: FL* beside cross entropy and focal loss, as functions of x_t = y·x.

    python -m experiments.paper.figure_5

Exact at any scale: it follows from equations 1, 4, 7 and 8 alone. The paper's reading: both forms of the focal loss
take loss away from well classified examples (x_t > 0).
"""

import numpy as np

from experiments.paper import curves
from retinanet_tf.cli.main import run


def main() -> None:
    """Draws the figure."""
    x_t = np.linspace(-5, 5, 201)
    values = curves.points(curves.FL_STAR, x_t, curves.VALUE)
    curves.write("figure_5", x_t, values, xlabel="x_t", ylabel="loss", ylim=(0, 5), title="FL* and FL")


if __name__ == "__main__":
    run(main)
