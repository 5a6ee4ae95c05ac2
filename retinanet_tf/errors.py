"""InputError: the one exception for wrong input, such as a file, an id or a setting."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from retinanet_tf.text import printable


class InputError(ValueError):
    """Input that can't be used.

    The message is a sentence that names the file, id or parameter, what is wrong with it and what to do. The command
    line prints it without a traceback and exits with status 1; any other exception is a bug and keeps its traceback.
    Control characters, as names of others may have them, are escaped.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def check_count(name: str, value: Any) -> None:
    """Raises InputError, which names the argument, unless the value is a whole number above 0."""
    if not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name}={value} must be a whole number above 0.")


_TENSORFLOWS_HEADINGS = re.compile(r"Graph execution error:|Detected at node|<stack traces|Node: |\s|$")


def first_line(error: Exception) -> str:
    """The first line of an exception's message that says why, of at most 500 characters, without its full stop.

    >>> first_line(RuntimeError("Graph execution error:\\n\\nDetected at node 'x' at:\\n  File a\\nDisk is full."))
    'Disk is full'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line for line in lines if not _TENSORFLOWS_HEADINGS.match(line)), lines[0])
    return re.sub(r"^{{.*?}} ", "", line)[:500].rstrip(".")


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns any exception inside the block into an InputError, "WHAT: the reason".

    For readers of files that others wrote: damaged ones make parsers raise nearly anything.
    """
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        missing = " is missing" if isinstance(error, KeyError) and " " not in reason else ""
        raise InputError(f"{what}: {reason}{missing}.") from error
