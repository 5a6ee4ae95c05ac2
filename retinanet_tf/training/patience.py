"""Patience: whether the evaluations of a job have stopped getting better."""

from collections.abc import Sequence

ZERO_FACTOR = 5
"""A detector may begin with AP 0 for a while: it has this many times the patience to leave it."""


def is_exhausted(values: Sequence[float], patience: int) -> bool:
    """Whether `patience` evaluations in a row brought no higher AP than the best before them.

    >>> is_exhausted([0.3, 0.3], 2), is_exhausted([0.3, 0.3, 0.3], 2), is_exhausted([0.0, 0.0, 0.0, 0.1], 2)
    (False, True, False)

    Args:
        values: AP of all evaluations that count, the oldest first.
        patience: evaluations, above 0.
    """
    best = max(values, default=0.0)
    if best <= 0:
        return len(values) >= ZERO_FACTOR * patience
    return len(values) - 1 - list(values).index(best) >= patience
