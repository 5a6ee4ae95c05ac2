"""What one section of the configuration is made of: fields that know their meaning, and values that are checked."""

import dataclasses
from typing import Any

from retinanet_tf.errors import InputError


def setting(default: Any, help: str, choices: tuple | None = None) -> Any:
    """A dataclass field with its default, its meaning and source, and the values it may have (None: any)."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Section:
    """What the configuration's sections share: a value outside its field's choices is refused, by name."""

    def __post_init__(self) -> None:
        """Checks every field; a list becomes the tuple that the field holds."""
        for field in dataclasses.fields(self):
            choices, value = field.metadata["choices"], getattr(self, field.name)
            if choices and value not in choices:
                raise InputError(f"{field.name}={value!r} is not one of {', '.join(map(repr, choices))}.")
            if isinstance(field.default, tuple) and isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
