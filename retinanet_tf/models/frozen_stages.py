"""A backbone's fixed stages: their layers' names, and a Keras model whose `trainable` leaves them alone."""

import re
from collections.abc import Collection
from typing import Any

import keras


def names_of_stages(stage: int) -> tuple[str, ...]:
    """What the names of the layers of the stages up to `stage` begin with; 1 is the stem, 0 is none."""
    return ("stem", *(f"stage{number}_" for number in range(2, stage + 1))) if stage else ()


@keras.saving.register_keras_serializable(package="retinanet_tf")
class FreezableModel(keras.Model):
    """A model whose `trainable` sets that of all its layers, but for the stages that it was built with as fixed.

    Keras' own would make their kernels trainable, though no gradient reaches them (`StopGradient`), and let batch
    norm's statistics move. Copies and saved models keep the fixed stages and whatever else is frozen.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable":  # Keras 3 leaves out what has the value already, as if no layer could differ
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def trainable(self) -> bool:
        return any(layer.trainable for layer in self.layers)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in self.layers:
            layer.trainable = bool(value) and not layer.name.startswith(self.fixed)

    @property
    def fixed(self) -> tuple[str, ...]:
        """What the names of the fixed layers begin with: the layer that stops the gradient tells their stages."""
        ends = [re.fullmatch(r"stage(\d)_frozen", layer.name) for layer in self.layers]
        return names_of_stages(max((int(end[1]) for end in ends if end), default=0))

    @property
    def frozen(self) -> list[str]:
        """The names of the layers that aren't trained."""
        return [layer.name for layer in self.layers if not layer.trainable]

    def freeze(self, names: Collection[str]) -> None:
        """Trains all layers but those of these names."""
        for layer in self.layers:
            if layer.trainable != (layer.name not in names):
                layer.trainable = not layer.trainable

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "frozen": self.frozen}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "FreezableModel":
        """Keras' own, which would train all layers."""
        network = {name: value for name, value in config.items() if name != "frozen"}
        model = super().from_config(network, custom_objects)
        model.freeze(config.get("frozen", model.frozen))
        return model
