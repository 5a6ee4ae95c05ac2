"""A training step as Keras' `fit` makes it, for any model; imports nothing of `retinanet_tf`."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def fit_step(model: keras.Model, images: tf.Tensor, targets: dict[str, tf.Tensor]) -> Callable[[], dict[str, float]]:
    """A call makes one step of a compiled model on one batch, and returns what the progress bar would show.

    `train_on_batch` doesn't measure that: it makes an iterator per step, which TensorFlow 2.15 may take seconds to end.
    """
    data = tf.data.Dataset.from_tensors((images, targets)).repeat()
    # Keras' own: keras-hub's would prepare the samples first, for which its model has no preprocessor.
    keras.Model.fit(model, data, steps_per_epoch=1, shuffle=False, verbose=0)
    batches = iter(data)
    return lambda: tf.nest.map_structure(np.asarray, model.train_function(batches))
