"""The losses of the paper: pure functions of targets and logits, then Keras classes (§3)."""

import keras
import tensorflow as tf

from retinanet_tf.config import LossConfig


def normalizer_weights(num_positive: tf.Tensor, kind: str = "image") -> tf.Tensor:
    """Per-image weights `(B,)` under which Keras' mean over images and replicas is the normalised loss."""
    if kind == "image":
        return 1.0 / tf.maximum(num_positive, 1.0)
    images = tf.cast(tf.size(num_positive), tf.float32)
    if kind == "replica":
        return tf.fill(tf.shape(num_positive), images / tf.reduce_sum(num_positive + 1.0))
    total = tf.stack([tf.reduce_sum(num_positive), images])
    context = tf.distribute.get_replica_context()
    replicas = 1.0
    if context is not None and context.num_replicas_in_sync > 1:
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
        replicas = float(context.num_replicas_in_sync)
    return tf.fill(tf.shape(num_positive), images * replicas / tf.maximum(total[0], 1.0))


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FocalLoss(keras.losses.Loss):
    """α-balanced focal loss (eq. 5)."""

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, name: str = "focal_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.gamma, self.alpha = gamma, alpha

    def call(self, y_true, y_pred):
        """Class targets `(B, A)`, logits `(B, A, K)` → `(B,)`."""
        targets, logits = tf.cast(y_true, tf.int32), tf.cast(y_pred, tf.float32)
        onehot = tf.one_hot(targets, tf.shape(logits)[-1])
        x_t = tf.where(onehot > 0, logits, -logits)
        weight = onehot * self.alpha + (1 - onehot) * (1 - self.alpha)
        loss = weight * tf.sigmoid(-x_t) ** self.gamma * tf.nn.softplus(-x_t)
        return tf.reduce_sum(tf.where(targets[..., None] == -2, 0.0, loss), axis=(1, 2))

    def get_config(self):
        """What rebuilds the loss."""
        return {**super().get_config(), "gamma": self.gamma, "alpha": self.alpha}


@keras.saving.register_keras_serializable(package="retinanet_tf")
class SmoothL1Loss(keras.losses.Loss):
    """Smooth L1 on box deltas."""

    def __init__(self, beta: float = 0.11, name: str = "smooth_l1_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.beta = beta

    def call(self, y_true, y_pred):
        """Targets and positive mask `(B, A, 5)`, deltas `(B, A, 4)` → `(B,)`."""
        distance = tf.abs(y_true[..., :4] - tf.cast(y_pred, tf.float32))
        loss = tf.where(distance < self.beta, 0.5 * distance**2 / self.beta, distance - 0.5 * self.beta)
        return tf.reduce_sum(loss * y_true[..., 4:], axis=(1, 2))

    def get_config(self):
        """What rebuilds the loss."""
        return {**super().get_config(), "beta": self.beta}


def retinanet_losses(config: LossConfig = LossConfig()) -> dict[str, keras.losses.Loss]:
    """The losses of `model.compile`."""
    return {"class_logits": FocalLoss(config.gamma, config.alpha), "box_deltas": SmoothL1Loss(config.box_beta)}
