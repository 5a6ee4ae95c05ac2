"""What differs between the two Keras lines, each difference named."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

KERAS_3 = hasattr(keras, "ops")

CLIPS_THE_SUM = not KERAS_3
"""Keras 2's optimizers clip the sum of the replicas' gradients, Keras 3's each replica's own before they are summed."""


def tensorflow_variables(variables: Iterable) -> list[tf.Variable]:
    """The `tf.Variable`s behind Keras variables: Keras 2's are ones themselves, Keras 3's hold one in `value`."""
    return [variable if isinstance(variable, tf.Variable) else variable.value for variable in variables]


def own_name(variable: Any) -> str:
    """A variable's name within its layer, e.g. "kernel": Keras 2's names are paths and end in ":0"."""
    return variable.name.split(":")[0].split("/")[-1]


def optimizer_state(optimizer: keras.optimizers.Optimizer, variables: list) -> Any:
    """What tf.train.Checkpoint saves of an optimizer of `variables`, its own variables made.

    Keras 2's optimizers (loss scaling and TensorFlow Addons' included, which list their variables each in another
    way) are trackable themselves; of Keras 3's that walk misses what is kept in lists.
    """
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    else:  # TensorFlow Addons' make their settings at the first use, and one that is a bool only then rightly
        _ = optimizer.learning_rate
    return tensorflow_variables(optimizer.variables) if KERAS_3 else optimizer


def scaled_loss(optimizer: keras.optimizers.Optimizer, loss: tf.Tensor) -> tf.Tensor:
    """The loss times a loss scale: Keras 3's optimizers all have the method, Keras 2's wrapper for float16 alone."""
    if KERAS_3:
        return optimizer.scale_loss(loss)
    return optimizer.get_scaled_loss(loss) if hasattr(optimizer, "get_scaled_loss") else loss


def unscaled_gradients(optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """The gradients to apply: Keras 3's apply_gradients undoes the loss scale itself, Keras 2's doesn't."""
    return optimizer.get_unscaled_gradients(gradients) if hasattr(optimizer, "get_unscaled_gradients") else gradients


def agreeing_gradients(optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients that are NaN on all replicas if one has an infinite or NaN one, for an optimizer with a loss scale.

    Keras 2's looks at the sum over the replicas, Keras 3's at each replica's own: some would skip a step, others not.
    """
    context = tf.distribute.get_replica_context()
    if not KERAS_3 or context.num_replicas_in_sync == 1 or not hasattr(optimizer, "dynamic_scale"):
        return gradients
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    wrong = context.all_reduce(tf.distribute.ReduceOp.SUM, 1.0 - tf.cast(finite, tf.float32))
    return [tf.where(wrong > 0.0, float("nan"), gradient) for gradient in gradients]


def track_loss(model: keras.Model, loss: tf.Tensor, images: int | tf.Tensor) -> None:
    """Counts a step's total loss: Keras 3 leaves that to train_step, Keras 2's compute_loss has done it."""
    if KERAS_3:
        # The losses come divided by the replicas, whose gradients are summed.
        loss *= tf.distribute.get_strategy().num_replicas_in_sync
        next(metric for metric in model.metrics if metric.name == "loss").update_state(loss, sample_weight=images)


def leave_out_of_files(metrics: Iterable[keras.metrics.Metric]) -> None:
    """Lets a model load without the sums of its metrics: Keras 2 can't assign them on a strategy's replicas."""
    if not KERAS_3:
        for metric in metrics:
            metric.load_own_variables = _ignore


def _ignore(_: Any) -> None:
    """Loads nothing."""
