"""Figure 4's distribution against sorting every loss, and what it should say."""

import numpy as np
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.config.config import AssignConfig
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.loss_distribution import LossDistribution, diagnose, loss_distribution
from retinanet_tf.training import run_directory


def batch(seed=0, images=2, anchors=4000, classes=5):
    rng = np.random.default_rng(seed)
    share = rng.uniform(size=(images, anchors))
    targets = np.where(share < 0.05, rng.integers(0, classes, share.shape), np.where(share > 0.9, -2, -1))
    return targets.astype(np.int32), rng.normal(-2, 2, (images, anchors, classes)).astype(np.float32)


def by_sorting(targets, logits, kind, gamma):
    """All examples' losses in float64, sorted: exact, and as large as the data."""
    y = np.where(np.arange(logits.shape[-1]) == targets[..., None], 1, -1)
    wanted = (y == (1 if kind == "foreground" else -1)) & (targets != -2)[..., None]
    margin = (y * logits.astype(np.float64))[wanted]
    losses = np.sort((1 + np.exp(margin)) ** -gamma * np.log1p(np.exp(-margin)))
    return np.arange(1, len(losses) + 1) / len(losses), np.cumsum(losses) / losses.sum()


@pytest.mark.parametrize("kind", ["foreground", "background"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_streaming_is_sorting(kind, gamma):
    batches = [batch(seed) for seed in range(3)]
    distribution = LossDistribution()
    for targets, logits in batches:
        distribution.update(targets, logits)
    fractions, expected = by_sorting(*(np.concatenate(values) for values in zip(*batches, strict=True)), kind, gamma)
    examples, loss = distribution.cumulative(kind, gamma)
    assert distribution.counts[kind].sum() == len(fractions)
    np.testing.assert_allclose(np.interp(fractions, examples, loss), expected, atol=2e-3)
    assert (examples[0], loss[0], examples[-1], loss[-1]) == (0, 0, 1, 1)


def test_focus_moves_the_background_loss_to_the_hardest_and_uniform_losses_lie_on_the_diagonal():
    """§5.1: the larger γ, the more of the background's loss lies in few hard examples."""
    distribution = LossDistribution()
    distribution.update(*batch())
    shares = [distribution.share_of_hardest("background", gamma, 0.05) for gamma in (0.0, 0.5, 1.0, 2.0)]
    assert shares == sorted(shares) and shares[-1] > 1.5 * shares[0]
    level = LossDistribution()
    level.update(np.full((1, 50), -1), np.full((1, 50, 3), -1.0, np.float32))
    assert level.share_of_hardest("background", 2.0, 0.3) == pytest.approx(0.3)


def test_extreme_margins_stay_in_and_nan_is_refused():
    distribution = LossDistribution()
    distribution.update(np.array([[0, -1]]), np.array([[[-1e9], [1e9]]], np.float32))
    assert distribution.counts["foreground"][0] == 1 and distribution.counts["background"][0] == 1
    with pytest.raises(InputError, match="diverged"):
        distribution.update(np.array([[0]]), np.array([[[np.nan]]]))
    with pytest.raises(InputError, match="no foreground example"):
        LossDistribution().cumulative("foreground", 0.0)


def test_a_gamma_that_leaves_no_loss_is_named():
    distribution = LossDistribution()
    distribution.update(np.array([[0, -1]]), np.array([[[5.0], [-5.0]]]))
    with pytest.raises(InputError, match="gamma=1000 is too large"):
        distribution.cumulative("foreground", 1000.0)


@pytest.mark.parametrize(
    ("gammas", "ids", "message"),
    [
        ([], [1, 2], r"gammas=\[\] must be a list of numbers from 0 up"),
        ([0.0, float("nan")], [1, 2], "gammas=.*nan"),
        ([-1.0], [1, 2], "gammas="),
        ([0.0], [1, 2, 3], "has category 3, which the model lacks"),
        ([0.0], [1, 7], "has category 2 .*, which .* doesn't have"),
    ],
)
def test_a_diagnosis_needs_the_categories_of_the_model(tmp_path, gammas, ids, message):
    config = rn.presets["mini"].replace(**{**TINY_NETWORK, "num_classes": 2})
    run_directory.start(tmp_path / "run", config, LabelMap([1, 2], ["a1", "a2"]), data="", validation="")
    (tmp_path / "val-00000-of-00001.tfrecord").touch()
    LabelMap(ids, [f"a{i}" for i in ids]).save(tmp_path / "labels.json")
    with pytest.raises(InputError, match=message):
        diagnose(tmp_path / "run", str(tmp_path / "val-*.tfrecord"), tmp_path / "out", gammas)
    assert not (tmp_path / "out").exists()


def test_a_model_over_a_dataset():
    """Counts of a stand-in model whose anchors and logits are known."""

    class Model:
        assign_config = AssignConfig()

        @staticmethod
        def anchors(images):
            return tf.constant([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 22]])

        def __call__(self, images, training):
            assert not training
            return {"class_logits": tf.fill((tf.shape(images)[0], 3, 4), -2.0)}

    truth = {"boxes": tf.constant([[[0.0, 0, 10, 10]]] * 2), "labels": tf.constant([[3]] * 2)}
    dataset = tf.data.Dataset.from_tensors((tf.zeros((2, 32, 32, 3)), truth)).repeat(5)
    distribution = loss_distribution(Model(), dataset, max_images=3)
    # A batch of two images and half of the next; the third anchor's IoU, 10/22, is ignored.
    assert distribution.counts["foreground"].sum() == 3
    assert distribution.counts["background"].sum() == 3 * 7
    summary = distribution.summary(points=3)
    assert summary["background"]["examples"] == 21
    np.testing.assert_allclose(summary["foreground"]["fraction_of_loss"]["2"], [0, 0.5, 1], atol=1e-9)
