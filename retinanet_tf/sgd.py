"""SGD with momentum and the paper's coupled weight decay (§4.1), in TensorFlow's own kernels."""

from typing import Any

import keras
import tensorflow as tf

from retinanet_tf.compat import tensorflow_variables


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FusedSGD(keras.optimizers.SGD):
    """m ← momentum·m − lr·(g + coupled_decay·w), w ← w + m; the decay for variables named "kernel" alone.

    Keras' own makes a pass over the weights for every operation, and a regularizer adds three for its gradient; this
    makes two in all. A `RetinaNet` leaves its regularizers' gradient out where its optimizer `decays_kernels`.

    Args:
      learning_rate: a rate or a schedule.
      momentum: of the running sum of steps.
      coupled_decay: weight decay that goes through the momentum, as a penalty of coupled_decay/2 · Σw² would.
        (Keras' `weight_decay` doesn't: it shrinks the weights beside the step.)
      **kwargs: Keras' own.
    """

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.0, coupled_decay: float = 0.0, **kwargs: Any):
        super().__init__(learning_rate, momentum, **kwargs)
        self.coupled_decay = coupled_decay

    def build(self, variables: list) -> None:
        """Makes the momentums, and finds them again by the variable of each device."""
        super().build(variables)
        slots = {}
        raw = tensorflow_variables(variables)
        momentums = tensorflow_variables(self.momentums) if self.momentum else [None] * len(raw)
        for variable, mine, momentum in zip(variables, raw, momentums, strict=True):
            decay = self.coupled_decay if _is_kernel(variable) else 0.0
            parts = getattr(mine, "values", (mine,))
            for part, slot in zip(parts, getattr(momentum, "values", (momentum,) * len(parts)), strict=True):
                slots[id(part)] = (slot, decay)
        # A method, not the dictionary: Keras 2 would track that, and wants its keys to be names.
        self._slot_and_decay = slots.get

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor | None = None) -> None:
        """One variable on one device. Keras 3 hands the rate over, Keras 2 keeps it."""
        slot, decay = self._slot_and_decay(id(variable), (None, self.coupled_decay if _is_kernel(variable) else 0.0))
        if slot is None or not isinstance(gradient, tf.Tensor):
            rate = () if learning_rate is None else (learning_rate,)
            super().update_step(gradient + decay * variable if decay else gradient, variable, *rate)
            return
        rate = tf.cast(self.learning_rate if learning_rate is None else learning_rate, variable.dtype)
        momentum = tf.cast(self.momentum, variable.dtype)
        if decay:
            # The next kernel multiplies this by the momentum, hence the division.
            tf.raw_ops.ResourceApplyGradientDescent(
                var=slot.handle, alpha=rate * decay / momentum, delta=tf.convert_to_tensor(variable)
            )
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle, accum=slot.handle, lr=rate, grad=gradient, momentum=momentum
        )

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the optimizer."""
        return {**super().get_config(), "coupled_decay": self.coupled_decay}


def decays_kernels(optimizer: keras.optimizers.Optimizer | None) -> bool:
    """Whether an optimizer, or the one that a loss-scaling optimizer wraps, adds the kernels' coupled decay itself."""
    return bool(getattr(getattr(optimizer, "inner_optimizer", optimizer), "coupled_decay", 0.0))


def _is_kernel(variable: Any) -> bool:
    return variable.name.split(":")[0].split("/")[-1] == "kernel"
