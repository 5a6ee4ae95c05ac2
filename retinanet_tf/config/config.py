"""The configuration of a detector and its training: frozen dataclasses whose defaults are the paper's.

`fields.py` has the sections. The command-line flags are made from the fields and their help texts (`cli/flags.py`).
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
from retinanet_tf.version import __version__


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a job by section; `replace` changes fields of any section by name.

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

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            value = getattr(self, section.name)
            if not isinstance(value, type(section.default)):
                raise InputError(f"{section.name}={value!r} must be a {type(section.default).__name__}.")

    def replace(self, **changes: Any) -> "Config":
        """Returns a copy with fields of any section changed by name.

        >>> Config().replace(normalizer="globl")
        Traceback (most recent call last):
        ...
        retinanet_tf.errors.InputError: normalizer='globl' is not one of 'image', 'replica', 'global'.

        Raises:
            InputError: an unknown field, or a value outside the field's choices.
        """
        sections = {}
        for section in dataclasses.fields(self):
            value = getattr(self, section.name)
            changed = {f.name: changes.pop(f.name) for f in dataclasses.fields(value) if f.name in changes}
            sections[section.name] = dataclasses.replace(value, **changed)
        if changes:
            raise InputError(f"{', '.join(map(repr, changes))} is not a field of the configuration.")
        return Config(**sections)

    def scaled_to_batch(self, batch_size: int) -> "Config":
        """The same training at another batch size: learning rate by the linear rule of Goyal et al. 2017.

        The learning rate grows with the batch; steps and decay_steps shrink with it, so that the job sees
        as many images. Warm-up keeps its steps. Raises InputError for a batch that the field refuses.
        """
        scaled = self.replace(batch_size=batch_size)
        factor = batch_size / self.data.batch_size
        return scaled.replace(
            learning_rate=self.train.learning_rate * factor,
            steps=max(1, round(self.train.steps / factor)),
            decay_steps=tuple(round(step / factor) for step in self.train.decay_steps),
        )

    def flat(self) -> dict[str, Any]:
        """Every field of all sections by name, in order."""
        return {name: value for section in vars(self).values() for name, value in vars(section).items()}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The sections as nested plain containers for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> "Config":
        """The inverse of `to_dict`; missing sections and fields get the paper's values.

        Raises:
            InputError: fields that this version doesn't have (an older run.json), all named.
        """
        if not isinstance(values, Mapping) or not all(isinstance(one, Mapping) for one in values.values()):
            raise InputError(
                f"the configuration must be a dictionary of dictionaries, as to_dict returns, not {values!r}."
            )
        flat = {name: value for section in values.values() for name, value in section.items()}
        unknown = [name for name in flat if name not in cls().flat()]
        if unknown:
            raise InputError(
                f"the configuration is another version's: retinanet_tf {__version__} has no field {', '.join(unknown)}."
            )
        return cls().replace(**flat)
