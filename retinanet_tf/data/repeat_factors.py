"""Repeat-factor sampling: how often an epoch has each image, so that rare categories are seen more often.

Gupta, Dollár, Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019 (arXiv:1908.03195),
whose threshold of 0.001 is made for a hundred thousand images of 1,203 categories. The shuffle (`data.shuffle`) turns
the factors into an order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from retinanet_tf.data.records.index import ShardIndex
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.text import printable


@dataclass(frozen=True)
class RepeatFactors:
    """How often an epoch has each of N images, and why.

    threshold: t. median: of `shares`, what 'auto' makes of t. shares: by category id, the share f of the images that
    have an object of it. categories: by category id, max(1, √(t / f)). images: (N,) float64, the largest of its
    categories', 1 without an object.
    """

    threshold: float
    median: float
    shares: dict[int, float]
    categories: dict[int, float]
    images: np.ndarray

    def sentence(self, label_map: LabelMap) -> str:
        """What the threshold does, with the numbers of the rarest category."""
        rarest = min(self.shares, key=self.shares.__getitem__)
        name = printable(dict(zip(label_map.ids, label_map.unique_names, strict=True)).get(rarest, str(rarest)), 40)
        t = f"{self.threshold:.3g}{' (auto)' if self.threshold == self.median else ''}"
        if (self.images == 1.0).all():
            other = f"; auto would be {self.median:.3g}" if self.shares[rarest] < self.median else ""
            return (
                f"repeat_threshold={t} repeats no image: the rarest category, {name}, is in "
                f"{self.shares[rarest]:.2%} of them{other}."
            )
        repeated = sum(factor > 1.0 for factor in self.categories.values())
        return (
            f"repeat_threshold={t}: an epoch has {self.images.sum() / len(self.images):.2f} times the "
            f"images; {repeated} of {len(self.categories)} categories are repeated, {name} the most, "
            f"{self.categories[rarest]:.2f} times (it is in {self.shares[rarest]:.2%} of the images)."
        )


def repeat_factors(present: Sequence[np.ndarray], threshold: float | str) -> RepeatFactors:
    """The repeat factors of N images.

    >>> repeat_factors([np.array([0]), np.array([0]), np.array([]), np.array([0, 1])], 0.5).images.round(3).tolist()
    [1.0, 1.0, 1.0, 1.414]

    Args:
        present: of each image the ids of the categories that it has an object of (crowds don't count), each once.
        threshold: t, or 'auto': the median of the shares of the categories that occur.
    """
    lengths = [len(ids) for ids in present]
    ids, which = np.unique(np.concatenate([*present, np.zeros(0, np.int64)]), return_inverse=True)
    shares = np.bincount(which, minlength=len(ids)) / max(1, len(present))
    median = float(np.median(shares)) if len(ids) else 0.0
    t = median if threshold == "auto" else float(threshold)
    factors, images = np.maximum(1.0, np.sqrt(t / shares)), np.ones(len(present))
    np.maximum.at(images, np.repeat(np.arange(len(present)), lengths), factors[which])
    share_of, factor_of = (dict(zip(ids.tolist(), values.tolist(), strict=True)) for values in (shares, factors))
    return RepeatFactors(t, median, share_of, factor_of, images)


def with_repeats(index: ShardIndex, threshold: float | str) -> tuple[ShardIndex, RepeatFactors | None]:
    """The index with the factors of its records as `repeat`; None where the threshold is 0 or nothing has an object."""
    if not threshold or not index.boxes.any():
        return index, None
    factors = repeat_factors(list(index.present), threshold)
    return replace(index, repeat=factors.images), factors
