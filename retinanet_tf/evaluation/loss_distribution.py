"""Loss distribution of a trained model: which examples carry the loss (Figure 4, §5.1), as numbers and as a plot.

For every γ the loss of a binary problem is a falling function of its margin x_t alone. So one histogram of margins, a
few kilobytes however many examples there are, gives the cumulative distribution of the loss at every γ.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from retinanet_tf import files
from retinanet_tf.data import pipeline
from retinanet_tf.data.records.reader import labels_beside
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection import assignment
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.source import category_ids
from retinanet_tf.inference.checkpoint import file_of, load_config, load_model
from retinanet_tf.losses.classification import focal
from retinanet_tf.visualize import new_figure, save_figure

FIGURE_4_GAMMAS = (0.0, 0.5, 1.0, 2.0)
_LIMIT = 100.0
_CELLS_PER_UNIT = 128
_CELLS = int(2 * _LIMIT * _CELLS_PER_UNIT)


class LossDistribution:
    """Histograms of the margins of foreground and background examples, filled batch by batch.

    An example is one of the K binary problems of an anchor that isn't ignored: foreground (y = 1) where the class is
    the anchor's target, background (y = −1) otherwise. Margins beyond ±100 count as ±100.
    """

    def __init__(self) -> None:
        self.counts = {name: np.zeros(_CELLS, np.int64) for name in ("foreground", "background")}

    def update(self, class_targets: np.ndarray, class_logits: np.ndarray) -> None:
        """Adds a batch: class targets `(B, A)` (0…K−1, −1 background, −2 ignored) and logits `(B, A, K)`.

        Raises:
            InputError: a logit is NaN or infinite.
        """
        class_targets, class_logits = np.asarray(class_targets), np.asarray(class_logits)
        if not np.isfinite(class_logits).all():
            raise InputError("class_logits holds NaN or infinite values: the model has diverged; take an earlier one.")
        cells = _cell(-class_logits.astype(np.float32))
        every = np.bincount(cells[class_targets != assignment.IGNORED].ravel(), minlength=_CELLS)
        image, anchor = np.nonzero(class_targets >= 0)
        positive = (image, anchor, class_targets[image, anchor])
        self.counts["background"] += every - np.bincount(cells[positive], minlength=_CELLS)
        self.counts["foreground"] += np.bincount(_cell(class_logits[positive].astype(np.float32)), minlength=_CELLS)

    def cumulative(self, kind: str, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """One curve of Figure 4.

        Args:
            kind: 'foreground' or 'background'.
            gamma: γ of the focal loss; 0 is cross entropy. α, one for all classes, cancels out.

        Returns:
            Float64 arrays from 0 to 1: the fraction of the examples, those of lowest loss first, and the fraction of
            the whole loss that they carry.

        Raises:
            InputError: no example of this kind was counted, or the loss of all is 0.
        """
        counts = self.counts[kind][::-1]
        if not counts.any():
            raise InputError(f"there is no {kind} example to draw a distribution of; was every image empty?")
        filled = np.flatnonzero(counts)
        margins = (_CELLS - 1 - filled + 0.5) / _CELLS_PER_UNIT - _LIMIT
        losses = counts[filled] * focal(tf.constant(margins, tf.float64), gamma)[0].numpy()
        sums = [np.concatenate([[0.0], np.cumsum(values)]) for values in (counts[filled].astype(np.float64), losses)]
        if not sums[1][-1]:
            raise InputError(f"gamma={gamma:g} is too large: the loss of every {kind} example is 0.")
        return sums[0] / sums[0][-1], sums[1] / sums[1][-1]

    def share_of_hardest(self, kind: str, gamma: float, fraction: float) -> float:
        """The share of the loss that the hardest `fraction` of the examples carries; §5.1 has it for a fifth."""
        examples, loss = self.cumulative(kind, gamma)
        return float(1.0 - np.interp(1.0 - fraction, examples, loss))

    def summary(self, gammas: Sequence[float] = FIGURE_4_GAMMAS, points: int = 201) -> dict:
        """Figure 4 as plain numbers, for a JSON file: curves at equal steps of the fraction of the examples."""
        fractions = np.linspace(0.0, 1.0, points)
        result: dict[str, Any] = {"fraction_of_examples": fractions.tolist()}
        for kind, counts in self.counts.items():
            curves = {f"{gamma:g}": np.interp(fractions, *self.cumulative(kind, gamma)).tolist() for gamma in gammas}
            result[kind] = {"examples": int(counts.sum()), "fraction_of_loss": curves}
        return result


def loss_distribution(
    model: keras.Model, dataset: Iterable[tuple[tf.Tensor, Mapping[str, tf.Tensor]]], max_images: int | None = None
) -> LossDistribution:
    """Runs a model over a dataset and counts the margins of its examples.

    Args:
        model: a `RetinaNet`.
        dataset: batches of images `(B, H, W, 3)` and {"boxes": `(B, M, 4)`, "labels": `(B, M)`}, as for `model.fit`.
        max_images: look at the first so many images; None takes them all.
    """

    @tf.function(reduce_retracing=True)
    def outputs(images, truth):
        assigned = assignment.assign(model.anchors(images), truth["boxes"], truth["labels"], model.assign_config)
        return assigned.class_targets, model(images, training=False)["class_logits"]

    distribution, images_done = LossDistribution(), 0
    with tqdm(total=max_images, unit="image", desc="loss distribution") as progress:
        for images, truth in dataset:
            if max_images is not None:
                left = max_images - images_done
                images, truth = images[:left], {name: value[:left] for name, value in truth.items()}
            class_targets, class_logits = outputs(images, truth)
            distribution.update(class_targets.numpy(), tf.cast(class_logits, tf.float32).numpy())
            images_done += len(images)
            progress.update(len(images))
            if images_done == max_images:
                break
    return distribution


def figure_4(
    distribution: LossDistribution, path: str | os.PathLike, gammas: Sequence[float] = FIGURE_4_GAMMAS
) -> Path:
    """Plots the cumulative normalised loss of foreground and background examples; returns the picture's path."""
    figure = new_figure(10, 4)
    for axes, (kind, counts) in zip(figure.subplots(1, 2), distribution.counts.items(), strict=True):
        for gamma in gammas:
            axes.plot(*distribution.cumulative(kind, gamma), label=f"γ = {gamma:g}")
        axes.set(
            title=f"{kind}: {counts.sum():,} examples",
            xlabel="fraction of the examples, easiest first",
            ylabel="fraction of their loss",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.legend(loc="upper left")
    return save_figure(figure, path)


def _cell(margins: np.ndarray) -> np.ndarray:
    return np.clip((margins + _LIMIT) * _CELLS_PER_UNIT, 0, _CELLS - 1).astype(np.int32)


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
    """Runs a model over shards, writes NAME.png and NAME.json into the folder `output`, and prints a summary.

    Raises:
        InputError: unreadable input, objects of categories that the model lacks, or γ that aren't numbers from 0 up.
    """
    if not gammas or not all(math.isfinite(gamma) and gamma >= 0 for gamma in gammas):
        raise InputError(f"gammas={list(gammas)} must be a list of numbers from 0 up.")
    config, label_map = load_config(checkpoint), LabelMap.load(file_of(checkpoint, "labels.json"))
    found = labels_beside(data)
    category_ids(label_map, found, data)
    if unknown := sorted(set(found.ids) - set(label_map.ids)):
        raise InputError(
            f"{data} has category {unknown[0]}, which the model lacks; take data of the model's categories."
        )
    files.make_folder(output)
    model, sizes = load_model(checkpoint), pipeline.canvas_arguments(config)
    batches = pipeline.load(data, training=False, label_map=label_map, batch_size=batch_size, **sizes)
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
