"""Loss distribution of a trained model, for `retinanet diagnose` and for Figure 4's script."""

import os
from collections.abc import Sequence
from pathlib import Path

from retinanet_tf import files
from retinanet_tf.data import pipeline
from retinanet_tf.evaluation.loss_distribution import LossDistribution, figure_4, loss_distribution
from retinanet_tf.inference.checkpoint import load_config, load_model


def diagnose(
    checkpoint: str | os.PathLike,
    data: str,
    output: str | os.PathLike,
    gammas: Sequence[float],
    *,
    name: str = "loss_distribution",
    limit: int | None = None,
    batch_size: int = 4,
) -> LossDistribution:
    """Runs a model over shards, writes NAME.png and NAME.json into the folder `output`, and prints a summary."""
    files.make_folder(output)
    config, model = load_config(checkpoint), load_model(checkpoint)
    batches = pipeline.load(
        data,
        training=False,
        **pipeline.canvas_arguments(config),
        batch_size=batch_size,
    )
    distribution = loss_distribution(model, batches, limit)
    picture, points = Path(output) / f"{name}.png", Path(output) / f"{name}.json"
    figure_4(distribution, picture, gammas)
    files.write_json(points, distribution.summary(gammas))
    for kind in ("foreground", "background"):
        shares = [distribution.share_of_hardest(kind, gamma, 0.2) for gamma in gammas]
        text = ", ".join(f"γ = {gamma:g}: {share:.0%}" for gamma, share in zip(gammas, shares, strict=True))
        print(f"The hardest fifth of the {kind} examples carries of their loss: {text}.")
    print(f"{picture}, {points}")
    return distribution
