"""Focal loss, FL*, cross entropy and hinge: binary losses with their derivatives, then Keras losses (§3).

With x_t = y·x (y = ±1) all of them are functions of the margin x_t alone, p_t = σ(x_t). The binary losses return value
and derivative with respect to x_t together, since both need the same exponential; they are exact and finite for every
finite x_t.
"""

from collections.abc import Sequence
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import LossConfig
from retinanet_tf.detection.assignment import IGNORED
from retinanet_tf.errors import InputError
from retinanet_tf.losses.alpha_of_classes import alpha_of_classes
from retinanet_tf.losses.box import GIoULoss, L1Loss, SmoothL1Loss
from retinanet_tf.losses.fused import FusedLoss, fused

ValueAndSlope = tuple[tf.Tensor, tf.Tensor]
"""A loss and its derivative with respect to the margin x_t."""


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

    The relative error is float32's own, down to the smallest u. XLA vectorises it on CPUs, where log1p would cost half
    as much again as the whole loss.
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


@tf.custom_gradient
def _first_derivative_only(derivative):
    def refuse(_):
        raise InputError(
            "The classification losses have a first derivative only (appendix B of the paper); a second one isn't "
            "available."
        )

    return tf.identity(derivative), refuse


def _margins(alpha, foreground, class_logits):
    """Margins `(B, A, K)`, and α_t with the sign of y."""
    logits = class_logits if class_logits.dtype == tf.float64 else tf.cast(class_logits, tf.float32)
    foreground_weight, background_weight = (tf.constant(np.subtract(alpha, y), logits.dtype) for y in (0.0, 1.0))
    signed_alpha = tf.where(foreground, foreground_weight, background_weight)
    return tf.where(foreground, logits, -logits), signed_alpha


def _values(loss, alpha, class_targets, foreground, class_logits):
    """Losses `(B, A)`."""
    margins, signed_alpha = _margins(alpha, foreground, class_logits)
    values = tf.reduce_sum(tf.abs(signed_alpha) * loss(margins)[0], axis=-1)
    return tf.where(class_targets != IGNORED, values, 0.0)


def _slopes(loss, alpha, class_targets, foreground, class_logits, upstream):
    """Gradient `(B, A, K)` in the logits' type, of losses whose own gradient is `upstream` `(B, A)`."""
    margins, signed_alpha = _margins(alpha, foreground, class_logits)
    slopes = loss(margins)[1] * signed_alpha * upstream[..., None]
    return tf.cast(tf.where((class_targets != IGNORED)[..., None], slopes, 0.0), class_logits.dtype)


class ClassificationLoss(FusedLoss):
    """Base class of the losses on `class_logits`.

    Called with class targets `(B, A)` (whole numbers of any type: 0…K−1, −1 background, −2 ignored) and logits
    `(B, A, K)`, it sums over anchors and classes to one value per image, `(B,)`. `RetinaNet` gives each image the
    weight of the normaliser; used alone, Keras' mean over images is what remains.

    alpha is one number, or a sequence of K: in the binary problem of class c its objects weigh alpha[c], all else
    1 − alpha[c].
    """

    def __init__(self, alpha: float | Sequence[float], name: str, **kwargs):
        super().__init__(name=name, **kwargs)
        several: Any = alpha if np.ndim(alpha) else ()
        numbers = tuple(LossConfig(alpha=one).alpha for one in several)
        self.alpha: float | tuple[float, ...] = numbers or LossConfig(alpha=cast(float, alpha)).alpha

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        """The loss of one binary problem and its derivative, as functions of x_t."""
        raise TypeError(f"{type(self).__name__} is abstract; use FocalLoss or another of its subclasses.")

    def per_anchor(self, class_targets: tf.Tensor, class_logits: tf.Tensor) -> tf.Tensor:
        """Sums the binary loss over the K classes of every anchor, weighted by α_t (eq. 3).

        K independent binary problems: the target's class has y = 1 and weight α, all others y = −1 and weight 1 − α. An
        ignored anchor has loss and gradient zero. The gradient is the closed form of appendix B.

        Args:
            class_targets: `(B, A)` whole numbers, 0…K−1, −1 background, −2 ignored.
            class_logits: `(B, A, K)` of any float type; half precision is computed in float32.

        Returns:
            `(B, A)` float32 (float64 for float64 logits).

        Raises:
            InputError: other shapes, alpha is a sequence of another length than K, or a second derivative is requested.
        """
        class_targets, classes = tf.cast(class_targets, tf.int32), class_logits.shape[-1]
        if not class_targets.shape.is_compatible_with(class_logits.shape[:-1]):
            raise InputError(
                f"class targets have shape {class_targets.shape} and logits {class_logits.shape}; they must be (B, A), "
                "one number per anchor, and (B, A, K)."
            )
        if isinstance(self.alpha, tuple) and classes not in (None, len(self.alpha)):
            raise InputError(f"alpha has {len(self.alpha)} numbers for {classes} classes; give each class one.")
        binary, alpha = self.binary, self.alpha

        def foreground():
            # Outside of the fused kernels: on CPUs, XLA doesn't vectorise a comparison that is broadcast along K.
            return tf.one_hot(class_targets, tf.shape(class_logits)[-1], True, False, dtype=tf.bool)

        @tf.custom_gradient
        def of_logits(logits):
            def gradient(upstream):
                slopes = fused(_slopes, binary, alpha)(class_targets, foreground(), logits, upstream)
                return _first_derivative_only(slopes)

            return fused(_values, binary, alpha)(class_targets, foreground(), logits), gradient

        return of_logits(class_logits)

    def call(self, y_true, y_pred):
        """Class targets `(B, A)`, logits `(B, A, K)` → `(B,)`."""
        return tf.reduce_sum(self.per_anchor(y_true, tf.convert_to_tensor(y_pred)), axis=1)

    def get_config(self) -> dict:
        return {**super().get_config(), "alpha": list(self.alpha) if isinstance(self.alpha, tuple) else self.alpha}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class CrossEntropyLoss(ClassificationLoss):
    """α-balanced cross entropy (eq. 3). With alpha = 0.5 it is half the plain one (eq. 1).

    >>> loss = CrossEntropyLoss(alpha=0.75)  # one anchor, two classes, of which it is the first
    >>> print(loss.per_anchor(tf.constant([[0]]), tf.constant([[[0.0, 0.0]]])).numpy().round(4))  # ln 2
    [[0.6931]]
    """

    def __init__(self, alpha: float | Sequence[float] = 0.75, name: str = "cross_entropy_loss", **kwargs):
        super().__init__(alpha, name, **kwargs)

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        return cross_entropy(margin)


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FocalLoss(ClassificationLoss):
    """α-balanced focal loss (eq. 5), −α_t (1 − p_t)^γ log p_t: the paper's loss with γ = 2, α = 0.25.

    Well classified examples hardly count: a background anchor whose foreground has p = 0.5, 0.1, 0.01:

    >>> logits = tf.math.log(tf.constant([[[1.0], [1 / 9], [1 / 99]]]))
    >>> background = tf.constant([[-1, -1, -1]])
    >>> print(CrossEntropyLoss(alpha=0.25).per_anchor(background, logits).numpy().round(4))
    [[0.5199 0.079  0.0075]]
    >>> print(FocalLoss().per_anchor(background, logits).numpy().round(4))
    [[0.13   0.0008 0.    ]]
    """

    def __init__(self, gamma: float = 2.0, alpha: float | Sequence[float] = 0.25, name: str = "focal_loss", **kwargs):
        super().__init__(alpha, name, **kwargs)
        self.gamma = LossConfig(gamma=gamma).gamma

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        return focal(margin, self.gamma)

    def get_config(self) -> dict:
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FocalStarLoss(ClassificationLoss):
    """FL* (appendix A, eqs. 7, 8), balanced by α: cross entropy of a steeper, shifted sigmoid.

    >>> logits = tf.math.log(tf.constant([[[1.0], [1 / 9]]]))
    >>> print(FocalStarLoss(gamma=2.0, beta=1.0).per_anchor(tf.constant([[-1, -1]]), logits).numpy().round(4))
    [[0.1175 0.0017]]
    """

    def __init__(
        self,
        gamma: float = 2.0,
        beta: float = 1.0,
        alpha: float | Sequence[float] = 0.25,
        name: str = "focal_star_loss",
        **kwargs,
    ):
        super().__init__(alpha, name, **kwargs)
        self.gamma, self.beta = LossConfig(gamma=gamma).gamma, LossConfig(star_beta=beta).star_beta
        if not self.gamma:
            raise InputError(f"gamma={gamma} must be above 0 for FL*, which divides by it.")

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        return focal_star(margin, self.gamma, self.beta)

    def get_config(self) -> dict:
        return {**super().get_config(), "gamma": self.gamma, "beta": self.beta}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class HingeLoss(ClassificationLoss):
    """Hinge on p_t (§5.1), zero where p_t is above `threshold`. The paper found it unstable.

    >>> logits = tf.math.log(tf.constant([[[3.0], [1 / 9]]]))  # p_t of the background is 0.25 and 0.9
    >>> print(HingeLoss(threshold=0.5, alpha=0.0).per_anchor(tf.constant([[-1, -1]]), logits).numpy())
    [[0.25 0.  ]]
    """

    def __init__(
        self, threshold: float = 0.5, alpha: float | Sequence[float] = 0.25, name: str = "hinge_loss", **kwargs
    ):
        super().__init__(alpha, name, **kwargs)
        self.threshold = LossConfig(hinge_threshold=threshold).hinge_threshold

    def binary(self, margin: tf.Tensor) -> ValueAndSlope:
        return hinge(margin, self.threshold)

    def get_config(self) -> dict:
        return {**super().get_config(), "threshold": self.threshold}


def retinanet_losses(
    config: LossConfig = LossConfig(), class_names: Sequence[str] = ()
) -> dict[str, keras.losses.Loss]:
    """The losses for `model.compile(loss=…)`, one per output of the model.

    Args:
        config: which losses, with which numbers.
        class_names: the K different names that `class_alpha` may use.

    >>> from retinanet_tf import presets
    >>> losses = retinanet_losses(presets["modern"].replace(gamma=1.5).loss)
    >>> losses["class_logits"].gamma, type(losses["box_deltas"]).__name__
    (1.5, 'GIoULoss')

    Raises:
        InputError: a γ, α, β or threshold out of range, or a `class_alpha` that doesn't fit the classes.
    """
    if not isinstance(config, LossConfig):
        raise InputError(f"retinanet_losses takes a LossConfig, not a {type(config).__name__}; give config.loss.")
    alpha = alpha_of_classes(config.class_alpha, config.alpha, class_names)
    classification = {
        "focal": lambda: FocalLoss(config.gamma, alpha),
        "cross_entropy": lambda: CrossEntropyLoss(alpha),
        "focal_star": lambda: FocalStarLoss(config.gamma, config.star_beta, alpha),
        "hinge": lambda: HingeLoss(config.hinge_threshold, alpha),
    }
    box = {
        "smooth_l1": lambda: SmoothL1Loss(config.box_beta, config.box_weight),
        "l1": lambda: L1Loss(config.box_weight),
        "giou": lambda: GIoULoss(config.box_weight),
    }
    return {"class_logits": classification[config.classification](), "box_deltas": box[config.box]()}
