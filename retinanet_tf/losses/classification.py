"""The classification losses of the paper: values and derivatives of one binary problem, then Keras classes (§3).

With x_t = y·x (y = ±1) all of them are functions of the margin x_t alone, p_t = σ(x_t). The functions of the first
part return value and derivative with respect to x_t together, since both need the same exponential; they are exact
and finite for every finite x_t.
"""

import math

import keras
import tensorflow as tf

from retinanet_tf.config.config import LossConfig
from retinanet_tf.errors import InputError
from retinanet_tf.losses.anchor_losses import ValueAndSlope, anchor_losses
from retinanet_tf.losses.box import GIoULoss, L1Loss, SmoothL1Loss


def _parts(margin: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """p_t, 1 − p_t, −log p_t and −log(1 − p_t) from one exp and one log1p."""
    small = tf.exp(-tf.abs(margin))
    inverse = 1.0 / ((1.0 + small) * (2.0 + small))
    larger = inverse * (2.0 + small)
    smaller = small * larger
    log = _log1p(small * inverse * (1.0 + small)) if margin.dtype == tf.float32 else tf.math.log1p(small)
    right = margin >= 0.0
    return (
        tf.where(right, larger, smaller),
        tf.where(right, smaller, larger),
        tf.maximum(-margin, 0.0) + log,
        tf.maximum(margin, 0.0) + log,
    )


def _log1p(z: tf.Tensor) -> tf.Tensor:
    """log(1 + u) of u in [0, 1], given z = u / (2 + u): 2 artanh(z) as a series, whose rest is below 2e-8 of it.

    The relative error is float32's own, down to the smallest u, and it vectorises where log1p doesn't.
    """
    square = z * z
    series = tf.constant(1.0 / 13.0, z.dtype)
    for power in range(11, 0, -2):
        series = series * square + 1.0 / power
    return 2.0 * z * series


def cross_entropy(margin: tf.Tensor) -> ValueAndSlope:
    """CE = −log p_t (eq. 1); dCE/dx_t = p_t − 1 (eq. 9). Any shape, float32 or float64."""
    _, q_t, surprise, _ = _parts(margin)
    return surprise, -q_t


def focal(margin: tf.Tensor, gamma: float) -> ValueAndSlope:
    """FL = −(1 − p_t)^γ log p_t (eq. 4); dFL/dx_t = (1 − p_t)^γ (γ p_t log p_t + p_t − 1) (eq. 10).

    The power is taken as exp(γ log(1 − p_t)), which has no infinite slope where 1 − p_t underflows.
    """
    if gamma == 0.0:
        return cross_entropy(margin)
    p_t, q_t, surprise, other_surprise = _parts(margin)
    factor = q_t if gamma == 1.0 else q_t * q_t if gamma == 2.0 else tf.exp(-gamma * other_surprise)
    return factor * surprise, -factor * (gamma * p_t * surprise + q_t)


def focal_star(margin: tf.Tensor, gamma: float, beta: float) -> ValueAndSlope:
    """FL* = −log(p*_t)/γ with p*_t = σ(γ x_t + β) (eqs. 7, 8); dFL*/dx_t = p*_t − 1 (eq. 11)."""
    surprise, slope = cross_entropy(gamma * margin + beta)
    return surprise / gamma, slope


def hinge(margin: tf.Tensor, threshold: float = 0.5) -> ValueAndSlope:
    """max(0, threshold − p_t): no loss above a certain p_t (§5.1)."""
    p_t, q_t, _, _ = _parts(margin)
    active = tf.cast(p_t < threshold, margin.dtype)
    return active * (threshold - p_t), -active * p_t * q_t


class ClassificationLoss(keras.losses.Loss):
    """Common part of the losses on `class_logits`.

    Called with class targets `(B, A)` (whole numbers of any type: 0…K−1, −1 background, −2 ignored) and logits
    `(B, A, K)`, it sums over anchors and classes to one value an image, `(B,)`. `RetinaNet` gives each image the weight
    of the normaliser; used alone, Keras' mean over images is what remains. `static`: see `anchor_losses`.
    """

    def __init__(self, alpha: float, name: str, static: bool = False, **kwargs):
        super().__init__(name=name, **kwargs)
        self.static = static
        if not 0.0 <= alpha <= 1.0:
            raise InputError(f"alpha={alpha} must lie in [0, 1]: it is the foreground's weight, 1 − alpha the others'.")
        self.alpha = float(alpha)

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        """The loss of one binary problem and its derivative, as functions of x_t."""
        raise TypeError(f"{type(self).__name__} is no loss by itself; use FocalLoss or one of its siblings.")

    def per_anchor(self, class_targets: tf.Tensor, class_logits: tf.Tensor) -> tf.Tensor:
        """`(B, A)` losses of the anchors, summed over classes."""
        return anchor_losses(tf.cast(class_targets, tf.int32), class_logits, self.binary, self.alpha, self.static)

    def call(self, y_true, y_pred):
        """Class targets `(B, A)`, logits `(B, A, K)` → `(B,)`."""
        return tf.reduce_sum(self.per_anchor(y_true, tf.convert_to_tensor(y_pred)), axis=1)

    def get_config(self) -> dict:
        """What rebuilds the loss."""
        return {**super().get_config(), "alpha": self.alpha, "static": self.static}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class CrossEntropyLoss(ClassificationLoss):
    """α-balanced cross entropy (eq. 3). With alpha = 0.5 it is half the plain one (eq. 1).

    >>> loss = CrossEntropyLoss(alpha=0.75)  # one anchor, two classes, of which it is the first
    >>> print(loss.per_anchor(tf.constant([[0]]), tf.constant([[[0.0, 0.0]]])).numpy().round(4))  # ln 2
    [[0.6931]]
    """

    def __init__(self, alpha: float = 0.75, name: str = "cross_entropy_loss", **kwargs):
        super().__init__(alpha, name, **kwargs)

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        """Eqs. 1, 9."""
        return cross_entropy(margin)


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FocalLoss(ClassificationLoss):
    """α-balanced focal loss (eq. 5), −α_t (1 − p_t)^γ log p_t: the paper's loss with γ = 2, α = 0.25.

    What is classified well hardly counts: a background anchor whose foreground has p = 0.5, 0.1, 0.01:

    >>> logits = tf.math.log(tf.constant([[[1.0], [1 / 9], [1 / 99]]]))
    >>> background = tf.constant([[-1, -1, -1]])
    >>> print(CrossEntropyLoss(alpha=0.25).per_anchor(background, logits).numpy().round(4))
    [[0.5199 0.079  0.0075]]
    >>> print(FocalLoss().per_anchor(background, logits).numpy().round(4))
    [[0.13   0.0008 0.    ]]
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, name: str = "focal_loss", **kwargs):
        super().__init__(alpha, name, **kwargs)
        if not 0.0 <= gamma < math.inf:
            raise InputError(f"gamma={gamma} must be 0 (cross entropy) or more and finite: it focuses on hard ones.")
        self.gamma = float(gamma)

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        """Eqs. 4, 10."""
        return focal(margin, self.gamma)

    def get_config(self) -> dict:
        """What rebuilds the loss."""
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FocalStarLoss(ClassificationLoss):
    """FL* (appendix A, eqs. 7, 8), balanced by α: cross entropy of a steeper, shifted sigmoid.

    >>> logits = tf.math.log(tf.constant([[[1.0], [1 / 9]]]))
    >>> print(FocalStarLoss(gamma=2.0, beta=1.0).per_anchor(tf.constant([[-1, -1]]), logits).numpy().round(4))
    [[0.1175 0.0017]]
    """

    def __init__(
        self, gamma: float = 2.0, beta: float = 1.0, alpha: float = 0.25, name: str = "focal_star_loss", **kwargs
    ):
        super().__init__(alpha, name, **kwargs)
        if not 0.0 < gamma < math.inf:
            raise InputError(f"gamma={gamma} must be above 0 for FL*, which divides by it, and finite.")
        if not math.isfinite(beta):
            raise InputError(f"star_beta={beta} must be a finite number: it shifts FL*'s sigmoid.")
        self.gamma, self.beta = float(gamma), float(beta)

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        """Eqs. 7, 8, 11."""
        return focal_star(margin, self.gamma, self.beta)

    def get_config(self) -> dict:
        """What rebuilds the loss."""
        return {**super().get_config(), "gamma": self.gamma, "beta": self.beta}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class HingeLoss(ClassificationLoss):
    """Hinge on p_t (§5.1), zero where p_t is above `threshold`. The paper found it unstable.

    >>> logits = tf.math.log(tf.constant([[[3.0], [1 / 9]]]))  # p_t of the background is 0.25 and 0.9
    >>> print(HingeLoss(threshold=0.5, alpha=0.0).per_anchor(tf.constant([[-1, -1]]), logits).numpy())
    [[0.25 0.  ]]
    """

    def __init__(self, threshold: float = 0.5, alpha: float = 0.25, name: str = "hinge_loss", **kwargs):
        super().__init__(alpha, name, **kwargs)
        if not 0.0 < threshold <= 1.0:
            raise InputError(f"hinge_threshold={threshold} must lie in (0, 1]: it is a probability.")
        self.threshold = float(threshold)

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        """§5.1."""
        return hinge(margin, self.threshold)

    def get_config(self) -> dict:
        """What rebuilds the loss."""
        return {**super().get_config(), "threshold": self.threshold}


def retinanet_losses(config: LossConfig = LossConfig(), static: bool = False) -> dict[str, keras.losses.Loss]:
    """The losses for `model.compile(loss=…)`, one for each of the model's outputs.

    >>> from retinanet_tf import presets
    >>> losses = retinanet_losses(presets["modern"].replace(gamma=1.5).loss)
    >>> losses["class_logits"].gamma, type(losses["box_deltas"]).__name__
    (1.5, 'GIoULoss')

    With `compile(jit_compile=True)`, `static` keeps to static shapes, which TensorFlow 2.15's XLA needs.

    Raises:
      InputError: a γ, α, β or threshold out of range.
    """
    classification = {
        "focal": lambda: FocalLoss(config.gamma, config.alpha, static=static),
        "cross_entropy": lambda: CrossEntropyLoss(config.alpha, static=static),
        "focal_star": lambda: FocalStarLoss(config.gamma, config.star_beta, config.alpha, static=static),
        "hinge": lambda: HingeLoss(config.hinge_threshold, config.alpha, static=static),
    }
    box = {
        "smooth_l1": lambda: SmoothL1Loss(config.box_beta, config.box_weight, static=static),
        "l1": lambda: L1Loss(config.box_weight, static=static),
        "giou": lambda: GIoULoss(config.box_weight, static=static),
    }
    return {"class_logits": classification[config.classification](), "box_deltas": box[config.box]()}
