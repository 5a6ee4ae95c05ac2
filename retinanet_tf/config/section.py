"""What one section of the configuration is made of: fields that know their meaning, and values that are checked."""

import dataclasses
import typing
from typing import Any

from retinanet_tf.errors import InputError


def setting(default: Any, help: str, allowed: tuple | str = "") -> Any:
    """A dataclass field with its default, its meaning and source, and the values it may have.

    allowed: all of them, or an interval for a number (for every number of a tuple) such as "(0, 1]"; '' for any.
    """
    choices, within = (None, allowed) if isinstance(allowed, str) else (allowed, "")
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "within": within})


@dataclasses.dataclass(frozen=True)
class Section:
    """What the configuration's sections share: a value that its field can't have is refused, by name."""

    def __post_init__(self) -> None:
        """Checks every field; a list becomes the tuple that the field holds."""
        for field in dataclasses.fields(self):
            choices, value = field.metadata["choices"], getattr(self, field.name)
            if choices and value not in choices:
                raise InputError(f"{field.name}={value!r} is not one of {', '.join(map(repr, choices))}.")
            if isinstance(field.default, tuple):
                object.__setattr__(self, field.name, tuple(value))
                kinds = typing.get_args(field.type)
                if Ellipsis not in kinds and len(value) != len(kinds):
                    raise InputError(f"{field.name}={_text(value)} must be {len(kinds)} numbers.")
            within = field.metadata["within"]
            numbers = value if isinstance(field.default, tuple) else (value,)
            if within and not all(_inside(number, within) for number in numbers):
                raise InputError(f"{field.name}={_text(value)} must lie in {within}.")


def _inside(number: float, within: str) -> bool:
    low, high = (float(end) for end in within[1:-1].split(","))
    above = number >= low if within[0] == "[" else number > low
    return above and (number <= high if within[-1] == "]" else number < high)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
