"""Every setting of a detector and its training, as frozen dataclasses whose defaults are the paper's.

`config_fields.py` has the sections. Each field carries its meaning and its source in `metadata["help"]`, from which the
command-line flags are made (`config_flags.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from retinanet_tf.config.fields import (
    AnchorConfig,
    AssignConfig,
    DataConfig,
    DetectConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
)
from retinanet_tf.errors import InputError

__all__ = [
    "AnchorConfig",
    "AssignConfig",
    "Config",
    "DataConfig",
    "DetectConfig",
    "LossConfig",
    "ModelConfig",
    "TrainConfig",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """All of a job. Sections are dataclasses; `replace(gamma=0.0, backbone="resnet101")` reaches into them.

    >>> from retinanet_tf import presets
    >>> config = presets["paper"].replace(gamma=0.5, backbone="resnet101")
    >>> config.loss.gamma, config.model.backbone, config.train.steps
    (0.5, 'resnet101', 90000)
    """

    anchors: AnchorConfig = AnchorConfig()
    model: ModelConfig = ModelConfig()
    assign: AssignConfig = AssignConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    detect: DetectConfig = DetectConfig()

    def replace(self, **changes: Any) -> "Config":
        """Returns a copy with fields changed by their own names, whichever section they are in.

        >>> Config().replace(normalizer="globl")
        Traceback (most recent call last):
        ...
        retinanet_tf.errors.InputError: normalizer='globl' is not one of 'image', 'replica', 'global'.

        Raises:
          InputError: a name that is no field, or a value outside the field's choices.
        """
        sections = {}
        for section in dataclasses.fields(self):
            value = getattr(self, section.name)
            mine = {f.name: changes.pop(f.name) for f in dataclasses.fields(value) if f.name in changes}
            sections[section.name] = dataclasses.replace(value, **mine)
        if changes:
            raise InputError(f"{', '.join(map(repr, changes))} is no field of the configuration.")
        return Config(**sections)

    def scaled_to_batch(self, batch_size: int) -> "Config":
        """The same training at another batch size, by the linear rule of Goyal et al. 2017.

        The learning rate grows with the batch; steps and decay_steps shrink with it, so that the job sees
        as many images. Warm-up keeps its steps. Raises InputError for a batch below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        factor = batch_size / self.data.batch_size
        return self.replace(
            batch_size=batch_size,
            learning_rate=self.train.learning_rate * factor,
            steps=max(1, round(self.train.steps / factor)),
            decay_steps=tuple(round(step / factor) for step in self.train.decay_steps),
        )

    def flat(self) -> dict[str, Any]:
        """Every field by its name, over all sections, in order."""
        return {
            field.name: getattr(getattr(self, section.name), field.name)
            for section in dataclasses.fields(self)
            for field in dataclasses.fields(getattr(self, section.name))
        }

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain containers that JSON can hold; `from_dict` is the way back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> "Config":
        """The inverse of `to_dict`; sections and fields that aren't named keep the paper's values."""
        return cls().replace(**{name: value for section in values.values() for name, value in section.items()})
