"""The paper's diagnosis of a trained model: which examples carry the loss (Figure 4, §5.1).

For every γ the loss of a binary problem is a falling function of its margin x_t alone. So one histogram of margins, a
few kilobytes for 10^7 examples or any other number, gives the cumulative distribution of the loss at every γ, chosen
before or afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from retinanet_tf.detection import assignment as targets
from retinanet_tf.errors import InputError
from retinanet_tf.losses.classification import focal

FIGURE_4_GAMMAS = (0.0, 0.5, 1.0, 2.0)
_LIMIT = 100.0
_CELLS_PER_UNIT = 128
_CELLS = int(2 * _LIMIT * _CELLS_PER_UNIT)


class LossDistribution:
    """Counts margins of foreground and background examples as they come.

    An example is one of the K binary problems of a counted anchor: foreground (y = 1) where the class is the anchor's
    own, background (y = −1) otherwise. Margins beyond ±100 count as ±100.
    """

    def __init__(self) -> None:
        self.counts = {name: np.zeros(_CELLS, np.int64) for name in ("foreground", "background")}

    def update(self, class_targets: np.ndarray, class_logits: np.ndarray) -> None:
        """Adds a batch: class targets `(B, A)` (0…K−1, −1 background, −2 ignored) and logits `(B, A, K)`.

        Raises:
          InputError: logits that are not finite; they have no place in a distribution.
        """
        class_targets, class_logits = np.asarray(class_targets), np.asarray(class_logits)
        if not np.isfinite(class_logits).all():
            raise InputError("class_logits holds NaN or infinite values: the model has diverged; take an earlier one.")
        cells = _cell(-class_logits.astype(np.float32))
        every = np.bincount(cells[class_targets != targets.IGNORED].ravel(), minlength=_CELLS)
        image, anchor = np.nonzero(class_targets >= 0)
        own = (image, anchor, class_targets[image, anchor])
        self.counts["background"] += every - np.bincount(cells[own], minlength=_CELLS)
        self.counts["foreground"] += np.bincount(_cell(class_logits[own].astype(np.float32)), minlength=_CELLS)

    def merge(self, other: "LossDistribution") -> None:
        """Adds what another one, of another part of the data, has counted."""
        for name, counts in other.counts.items():
            self.counts[name] += counts

    def cumulative(self, kind: str, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """One curve of Figure 4.

        Args:
          kind: 'foreground' or 'background'.
          gamma: γ of the focal loss; 0 is cross entropy. α cancels out.

        Returns:
          Float64 arrays that begin at 0 and end at 1: the fraction of the examples, those of lowest loss first, and
          the fraction of the whole loss that they carry.

        Raises:
          InputError: no example of this kind was seen.
        """
        counts = self.counts[kind][::-1]
        if not counts.any():
            raise InputError(f"There is no {kind} example to draw a distribution of; was every image empty?")
        filled = np.flatnonzero(counts)
        margins = (_CELLS - 1 - filled + 0.5) / _CELLS_PER_UNIT - _LIMIT
        losses = counts[filled] * focal(tf.constant(margins, tf.float64), gamma)[0].numpy()
        shares = [np.concatenate([[0.0], np.cumsum(part)]) for part in (counts[filled].astype(np.float64), losses)]
        return shares[0] / shares[0][-1], shares[1] / shares[1][-1]

    def share_of_hardest(self, kind: str, gamma: float, fraction: float) -> float:
        """The share of the loss that the hardest `fraction` of the examples carries.

        §5.1 reads Figure 4 so: "roughly 20% of the hardest positive samples account for roughly half of the positive
        loss" at γ = 0.
        """
        examples, loss = self.cumulative(kind, gamma)
        return float(1.0 - np.interp(1.0 - fraction, examples, loss))

    def summary(self, gammas: Sequence[float] = FIGURE_4_GAMMAS, points: int = 201) -> dict:
        """Figure 4 as plain numbers, for a JSON file: curves at equal steps of the examples' fraction."""
        fractions = np.linspace(0.0, 1.0, points)
        result: dict[str, Any] = {"fraction_of_examples": fractions.tolist()}
        for kind, counts in self.counts.items():
            curves = {f"{gamma:g}": np.interp(fractions, *self.cumulative(kind, gamma)).tolist() for gamma in gammas}
            result[kind] = {"examples": int(counts.sum()), "fraction_of_loss": curves}
        return result


def loss_distribution(
    model: keras.Model, dataset: Iterable[tuple[tf.Tensor, Mapping[str, tf.Tensor]]], max_images: int | None = None
) -> LossDistribution:
    """Runs a model over a dataset and counts its examples' margins.

    Args:
      model: a `RetinaNet`.
      dataset: batches of images `(B, H, W, 3)` and {"boxes": `(B, M, 4)`, "labels": `(B, M)`}, as for `model.fit`.
      max_images: stop after the batch that reaches this many images; None takes them all.
    """

    @tf.function(reduce_retracing=True)
    def outputs(images, truth):
        assigned = targets.assign(model.anchors(images), truth["boxes"], truth["labels"], model.assign_config)
        return assigned.class_targets, model(images, training=False)["class_logits"]

    distribution, seen = LossDistribution(), 0
    with tqdm(total=max_images, unit="image", desc="loss distribution") as progress:
        for images, truth in dataset:
            class_targets, class_logits = outputs(images, truth)
            distribution.update(class_targets.numpy(), tf.cast(class_logits, tf.float32).numpy())
            seen += len(images)
            progress.update(len(images))
            if max_images is not None and seen >= max_images:
                break
    return distribution


def _cell(margins: np.ndarray) -> np.ndarray:
    return np.clip((margins + _LIMIT) * _CELLS_PER_UNIT, 0, _CELLS - 1).astype(np.int32)
