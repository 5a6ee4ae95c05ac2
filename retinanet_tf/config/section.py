"""A section of the configuration: a frozen dataclass that checks its values, with help and allowed ones by field."""

import dataclasses
import numbers
import typing
from typing import Any

from retinanet_tf.errors import InputError


def setting(default: Any, help: str, allowed: tuple | str = "", words: tuple[str, ...] = ()) -> Any:
    """A dataclass field with its default, its help text and its allowed values.

    `allowed` is a tuple of choices, or an interval such as "(0, 1]" for a number (for each number of a tuple), or ''.
    `words` may stand in place of a number.
    """
    choices, interval = (None, allowed) if isinstance(allowed, str) else (allowed, "")
    metadata = {"help": help, "choices": choices, "within": interval, "words": words}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """Base class of the sections: checks every value and names the field of a wrong one."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) in field.metadata["words"]:
                continue
            value = _typed(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            choices, interval = field.metadata["choices"], field.metadata["within"]
            if choices and value not in choices:
                raise InputError(f"{field.name}={value!r} is not one of {', '.join(map(repr, choices))}.")
            if interval and not all(_inside(number, interval) for number in _numbers(value)):
                raise InputError(f"{field.name}={_text(value)} must lie in {interval}.")


def _typed(field: dataclasses.Field, value: Any) -> Any:
    """The value as Python's own type of the field: from JSON a tuple comes as a list, from NumPy an integer as int64.

    Raises:
        InputError: it is of another type.
    """
    kinds: dict[Any, Any] = {int: numbers.Integral, float: numbers.Real}
    wanted: Any = field.type if isinstance(field.default, tuple) else type(field.default)
    if not isinstance(field.default, tuple):
        if not isinstance(value, kinds.get(wanted, wanted)) or (isinstance(value, bool) and wanted is not bool):
            words = "".join(f" or {word!r}" for word in field.metadata["words"])
            raise InputError(f"{field.name}={value!r} must be of type {wanted.__name__}{words}.")
        return wanted(value)
    item, *others = typing.get_args(wanted)
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, kinds[item]) for one in values):
        raise InputError(f"{field.name}={value!r} must be numbers of type {item.__name__}.")
    if Ellipsis not in others and len(values) != len(others) + 1:
        raise InputError(f"{field.name}={_text(value)} must be {len(others) + 1} numbers.")
    return tuple(item(one) for one in values)


def _numbers(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _inside(number: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def _text(value: Any) -> str:
    return ",".join(map(str, _numbers(value)))
