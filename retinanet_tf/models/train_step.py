"""Training step: gradients in parts, a learning rate for biases, averaged weights, each replica's part compiled."""

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

from retinanet_tf.compat import agreeing_gradients, own_name, scaled_loss, track_loss, unscaled_gradients
from retinanet_tf.models.ema import WeightAverage


@dataclasses.dataclass(frozen=True)
class Step:
    """The training step of `RetinaNet`; its defaults are Keras' own.

    Args:
        accumulation: parts that each device's images are cut into. They go through the network one after the other and
            their gradients add up to those of the whole: targets and the normaliser's counts are the whole batch's.
            (Batch normalisation sees the parts alone, and with mining and normalizer='replica' or 'global' each part
            counts its own examples.)
        bias_lr_factor: factor on the biases' gradients, which with SGD is one on their learning rate (authors' code).
        average: updated after the step.
        clip_norm: longest gradient of the whole batch, 0 for any; for optimizers that don't clip the sum over the
            replicas themselves. It is summed for its length alone, then again by the optimizer.
    """

    accumulation: int = 1
    bias_lr_factor: float = 1.0
    average: WeightAverage | None = None
    clip_norm: float = 0.0

    def __call__(self, model: keras.Model, images: tf.Tensor, y: dict[str, tf.Tensor]) -> None:
        """One optimizer step on images `(B, H, W, 3)` and {"boxes", "labels"} (see `RetinaNet`)."""
        variables, assigned = model.trainable_variables, model.assign(images, y)
        gradients = replica_part(model, lambda *batch: self._gradients(model, *batch))(images, assigned)
        gradients = unscaled_gradients(model.optimizer, gradients)
        if self.bias_lr_factor != 1.0:
            gradients = [
                gradient * self.bias_lr_factor if own_name(variable) == "bias" else gradient
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        gradients = agreeing_gradients(model.optimizer, self._clipped(model.optimizer, gradients))
        model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if self.average:
            self.average.update()

    def _clipped(self, optimizer, gradients):
        if not self.clip_norm:
            return gradients
        summed = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(summed) / scaled_loss(optimizer, tf.constant(1.0))
        return [gradient * (self.clip_norm / tf.maximum(norm, self.clip_norm)) for gradient in gradients]

    def _gradients(self, model, images, assigned):
        if self.accumulation == 1:
            return _gradients(model, images, assigned)
        batch, variables = images.shape[0], model.trainable_variables
        if batch is None or batch % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} must divide the {batch} images per device.")
        size = batch // self.accumulation
        parts = tf.nest.map_structure(
            lambda value: tf.reshape(value, [self.accumulation, size, *tf.unstack(tf.shape(value)[1:])]),
            (images, assigned),
        )

        def part(index, sums):
            # Taken by index, not cut out: XLA needs the size of every part.
            gradients = _gradients(model, *tf.nest.map_structure(lambda value: value[index], parts))
            return index + 1, [total + new / self.accumulation for total, new in zip(sums, gradients, strict=True)]

        # One part after the other, which is what saves memory.
        sums = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
        if model.trains_statistics and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            for index in range(self.accumulation):  # the replicas' statistics can't be reduced inside a while loop
                with tf.control_dependencies(sums):
                    _, sums = part(index, sums)
            return sums
        loop = tf.while_loop(
            lambda index, _: index < self.accumulation,
            part,
            (tf.constant(0), sums),
            parallel_iterations=1,
            maximum_iterations=self.accumulation,
        )
        return loop[1]


def replica_part(model: keras.Model, function: Callable) -> Callable:
    """The function, compiled if `model.compiles_replicas`: Keras can't compile a whole step of several replicas."""
    return tf.function(function, jit_compile=True, autograph=False) if model.compiles_replicas else function


def _gradients(model, images, y):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=images, y=y, y_pred=model(images, training=True))
        track_loss(model, loss, tf.shape(images)[0])
        loss = scaled_loss(model.optimizer, loss)
    return tape.gradient(loss, model.trainable_variables)
