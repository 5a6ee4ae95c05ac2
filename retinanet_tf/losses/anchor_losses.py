"""From one binary loss to the K-class loss of every anchor, value and gradient (§3), each in one pass."""

from collections.abc import Callable
from functools import lru_cache, partial

import tensorflow as tf

from retinanet_tf.detection.assignment import IGNORED
from retinanet_tf.errors import InputError

ValueAndSlope = tuple[tf.Tensor, tf.Tensor]
"""A loss and its derivative with respect to the margin x_t."""


def anchor_losses(
    class_targets: tf.Tensor,
    class_logits: tf.Tensor,
    loss: Callable[[tf.Tensor], ValueAndSlope],
    alpha: float,
    static: bool = False,
) -> tf.Tensor:
    """Sums a binary loss over the K classes of every anchor, weighted by α_t (eq. 3).

    K independent binary problems: the target's class has y = 1 and weight α, all others y = −1 and weight 1 − α. An
    ignored anchor has loss and gradient zero. The gradient is the closed form of appendix B; a second derivative is
    refused.

    Args:
      class_targets: `(B, A)` int32, 0…K−1, −1 background, −2 ignored.
      class_logits: `(B, A, K)` of any float type; half precision is computed in float32.
      loss: a function of the margin, such as `partial(focal, gamma=2.0)`.
      alpha: weight of the foreground.
      static: compute with static shapes alone, as XLA wants where it compiles the whole training step. Slower
        elsewhere.

    Returns:
      `(B, A)` float32 (float64 for float64 logits).
    """

    values, slopes = (_static_values, _static_slopes) if static else (_values, _slopes)

    @tf.custom_gradient
    def of_logits(logits):
        def gradient(upstream):
            return _once(slopes(class_targets, logits, upstream, loss, alpha))

        return values(class_targets, logits, loss, alpha), gradient

    return of_logits(class_logits)


@tf.custom_gradient
def _once(first_derivative):
    """The identity, whose own gradient is refused by name rather than silently wrong."""

    def refuse(_):
        raise InputError(
            "The classification losses have a first derivative only (appendix B of the paper); a second one isn't "
            "available."
        )

    return tf.identity(first_derivative), refuse


# Loss and gradient are one pass over the logits each. Keeping the slopes from the first for the second would save an
# exponential but hold a second array of the logits' size from then on, and cost as much in memory traffic.
#
# Either pass takes every pair for background: a comparison with the target at every (anchor, class) pair costs as much
# as the loss. Then the few positives' own values are put in, computed afresh: a difference would lose the digits of
# what a large wrong value hides.


def _values(class_targets, class_logits, loss, alpha):
    """Losses `(B, A)`."""
    values = tf.where(class_targets != IGNORED, _fused(_background_values, loss, alpha)(class_logits), 0.0)
    positive = tf.where(class_targets >= 0)
    logits = _full(tf.gather_nd(class_logits, positive))
    own = tf.range(tf.shape(logits)[-1]) == tf.gather_nd(class_targets, positive)[:, None]
    rows = tf.where(own, alpha * loss(logits)[0], (1.0 - alpha) * loss(-logits)[0])
    return tf.tensor_scatter_nd_update(values, positive, tf.reduce_sum(rows, axis=-1))


def _slopes(class_targets, class_logits, upstream, loss, alpha):
    """Gradient `(B, A, K)` in the logits' type, of losses whose own gradient is `upstream` `(B, A)`."""
    weights = tf.where(class_targets != IGNORED, upstream, 0.0)
    slopes = _fused(_background_slopes, loss, alpha)(class_logits, weights)
    positive = tf.where(class_targets >= 0)
    own = tf.concat([positive, tf.cast(tf.gather_nd(class_targets, positive), tf.int64)[:, None]], axis=1)
    corrected = alpha * loss(_full(tf.gather_nd(class_logits, own)))[1] * tf.gather_nd(upstream, positive)
    corrected = tf.cast(corrected, slopes.dtype)
    if tf.config.list_physical_devices("GPU"):
        return tf.tensor_scatter_nd_update(slopes, own, corrected)
    # On CPUs that would copy the slopes, a third of this pass' time. Nobody else has them, so the positives' rows are
    # changed in place (numbered by anchor: int32 holds those of any batch).
    anchors, classes = tf.shape(slopes)[1], tf.shape(slopes)[2]
    rows = tf.cast(own[:, 0], tf.int32) * anchors + tf.cast(own[:, 1], tf.int32)
    flat = tf.reshape(slopes, tf.stack([-1, classes]))
    hit = tf.range(classes, dtype=tf.int64) == own[:, 2:]
    changed = tf.where(hit, corrected[:, None], tf.gather(flat, rows))
    return tf.reshape(tf.raw_ops.InplaceUpdate(x=flat, i=rows, v=changed), tf.shape(slopes))


def _background_values(class_logits, loss, alpha):
    return (1.0 - alpha) * tf.reduce_sum(loss(-_full(class_logits))[0], axis=-1)


def _background_slopes(class_logits, weights, loss, alpha):
    slopes = loss(-_full(class_logits))[1] * ((alpha - 1.0) * weights)[..., None]
    return tf.cast(slopes, class_logits.dtype)


def _signed(class_targets, class_logits, alpha):
    """Margins `(B, A, K)`, and α_t with the sign of y: what XLA fuses into either pass by itself."""
    own = class_targets[..., None] == tf.range(tf.shape(class_logits)[-1])
    logits = _full(class_logits)
    weights = tf.where(own, tf.constant(alpha, logits.dtype), tf.constant(alpha - 1.0, logits.dtype))
    return tf.where(own, logits, -logits), weights


def _static_values(class_targets, class_logits, loss, alpha):
    margins, weights = _signed(class_targets, class_logits, alpha)
    values = tf.reduce_sum(tf.abs(weights) * loss(margins)[0], axis=-1)
    return tf.where(class_targets != IGNORED, values, 0.0)


def _static_slopes(class_targets, class_logits, upstream, loss, alpha):
    margins, weights = _signed(class_targets, class_logits, alpha)
    upstream = tf.where(class_targets != IGNORED, upstream, 0.0)
    return tf.cast(loss(margins)[1] * weights * upstream[..., None], class_logits.dtype)


def _full(logits):
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)


@lru_cache(maxsize=128)
def _fused(kernel, loss, alpha):
    """A kernel as one function, fused by XLA where there is no GPU.

    A GPU's elementwise kernels run at memory speed by themselves, and XLA needs CUDA's libdevice there, which pip
    installations often lack.
    """
    compiled = not tf.config.list_physical_devices("GPU")
    return tf.function(partial(kernel, loss=loss, alpha=alpha), jit_compile=compiled or None)
