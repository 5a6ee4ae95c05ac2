"""The losses as theorems: the paper's statements, its derivatives, other implementations, the extremes."""

import math
import re
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.config import Config, LossConfig
from retinanet_tf.errors import InputError
from retinanet_tf.losses import classification as losses
from tests import oracles

RNG = np.random.default_rng(0)
MARGINS = tf.constant(np.linspace(-12, 12, 241), tf.float64)
GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 3.5, 5.0)
BINARY = {
    "ce": losses.cross_entropy,
    **{f"focal {gamma}": partial(losses.focal, gamma=gamma) for gamma in GAMMAS},
    **{f"star {g} {b}": partial(losses.focal_star, gamma=g, beta=b) for g, b in ((2.0, 1.0), (4.0, 0.0), (0.5, -2.0))},
    "hinge": losses.hinge,
}
CLASSES = [
    losses.CrossEntropyLoss(0.75),
    losses.FocalLoss(),
    losses.FocalLoss(0.5, 0.5),
    losses.FocalStarLoss(),
    losses.HingeLoss(),
]
ALPHAS = (0.25, 0.0, 0.9, 0.5, 1.0, 0.25, 0.75)
"""One for each class of `problem`."""
CLASSES += [
    losses.CrossEntropyLoss(ALPHAS, "cross_entropy_by_class"),
    losses.FocalLoss(2.0, ALPHAS, "focal_by_class"),
    losses.FocalStarLoss(2.0, 1.0, ALPHAS, "focal_star_by_class"),
    losses.HingeLoss(0.5, ALPHAS, "hinge_by_class"),
]


def margin_of(p):
    return tf.constant(np.log(p / (1 - np.asarray(p))), tf.float64)


def problem(images=2, anchors=50, classes=7, positives=0.1, ignored=0.1, spread=3.0):
    """Random class targets and logits."""
    share = RNG.uniform(size=(images, anchors))
    targets = np.where(share < positives, RNG.integers(0, classes, share.shape), -1)
    targets = np.where(share > 1 - ignored, -2, targets).astype(np.int32)
    return tf.constant(targets), tf.constant(RNG.normal(0, spread, (images, anchors, classes)).astype(np.float32))


def value_and_gradient(loss, targets, logits):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = loss(targets, logits)
    return values, tape.gradient(values, logits)


# The paper's statements.


def test_gamma_0_is_cross_entropy_gradient_included():
    for ours, theirs in zip(losses.focal(MARGINS, 0.0), losses.cross_entropy(MARGINS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(losses.focal(MARGINS, 1e-9)[0], losses.cross_entropy(MARGINS)[0], rtol=1e-6)


def test_the_statements_of_section_3_2():
    """γ = 2: 100× lower at p_t = 0.9, 1000× at ≈ 0.968, at most 4× for p_t ≤ .5."""

    def ratio(p):
        return (losses.cross_entropy(margin_of(p))[0] / losses.focal(margin_of(p), 2.0)[0]).numpy()

    assert ratio(0.9) == pytest.approx(100)
    assert ratio(0.968) == pytest.approx(1000, rel=0.03)
    assert ratio(np.linspace(0.001, 0.5, 100)).max() <= 4 + 1e-9
    assert ratio(0.5) == pytest.approx(4)


def test_alpha_balances_the_two_kinds():
    """α = 1 leaves the foreground alone, α = 0 the background, and α multiplies what is left."""
    targets, logits = problem(ignored=0.0)
    whole = losses.FocalLoss(alpha=0.5).per_anchor(targets, logits)
    only_foreground = losses.FocalLoss(alpha=1.0).per_anchor(targets, logits)
    only_background = losses.FocalLoss(alpha=0.0).per_anchor(targets, logits)
    np.testing.assert_allclose(2 * whole, only_foreground + only_background, rtol=1e-5)
    assert not only_foreground.numpy()[targets.numpy() == -1].any()
    quarter = losses.FocalLoss(alpha=0.25).per_anchor(targets, logits)
    np.testing.assert_allclose(quarter, 0.25 * only_foreground + 0.75 * only_background, rtol=1e-5)


def test_each_class_has_its_alpha_in_both_kinds():
    """By hand: with γ = 0 every binary problem costs ln 2 at logit 0, times α or 1 − α of its class."""
    loss = losses.FocalLoss(gamma=0.0, alpha=(0.25, 0.75))
    targets, logits = tf.constant([[1, 0, -1, -2]]), tf.zeros((1, 4, 2))
    by_hand = np.array([0.75 + 0.75, 0.25 + 0.25, 0.75 + 0.25, 0.0]) * math.log(2)
    np.testing.assert_allclose(loss.per_anchor(targets, logits)[0], by_hand, rtol=1e-6)
    for equal, targets, logits in ((0.25, *problem()), (0.9, *problem())):
        one, each = (losses.FocalLoss(alpha=alpha) for alpha in (equal, [equal] * 7))
        np.testing.assert_array_equal(one.per_anchor(targets, logits), each.per_anchor(targets, logits))


def test_focal_star_tends_to_a_straight_ramp():
    """As γ grows, FL* with β = 0 becomes max(0, −x_t): its slope a step from −1 to 0 at the decision boundary."""
    margins = tf.constant([-3.0, -1.0, -0.1, 0.1, 1.0, 3.0], tf.float64)
    values, slopes = losses.focal_star(margins, 400.0, 0.0)
    np.testing.assert_allclose(values, np.maximum(-margins, 0), atol=1e-3)
    np.testing.assert_allclose(slopes, [-1, -1, -1, 0, 0, 0], atol=1e-6)


def test_focal_star_with_gamma_1_and_beta_0_is_cross_entropy():
    for ours, theirs in zip(losses.focal_star(MARGINS, 1.0, 0.0), losses.cross_entropy(MARGINS), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_hinge_is_zero_above_its_threshold():
    p = np.linspace(0.01, 0.99, 99)
    values, slopes = losses.hinge(margin_of(p), 0.4)
    np.testing.assert_allclose(values, np.maximum(0.4 - p, 0), atol=1e-12)
    assert not slopes.numpy()[p > 0.4].any()


# Derivatives.


@pytest.mark.parametrize("name", BINARY)
def test_float32_is_as_exact_as_float32_can_be(name):
    """Against float64, relative to the result where it isn't rounded to nothing."""
    margins = tf.constant(np.linspace(-30, 30, 4001), tf.float32)
    for ours, exact in zip(BINARY[name](margins), BINARY[name](tf.cast(margins, tf.float64)), strict=True):
        rough = 5e-6 if name.startswith("focal") else 2e-6
        np.testing.assert_allclose(ours, exact, rtol=rough, atol=1e-7 if name == "hinge" else 1e-36)


def test_the_derivatives_of_appendix_b():
    """Eqs. 9, 10, 11 for both labels, written with y, p_t and p*_t as the paper does."""
    x = MARGINS.numpy()
    for y in (1, -1):
        p_t = 1 / (1 + np.exp(-y * x))
        margin = tf.constant(y * x)
        np.testing.assert_allclose(y * losses.cross_entropy(margin)[1], y * (p_t - 1), atol=1e-12)
        for gamma in GAMMAS:
            expected = y * (1 - p_t) ** gamma * (gamma * p_t * np.log(p_t) + p_t - 1)
            np.testing.assert_allclose(y * losses.focal(margin, gamma)[1], expected, atol=1e-10)
        p_star = 1 / (1 + np.exp(-(2 * y * x + 1)))
        np.testing.assert_allclose(y * losses.focal_star(margin, 2.0, 1.0)[1], y * (p_star - 1), atol=1e-12)


@pytest.mark.parametrize("name", BINARY)
def test_slopes_are_the_values_differences(name):
    """Central differences in float64; the hinge's corner lies off the grid."""
    step, margins = 1e-5, MARGINS + 0.0123
    values = [BINARY[name](margins + sign * step)[0] for sign in (1, -1)]
    np.testing.assert_allclose(BINARY[name](margins)[1], (values[0] - values[1]) / (2 * step), atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("loss", CLASSES, ids=lambda loss: loss.name)
def test_gradients_of_the_sum_over_anchors(loss):
    """The tape's gradient of the Keras loss is the slope of every (anchor, class) pair; none where ignored."""
    targets, logits = problem()
    _, gradient = value_and_gradient(loss.call, targets, logits)
    y = np.where(np.arange(7) == targets.numpy()[..., None], 1.0, -1.0)
    alpha_t = np.where(y > 0, loss.alpha, 1 - np.array(loss.alpha))
    expected = alpha_t * y * loss.binary(tf.constant(y * logits.numpy()))[1].numpy()
    expected[targets.numpy() == -2] = 0.0
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.slow
def test_a_second_derivative_is_refused_by_name():
    targets, logits = problem()
    with tf.GradientTape() as outer:
        outer.watch(logits)
        _, first = value_and_gradient(losses.FocalLoss().call, targets, logits)
    with pytest.raises(InputError, match="first derivative only"):
        outer.gradient(first, logits)


# Other implementations.


def onehot(targets, classes=7):
    return tf.one_hot(targets, classes)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, 0.75), (0.5, 0.5), (2.0, 0.25), (5.0, 0.1)])
def test_it_is_keras_binary_focal_crossentropy(gamma, alpha):
    targets, logits = problem(ignored=0.0)
    keras_loss = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, alpha=alpha, gamma=gamma, from_logits=True, reduction="none"
    )
    theirs = 7 * keras_loss(onehot(targets), logits)
    np.testing.assert_allclose(losses.FocalLoss(gamma, alpha).per_anchor(targets, logits), theirs, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.5, 0.5), (2.0, 0.25), (5.0, 0.1)])
def test_it_is_tensorflow_addons_sigmoid_focal_crossentropy(gamma, alpha):
    addons = pytest.importorskip("tensorflow_addons")
    targets, logits = problem(ignored=0.0)
    theirs = addons.losses.sigmoid_focal_crossentropy(onehot(targets), logits, alpha, gamma, from_logits=True)
    np.testing.assert_allclose(losses.FocalLoss(gamma, alpha).per_anchor(targets, logits), theirs, rtol=1e-4, atol=1e-6)


# Extremes.


EXTREMES = [-1e4, -200.0, -90.0, -17.0, 0.0, 17.0, 90.0, 200.0, 1e4]


@pytest.mark.parametrize("name", BINARY)
def test_values_and_slopes_are_finite_at_the_extremes(name):
    """Margins to ±1e4 in float32, for every γ; nothing costs a lot where p_t is near 1, or has slope there."""
    values, slopes = BINARY[name](tf.constant(EXTREMES))
    assert np.isfinite(values).all() and np.isfinite(slopes).all()
    assert abs(float(values[-1])) < 1e-6 and abs(float(slopes[-1])) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_losses_are_finite_at_the_extremes_in_every_precision(gamma, dtype):
    """Both labels through the fused kernel; in the limit half of 1e4 with α = 0.5."""
    logits = tf.cast(tf.constant(EXTREMES)[None, :, None], dtype)
    loss = losses.FocalLoss(gamma, 0.5)
    for target, wrong, right in ((0, 0, -1), (-1, -1, 0)):
        values, gradient = value_and_gradient(loss.per_anchor, tf.fill((1, len(EXTREMES)), target), logits)
        assert gradient.dtype == logits.dtype and values.dtype == tf.float32
        assert np.isfinite(values).all() and np.isfinite(tf.cast(gradient, tf.float32)).all()
        assert float(values[0, wrong]) == pytest.approx(5e3, rel=1e-2) and abs(float(values[0, right])) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("loss", CLASSES, ids=lambda loss: loss.name)
def test_eager_graph_and_half_precision_agree(loss):
    targets, logits = problem(spread=2.0)
    eager = value_and_gradient(loss.call, targets, logits)
    graph = tf.function(partial(value_and_gradient, loss.call))(targets, logits)
    for a, b in zip(eager, graph, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    half = tf.cast(tf.cast(logits, tf.bfloat16), tf.float32)
    np.testing.assert_allclose(loss.call(targets, tf.cast(half, tf.bfloat16)), loss.call(targets, half), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", CLASSES, ids=lambda loss: loss.name)
def test_xla_computes_the_same_losses(loss):
    """As XLA compiles a whole training step: values and gradients are those of eager execution."""
    targets, logits = problem()
    compiled = tf.function(lambda logits: value_and_gradient(loss.per_anchor, targets, logits), jit_compile=True)
    for ours, theirs in zip(compiled(logits), value_and_gradient(loss.per_anchor, targets, logits), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "XLA"])
@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, 0.75), (0.5, 0.5), (2.0, 0.25), (2.0, ALPHAS)])
def test_the_focal_loss_is_the_naive_one_however_it_is_executed(gamma, alpha, jit_compile):
    """Losses and gradient, with NaN at ignored anchors, which have neither."""
    targets, logits = (value.numpy() for value in problem())
    logits[targets == -2] = np.nan
    run = partial(value_and_gradient, losses.FocalLoss(gamma, alpha).per_anchor)
    if jit_compile is not None:
        run = tf.function(run, jit_compile=jit_compile)
    expected = oracles.focal_loss(targets, logits, gamma, alpha)
    for ours, naive in zip(run(tf.constant(targets), tf.constant(logits)), expected, strict=True):
        np.testing.assert_allclose(ours, naive, rtol=2e-5, atol=1e-6)


def test_no_anchors_have_no_loss():
    targets, logits = tf.zeros((2, 0), tf.int32), tf.zeros((2, 0, 5))
    values, gradient = value_and_gradient(losses.FocalLoss().call, targets, logits)
    assert values.numpy().tolist() == [0.0, 0.0] and gradient.shape == (2, 0, 5)


# Configuration.


@pytest.mark.parametrize("loss", CLASSES, ids=lambda loss: loss.name)
def test_classes_survive_serialisation(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    targets, logits = problem()
    np.testing.assert_array_equal(again(targets, logits), loss(targets, logits))
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: losses.FocalLoss(gamma=-0.1), "gamma=-0.1"),
        (lambda: losses.FocalLoss(alpha=1.5), "alpha=1.5"),
        (lambda: losses.FocalStarLoss(gamma=0.0), "gamma=0.0"),
        (lambda: losses.HingeLoss(threshold=0.0), "hinge_threshold=0.0"),
        (lambda: losses.SmoothL1Loss(beta=-1.0), "box_beta=-1.0"),
        (lambda: losses.L1Loss(weight=-2.0), "box_weight=-2.0"),
        # NaN is neither below nor above a limit.
        (lambda: losses.FocalLoss(gamma=math.nan), "gamma=nan"),
        (lambda: losses.FocalLoss(gamma=math.inf), "gamma=inf"),
        (lambda: losses.FocalLoss(alpha=math.nan), "alpha=nan"),
        (lambda: losses.HingeLoss(alpha=[0.5, 1.5]), "alpha=1.5 must lie"),
        (lambda: losses.FocalLoss(alpha=[]), "alpha=.. must be of type float"),
        (lambda: losses.FocalLoss("2"), "gamma='2' must be of type float"),
        (lambda: losses.CrossEntropyLoss("auto"), "alpha='auto' must be of type float"),
        (lambda: losses.SmoothL1Loss(None), "box_beta=None must be of type float"),
        (lambda: losses.FocalLoss(alpha=[0.5]).per_anchor(*problem()), "alpha has 1 numbers for 7 classes"),
        (lambda: losses.FocalStarLoss(gamma=math.nan), "gamma=nan"),
        (lambda: losses.FocalStarLoss(beta=math.inf), "star_beta=inf"),
        (lambda: losses.HingeLoss(threshold=math.nan), "hinge_threshold=nan"),
        (lambda: losses.SmoothL1Loss(beta=math.nan), "box_beta=nan"),
        (lambda: losses.GIoULoss(weight=math.nan), "box_weight=nan"),
    ],
)
def test_what_is_out_of_range_is_refused(make, culprit):
    with pytest.raises(InputError, match=culprit):
        make()


@pytest.mark.parametrize("targets", [(2, 9, 1), (1, 9), (2, 1), (2, 8), (2, 9, 5), (9,)])
def test_targets_of_another_shape_are_named(targets):
    """Those that broadcast would give a number, a wrong one."""
    with pytest.raises(InputError, match=re.escape(f"class targets have shape {targets} and logits (2, 9, 5)")):
        losses.FocalLoss()(tf.zeros(targets, tf.int32), tf.zeros((2, 9, 5)))


def test_a_changed_gamma_counts_from_the_next_call_on():
    targets, logits = problem()
    loss = losses.FocalLoss(2.0, 0.5)
    loss(targets, logits)
    loss.gamma, loss.alpha = 0.0, 0.75
    np.testing.assert_allclose(loss(targets, logits), losses.CrossEntropyLoss(0.75)(targets, logits), rtol=1e-6)
    loss.alpha = list(ALPHAS)
    np.testing.assert_allclose(loss(targets, logits), losses.CrossEntropyLoss(ALPHAS)(targets, logits), rtol=1e-6)


STAR, HINGE = {"classification": "focal_star"}, {"classification": "hinge"}


@pytest.mark.parametrize(
    ("output", "changes", "by_hand"),
    [
        ("class_logits", {}, 0.75 * 0.75**2 * math.log(4)),
        ("class_logits", {"gamma": 1.0, "alpha": 0.4}, 0.6 * 0.75 * math.log(4)),
        ("class_logits", {"class_alpha": "0.4"}, 0.6 * 0.75**2 * math.log(4)),
        ("class_logits", {"classification": "cross_entropy"}, 0.75 * math.log(4)),
        ("class_logits", STAR, 0.75 * math.log(1 + 9 / math.e) / 2),
        ("class_logits", {**STAR, "gamma": 4.0, "star_beta": 0.0, "alpha": 0.0}, math.log(1 + 81) / 4),
        ("class_logits", HINGE, 0.75 * 0.25),
        ("class_logits", {**HINGE, "hinge_threshold": 0.3, "class_alpha": "0"}, 0.05),
        ("box_deltas", {}, 0.5 - 0.055),
        ("box_deltas", {"box_beta": 1.0, "box_weight": 3.0}, 3 * 0.5**3),
        ("box_deltas", {"box": "l1"}, 0.5),
        ("box_deltas", {"box": "l1", "box_weight": 2.0}, 1.0),
        ("box_deltas", {"box": "giou"}, 1 - 1 / 3),
        ("box_deltas", {"box": "giou", "box_weight": 2.0}, 2 - 2 / 3),
    ],
    ids=str,
)
def test_the_configuration_chooses_the_losses(output, changes, by_hand):
    """A background anchor of foreground probability 3/4, so x_t = −ln 3; a positive half of its side beside its box."""
    case = {
        "class_logits": ([[-1]], tf.constant([[[math.log(3)]]])),
        "box_deltas": (tf.constant([[[0.0, 0, 0, 0, 1]]]), tf.constant([[[0.5, 0, 0, 0]]])),
    }
    found = losses.retinanet_losses(LossConfig(**changes))[output].call(*case[output])
    assert found.numpy() == pytest.approx([by_hand], rel=1e-5)


def test_another_configuration_is_refused():
    with pytest.raises(InputError, match="takes a LossConfig, not a Config; give config.loss"):
        losses.retinanet_losses(Config())


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("", ["cat", "dog"], 0.25),
        ("0.5,0.75", ["cat", "dog"], (0.5, 0.75)),
        ("dog=0.75", ["cat", "dog"], (0.25, 0.75)),
        (" dog = 1 , cat=0", ["cat", "dog"], (0.0, 1.0)),
        ('"mouse, computer=0.5",a=b=0.75', ["a=b", "mouse, computer", "1"], (0.75, 0.5, 0.25)),
        ("1=0.5", ["0", "1"], (0.25, 0.5)),
        ("dog=0.75,bird=0.5", ["cat", "dog"], "no class 'bird'; did you mean cat, dog?"),
        ("dogs=0.75", ["cat", "dog"], "no class 'dogs'; did you mean dog?"),
        ("dog=0.5,dog=0.6", ["cat", "dog"], "names dog twice"),
        ("dog=1.5", ["cat", "dog"], r"'1.5' must be a number in \[0, 1\]"),
        ("dog=nan", ["cat", "dog"], "'nan' must be a number"),
        ("dog=0.5,0.25", ["cat", "dog"], "no class ''"),
        ("dog", ["cat", "dog"], "has 1 numbers for 2 classes"),
        ("0.5,0.5,0.5", ["cat", "dog"], "has 3 numbers for 2 classes"),
        ("cat,dog", ["cat", "dog"], "'cat' must be a number"),
        ("dog=0.5", [], "names of the classes aren't known here"),
    ],
)
def test_classes_get_their_alpha_by_name(text, names, expected):
    make = partial(losses.retinanet_losses, LossConfig(class_alpha=text), names)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            make()
    else:
        assert make()["class_logits"].alpha == expected
