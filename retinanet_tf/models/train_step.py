"""Training step with gradient accumulation, a learning rate for biases, and averaged weights."""

import dataclasses

import keras
import tensorflow as tf

from retinanet_tf.compat import own_name, scaled_loss, track_loss, unscaled_gradients
from retinanet_tf.models.ema import WeightAverage


@dataclasses.dataclass(frozen=True)
class Step:
    """Replaces Keras' training step when set as `model.step`.

    Args:
        accumulation: parts that each device's images are cut into. They go through the network one after the other and
            their gradients add up to those of the whole: targets and the normaliser's counts are the whole batch's.
            (Batch normalisation alone sees the parts.)
        bias_lr_factor: factor on the biases' gradients, which with SGD is one on their learning rate (authors' code).
        average: updated after the step.
    """

    accumulation: int = 1
    bias_lr_factor: float = 1.0
    average: WeightAverage | None = None

    def __call__(self, model: keras.Model, images: tf.Tensor, y: dict[str, tf.Tensor]) -> None:
        """One optimizer step on images `(B, H, W, 3)` and {"boxes", "labels"} (see `RetinaNet`)."""
        variables = model.trainable_variables
        if self.accumulation == 1:
            gradients = _gradients(model, variables, images, y)
        else:
            gradients = self._accumulated(model, variables, images, model.assign(images, y))
        gradients = unscaled_gradients(model.optimizer, gradients)
        if self.bias_lr_factor != 1.0:
            gradients = [
                gradient * self.bias_lr_factor if own_name(variable) == "bias" else gradient
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if self.average:
            self.average.update()

    def _accumulated(self, model, variables, images, assigned):
        batch = images.shape[0]
        if batch is None or batch % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} must divide the {batch} images per device.")
        size = batch // self.accumulation

        def part(index, sums):
            images_part, y = tf.nest.map_structure(
                lambda value: tf.ensure_shape(value[index * size : (index + 1) * size], (size, *value.shape[1:])),
                (images, assigned),
            )
            gradients = _gradients(model, variables, images_part, y)
            return index + 1, [total + new / self.accumulation for total, new in zip(sums, gradients, strict=True)]

        # One part after the other, which is what saves memory.
        start = (tf.constant(0), [tf.zeros(variable.shape, variable.dtype) for variable in variables])
        loop = tf.while_loop(
            lambda index, _: index < self.accumulation,
            part,
            start,
            parallel_iterations=1,
            maximum_iterations=self.accumulation,
        )
        return loop[1]


def _gradients(model, variables, images, y):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=images, y=y, y_pred=model(images, training=True))
        track_loss(model, loss, tf.shape(images)[0])
        loss = scaled_loss(model.optimizer, loss)
    return tape.gradient(loss, variables)
