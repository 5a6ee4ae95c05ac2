"""Gradient and curvature of each loss where all scores are equal: why some bear a higher learning rate than others.

    python -m experiments.paper.curvature

Not in the paper. With one logit x for all anchors and classes, the loss per positive is L(x) = l(x, y = 1) +
negatives · l(x, y = -1). Before training it is at the prior π (section 4.1), where cross entropy is steep; while the
network learns how rare objects are it comes to the minimum of L, where focal loss has a curvature of about α (γ + 1):
its negatives' slope grows as p^(γ + 1). Gradient descent oscillates where rate times curvature is too large.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from experiments.paper import miniature, study
from experiments.paper.losses import LOSSES
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.losses.classification import ClassificationLoss, retinanet_losses

NEGATIVES = 20_000
"""Negative logits per positive anchor of the miniature: one anchor in a thousand is positive, of 20 classes."""
STEP = 1e-4
"""Distance of the logits whose slopes give the curvature."""


class Point(NamedTuple):
    """The loss at one logit for all."""

    probability: float
    loss: float
    slope: float
    curvature: float


def at(loss: ClassificationLoss, negatives: float, logit: float) -> Point:
    """The loss per positive where all logits are `logit`, and its derivatives, the second from two slopes."""
    # One positive and one background anchor of one class, at three logits.
    logits = tf.reshape(tf.constant(logit + STEP * np.array([-1.0, 0.0, 1.0]), tf.float64), (3, 1, 1))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = loss.per_anchor(tf.tile([[0, -1]], (3, 1)), tf.tile(logits, (1, 2, 1)))
        total = values[:, 0] + negatives * values[:, 1]
    slopes = tape.gradient(total, logits)[:, 0, 0]
    return Point(
        1.0 / (1.0 + np.exp(-logit)), float(total[1]), float(slopes[1]), float(slopes[2] - slopes[0]) / (2 * STEP)
    )


def minimum(loss: ClassificationLoss, negatives: float) -> float:
    """The logit of least loss, between -30 and 10, by bisection on the slope."""
    low, high = -30.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at(loss, negatives, middle).slope < 0 else (low, middle)
    return low


def main() -> None:
    """Prints the table and writes OUTPUT/mini/curvature.json."""
    found = {}
    print("| loss | slope at π | curvature at π | best constant score | curvature there |\n|---|---|---|---|---|")
    for label, (changes, _) in LOSSES.items():
        if "mining" in changes:
            continue
        config = miniature.BASE.replace(**changes)
        loss = retinanet_losses(config.loss)["class_logits"]
        prior = at(loss, NEGATIVES, -np.log(1 / config.model.prior - 1))
        best = at(loss, NEGATIVES, minimum(loss, NEGATIVES))
        found[label] = {"at_prior": prior._asdict(), "at_best_constant": best._asdict()}
        print(
            f"| {label} | {prior.slope:.3g} | {prior.curvature:.3g} | {best.probability:.2g} | {best.curvature:.2f} |"
        )
    folder = Path(study.OUTPUT.value) / "mini"
    files.make_folder(folder, "--output")
    files.write_json(folder / "curvature.json", {"negatives_per_positive": NEGATIVES, "losses": found})


if __name__ == "__main__":
    run(main)
