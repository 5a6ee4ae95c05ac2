"""Keras' `fit`, `evaluate` and their steps on single batches, on data that `fit_data` has checked."""

import inspect
from typing import Any

import keras

from retinanet_tf.compat import KERAS_3
from retinanet_tf.config.config import ModelConfig
from retinanet_tf.errors import InputError
from retinanet_tf.models.fit_data import checked, readable_faults


class FitsCheckedData(keras.Model):
    """A model with these methods; `config.num_classes` is its K."""

    config: ModelConfig

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Keras' own, on checked data (`retinanet_tf.models.fit_data`): arrays, a data set, a generator.

        Boxes and labels may be ragged, `sample_weight` is `(B,)`, one factor per image. With Keras 3 the `workers` of
        a Sequence are threads.

        Raises:
            InputError: images, boxes or labels that can't be trained on.
        """
        kwargs = _by_name(keras.Model.fit, self, x, y, *args, **kwargs)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list):
            if len(validation) not in (2, 3):
                raise InputError(
                    "validation_data must be (x, y) or (x, y, sample weights), or a data set or generator."
                )
            kwargs["validation_data"] = self._checked(*validation)
        elif validation is not None:
            kwargs["validation_data"], _ = self._checked(validation)
        if y is None:  # Keras 3 warns that it doesn't shuffle these
            kwargs.setdefault("shuffle", isinstance(x, keras.utils.Sequence))
        shuffle = kwargs.get("shuffle", True)
        if KERAS_3 and isinstance(x, keras.utils.Sequence):
            kwargs["shuffle"] = False  # `checked` does
        x, y = self._checked(x, y, kwargs.pop("sample_weight", None), shuffle=shuffle)
        with readable_faults():
            return super().fit(x, y, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras' own: the losses, on data as for `fit`. `retinanet_tf.evaluate` computes average precision."""
        kwargs = _by_name(keras.Model.evaluate, self, x, y, *args, **kwargs)
        x, y = self._checked(x, y, kwargs.pop("sample_weight", None))
        with readable_faults():
            return super().evaluate(x, y, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Keras' own, on arrays as for `fit`."""
        if kwargs.get("class_weight") is not None:
            raise InputError("class_weight is for models with a single output; give the losses an alpha per class.")
        x, y = self._checked(x, y, sample_weight)
        return super().train_on_batch(x, y, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Keras' own, on arrays as for `fit`."""
        x, y = self._checked(x, y, sample_weight)
        return super().test_on_batch(x, y, **kwargs)

    def _checked(self, x: Any, y: Any = None, sample_weight: Any = None, **options: Any) -> tuple[Any, Any]:
        options["replicas"] = self.distribute_strategy.num_replicas_in_sync
        return checked(x, y, sample_weight, num_classes=self.config.num_classes, **options)


def _by_name(function: Any, model: keras.Model, x: Any, y: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of one of Keras' methods by name, without the first three."""
    bound = inspect.signature(function).bind(model, x, y, *args, **kwargs).arguments
    others = bound.pop("kwargs", {})
    return {**{name: value for name, value in bound.items() if name not in ("self", "x", "y")}, **others}
