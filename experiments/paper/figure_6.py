"""Figure 6: the derivatives of cross entropy, focal loss and FL* with respect to x_t.

    python -m experiments.paper.figure_6

Exact at any scale: equations 9, 10 and 11. The paper's reading: effective settings have a small derivative as soon as
x_t > 0.
"""

import numpy as np

from experiments.paper import curves
from retinanet_tf.cli.main import run


def main() -> None:
    """Draws the figure."""
    x_t = np.linspace(-5, 5, 201)
    slopes = curves.points(curves.FL_STAR, x_t, curves.SLOPE)
    curves.write("figure_6", x_t, slopes, xlabel="x_t", ylabel="derivative", ylim=(-1.5, 0.2), title="derivatives")


if __name__ == "__main__":
    run(main)
