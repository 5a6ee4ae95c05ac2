"""SGD with momentum and the paper's coupled weight decay (§4.1), in TensorFlow's own kernels."""

from typing import Any

import keras
import tensorflow as tf

from retinanet_tf.compat import own_name, tensorflow_variables


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FusedSGD(keras.optimizers.SGD):
    """m ← momentum·m − lr·(g + coupled_decay·w), w ← w + m; the decay for variables named "kernel" alone.

    Without momentum, with Nesterov's and for sparse gradients the steps are Keras' own, on g + coupled_decay·w.

    Keras' own makes a pass over the weights for every operation, and a regularizer adds three for its gradient; this
    makes two in all. A `RetinaNet` leaves its regularizers' gradient out where its optimizer `decays_kernels`.

    Args:
      learning_rate: a rate or a schedule.
      momentum: of the running sum of steps.
      coupled_decay: weight decay that goes through the momentum, as a penalty of coupled_decay/2 · Σw² would.
        (Keras' own weight decay doesn't: it shrinks the weights beside the step.)
      **kwargs: Keras' own.
    """

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.0, coupled_decay: float = 0.0, **kwargs: Any):
        super().__init__(learning_rate, momentum, **kwargs)
        self.coupled_decay = coupled_decay

    def build(self, variables: list) -> None:
        """Makes the momentums, and finds them and the decay again by the variable of each device."""
        super().build(variables)
        slots, decays = {}, {}
        fused = bool(self.momentum) and not self.nesterov
        raw = tensorflow_variables(variables)
        momentums = tensorflow_variables(self.momentums) if fused else raw
        for variable, mirrored, momentum in zip(variables, raw, momentums, strict=True):
            # A device's own variable has a name of its own, so the decay is told by what they are parts of.
            decay = self.coupled_decay if own_name(variable) == "kernel" else 0.0
            for mine, slot in zip(*(getattr(whole, "values", (whole,)) for whole in (mirrored, momentum)), strict=True):
                decays[id(mine)] = decay
                slots[id(mine)] = slot if fused else None
        # Methods, not the dictionaries: Keras 2 would track those, and wants their keys to be names.
        self._slot, self._decay = slots.get, decays.get

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor | None = None) -> None:
        """One variable on one device. Keras 3 hands the rate over, Keras 2 keeps it."""
        slot, decay = self._slot(id(variable)), self._decay(id(variable))
        if slot is None or not isinstance(gradient, tf.Tensor):
            rate = () if learning_rate is None else (learning_rate,)
            super().update_step(decay * variable + gradient if decay else gradient, variable, *rate)
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
