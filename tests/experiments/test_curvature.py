"""The losses' slope and curvature where all scores are equal, beside what follows from their formulas."""

import pytest

from experiments.paper import curvature
from retinanet_tf.losses.classification import FocalLoss, FocalStarLoss

MANY = 1e9
"""Negatives per positive at which the best score is small and the limits hold."""


@pytest.mark.once
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_cross_entropys_minimum_is_the_weighted_share_of_positives(alpha):
    loss, negatives = FocalLoss(gamma=0.0, alpha=alpha), 1000.0
    best = curvature.at(loss, negatives, curvature.minimum(loss, negatives))
    total = alpha + (1 - alpha) * negatives
    assert best.probability == pytest.approx(alpha / total, rel=1e-6)
    assert best.curvature == pytest.approx(best.probability * (1 - best.probability) * total, rel=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_focal_losss_curvature_among_many_negatives(gamma, alpha):
    """There the positives' slope is α and the negatives' grows as p^(γ+1), whose derivative is (γ + 1) p^(γ+1)."""
    loss = FocalLoss(gamma=gamma, alpha=alpha)
    best = curvature.at(loss, MANY, curvature.minimum(loss, MANY))
    assert best.slope == pytest.approx(0.0, abs=1e-9)
    assert best.curvature == pytest.approx(alpha * (gamma + 1), rel=0.01)


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 1.0), (4.0, 0.0)])
def test_focal_loss_stars_curvature_among_many_negatives(gamma, beta):
    """The negatives' slope is σ(γ x - β) (eq. 11), so the curvature is α γ."""
    loss = FocalStarLoss(gamma=gamma, beta=beta, alpha=0.25)
    best = curvature.at(loss, MANY, curvature.minimum(loss, MANY))
    assert best.curvature == pytest.approx(0.25 * gamma, rel=0.01)
