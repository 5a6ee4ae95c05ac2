"""Each class' α from the text of the setting `class_alpha`."""

import csv
import difflib
import math
from collections.abc import Sequence

from retinanet_tf.errors import InputError


def alpha_of_classes(text: str, alpha: float, class_names: Sequence[str] = ()) -> float | tuple[float, ...]:
    """The α of all classes, or those of each.

    >>> alpha_of_classes("", 0.25), alpha_of_classes("0.25,0.5", 0.25)
    (0.25, (0.25, 0.5))
    >>> alpha_of_classes("dog=0.75", 0.25, class_names=["cat", "dog"])
    (0.25, 0.75)

    Args:
        text: '', K numbers, or NAME=NUMBER for some classes; separated by commas, as in a line of CSV.
        alpha: of the classes that aren't named.
        class_names: K different names in the order of the labels; without them only numbers are understood.

    Raises:
        InputError: another text, a number outside [0, 1], an unknown name or another number of numbers than K.
    """
    if not text:
        return alpha
    if "\n" in text or "\r" in text:
        raise InputError(f"class_alpha={text!r} must be one line.")
    items = next(csv.reader([text]))
    if not any("=" in item for item in items):
        if class_names and len(items) != len(class_names):
            raise InputError(f"class_alpha={text} has {len(items)} numbers for {len(class_names)} classes.")
        return tuple(_number(item, text) for item in items)
    if not class_names:
        raise InputError(f"class_alpha={text} has names, but the names of the classes aren't known here; give numbers.")
    found: dict[str, float] = {}
    for item in items:
        name, _, number = (part.strip() for part in item.rpartition("="))
        if name not in class_names:
            near = difflib.get_close_matches(name, class_names, 3) or list(class_names[:20])
            raise InputError(f"class_alpha={text}: there is no class {name!r}; did you mean {', '.join(near)}?")
        if name in found:
            raise InputError(f"class_alpha={text} names {name} twice.")
        found[name] = _number(number, text)
    return tuple(found.get(name, alpha) for name in class_names)


def _number(item: str, text: str) -> float:
    try:
        number = float(item)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise InputError(
            f"class_alpha={text}: {item.strip()!r} must be a number in [0, 1]; write NAME=NUMBER, or one number for "
            "each class."
        )
    return number
