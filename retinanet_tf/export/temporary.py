"""A graph as a SavedModel in a temporary folder, from which TensorFlow's converters read it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from retinanet_tf.errors import InputError


@contextmanager
def temporary_saved_model(concrete: tf.types.experimental.ConcreteFunction, signature: str) -> Iterator[str]:
    """Yields the folder of a SavedModel with one signature, gone after the block; InputError where it has no room."""
    module = tf.Module()
    module.state = list(concrete.variables)
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.saved_model.save(module, folder, signatures={signature: concrete})
        except (OSError, tf.errors.OpError):
            raise InputError(
                f"the temporary folder {tempfile.gettempdir()} is full or can't be written; name another one by the "
                "environment variable TMPDIR."
            ) from None
        yield folder
