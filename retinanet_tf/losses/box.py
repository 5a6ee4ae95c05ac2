"""Losses on box deltas: smooth L1, L1, GIoU, summed over the positive anchors (§4.1)."""

import keras
import tensorflow as tf

from retinanet_tf.config.config import LossConfig
from retinanet_tf.detection import boxes as box_geometry
from retinanet_tf.errors import InputError
from retinanet_tf.losses.fused import FusedLoss, fused

_SMALLEST = {tf.float16: 6.2e-5}  # normal number, where it isn't float32's


def smooth_l1(difference: tf.Tensor, beta: float) -> tf.Tensor:
    """0.5 d²/β where |d| < β, |d| − 0.5 β beyond: continuous with its slope, element by element.

    β = 0 is L1; its slope at 0 is 0. (Huber's loss with δ = β is β times this.)
    """
    distance = tf.abs(difference)
    if beta < _SMALLEST.get(difference.dtype, 1.2e-38):  # 0 in this type, by which nothing can be divided
        return distance
    return tf.where(distance < beta, 0.5 * difference * difference / beta, distance - 0.5 * beta)


def giou_of_deltas(targets: tf.Tensor, deltas: tf.Tensor) -> tf.Tensor:
    """GIoU of the two boxes that deltas `(..., 4)` describe, exactly, without their anchor → `(...)`.

    Shifting an axis or scaling it changes all areas alike, so the boxes may be decoded from a unit anchor at the
    origin. The clamp of decoding holds; beyond it the gradient is 0.
    """
    unit = tf.constant([-0.5, -0.5, 0.5, 0.5], deltas.dtype)
    return box_geometry.giou(box_geometry.decode(targets, unit), box_geometry.decode(deltas, unit))


def pack_box_targets(box_targets: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
    """Deltas `(B, A, 4)` and the mask of positive anchors `(B, A)` → `(B, A, 5)`: Keras takes one target per output."""
    return tf.concat([box_targets, tf.cast(positive, box_targets.dtype)[..., None]], axis=-1)


def unpack_box_targets(packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The inverse of `pack_box_targets`: deltas `(B, A, 4)` and the mask `(B, A)` bool."""
    return packed[..., :4], packed[..., 4] > 0.0


class BoxLoss(FusedLoss):
    """Base class of the losses on `box_deltas`.

    Called with `pack_box_targets(...)` `(B, A, 5)` and deltas `(B, A, 4)`, it sums over positive anchors to one value
    per image, `(B,)` float32. Values at other anchors, even NaN, contribute no loss and no gradient.
    """

    def __init__(self, weight: float, name: str, **kwargs):
        super().__init__(name=name, **kwargs)
        self.weight = LossConfig(box_weight=weight).box_weight

    def per_box(self, targets: tf.Tensor, deltas: tf.Tensor) -> tf.Tensor:
        """Losses `(...)` of positive anchors, from `(..., 4)` each."""
        raise TypeError(f"{type(self).__name__} is abstract; use SmoothL1Loss, L1Loss or GIoULoss.")

    def call(self, y_true, y_pred):
        """Packed targets `(B, A, 5)`, deltas `(B, A, 4)` → `(B,)`.

        Raises:
            InputError: they have other shapes.
        """
        targets, predicted = tf.cast(tf.convert_to_tensor(y_true), tf.float32), tf.convert_to_tensor(y_pred)
        wanted = predicted.shape[:-1].concatenate(5)
        if not targets.shape.is_compatible_with(wanted) or predicted.shape[-1] not in (4, None):
            raise InputError(
                f"box targets have shape {targets.shape} and deltas {predicted.shape}; they must be (B, A, 5), as "
                "pack_box_targets makes them, and (B, A, 4)."
            )

        # The gradient is a function of its own. That of a function inside a compiled step with open shapes takes its
        # arguments, the network's weights with them, for constants: XLA would compile the step anew at each step.
        @tf.custom_gradient
        def of_deltas(deltas):
            sums, slopes = fused(self._sums), fused(self._slopes)
            return sums(targets, deltas), lambda upstream: slopes(targets, deltas, upstream)

        return of_deltas(predicted)

    def _sums(self, y_true, y_pred):
        targets, positive = unpack_box_targets(y_true)
        # Masked before the loss as well: a NaN that is masked only afterwards still has a NaN gradient.
        targets, deltas = (
            tf.where(positive[..., None], tf.cast(values, tf.float32), 0.0) for values in (targets, y_pred)
        )
        losses = tf.where(positive, self.per_box(targets, deltas), 0.0)
        return self.weight * tf.reduce_sum(losses, axis=1)

    def _slopes(self, y_true, y_pred, upstream):
        """Gradient `(B, A, 4)` of sums whose own gradient is `upstream` `(B,)`."""
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            sums = self._sums(y_true, y_pred)
        return tape.gradient(sums, y_pred, upstream)

    def get_config(self) -> dict:
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class SmoothL1Loss(BoxLoss):
    """Smooth L1 summed over dx, dy, dw, dh. β = 0.11 is the authors' code; the paper says "standard".

    The fifth number of a target marks positive anchors; the others count for nothing:

    >>> targets = tf.constant([[[0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]]])
    >>> deltas = tf.constant([[[1.0, 0.0, 0.0, 0.1], [9.0, 9.0, 9.0, 9.0]]])
    >>> print(SmoothL1Loss(beta=0.2)(targets, deltas).numpy().round(4))  # 1 − 0.2/2 + 0.1²/(2·0.2)
    0.925
    """

    def __init__(self, beta: float = 0.11, weight: float = 1.0, name: str = "smooth_l1_loss", **kwargs):
        super().__init__(weight, name, **kwargs)
        self.beta = LossConfig(box_beta=beta).box_beta

    def per_box(self, targets: tf.Tensor, deltas: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(smooth_l1(deltas - targets, self.beta), axis=-1)

    def get_config(self) -> dict:
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class L1Loss(BoxLoss):
    """|d| summed over dx, dy, dw, dh: smooth L1 with β = 0.

    >>> targets, deltas = tf.constant([[[0.0, 0.0, 0.0, 0.0, 1.0]]]), tf.constant([[[1.0, 0.0, -0.5, 0.0]]])
    >>> print(L1Loss()(targets, deltas).numpy())
    1.5
    """

    def __init__(self, weight: float = 1.0, name: str = "l1_loss", **kwargs):
        super().__init__(weight, name, **kwargs)

    def per_box(self, targets: tf.Tensor, deltas: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(smooth_l1(deltas - targets, 0.0), axis=-1)


@keras.saving.register_keras_serializable(package="retinanet_tf")
class GIoULoss(BoxLoss):
    """1 − GIoU of the decoded boxes (Rezatofighi et al. 2019).

    >>> targets, deltas = tf.constant([[[0.0, 0.0, 0.0, 0.0, 1.0]]]), tf.constant([[[1.0, 0.0, 0.0, 0.0]]])
    >>> print(GIoULoss()(targets, deltas).numpy())  # beside each other: IoU 0, no gap
    1.0
    """

    def __init__(self, weight: float = 1.0, name: str = "giou_loss", **kwargs):
        super().__init__(weight, name, **kwargs)

    def per_box(self, targets: tf.Tensor, deltas: tf.Tensor) -> tf.Tensor:
        return 1.0 - giou_of_deltas(targets, deltas)
