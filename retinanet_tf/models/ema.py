"""EMA: an exponential moving average of a model's weights, for evaluation and export."""

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from retinanet_tf.compat import tensorflow_variables


class WeightAverage:
    """Averages of all weights of a model, statistics of normalisation included.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so that the first steps' weights don't linger. Create it
    in the strategy's scope.

    Args:
        weights: the model's weights.
        decay: share of the old average that an update keeps.
    """

    def __init__(self, weights: list, decay: float):
        self.decay = decay
        self._weights = tensorflow_variables(weights)
        # The replicas' averages are equal: the first one's is written, without a reduction.
        kind = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.values = [tf.Variable(weight, name="average", **kind) for weight in self._weights]
        self.updates = tf.Variable(0, dtype=tf.int64, name="updates", **kind)

    @property
    def state(self) -> list[tf.Variable]:
        """The variables for a checkpoint."""
        return [self.updates, *self.values]

    def update(self) -> None:
        """Adds the current weights to the average; called in the training step, after the optimizer."""
        done = tf.cast(self.updates, tf.float32)
        kept = tf.minimum(self.decay, (1.0 + done) / (10.0 + done))
        for value, weight in zip(self.values, self._weights, strict=True):
            value.assign_add(tf.cast(1.0 - kept, weight.dtype) * (weight - value))
        self.updates.assign_add(1)

    def restart(self) -> None:
        """Sets the averages to the current weights, as after loading others."""
        for value, weight in zip(self.values, self._weights, strict=True):
            value.assign(weight)

    def keep(self) -> None:
        """Overwrites the model's weights with the averages."""
        for value, weight in zip(self.values, self._weights, strict=True):
            weight.assign(value.numpy())

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averages inside the block, and its trained weights again afterwards."""
        trained = [weight.numpy() for weight in self._weights]
        self.keep()
        try:
            yield
        finally:
            for weight, value in zip(self._weights, trained, strict=True):
                weight.assign(value)
