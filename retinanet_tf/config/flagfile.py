"""A configuration as an absl flagfile."""

from typing import Any

from retinanet_tf.config.config import Config
from retinanet_tf.errors import InputError


def flagfile(config: Config, **paths: str) -> str:
    """Paths that aren't empty, then every setting, one flag per line."""
    return "".join(flag_lines({name: path for name, path in paths.items() if path} | config.flat()))


def flag_lines(values: dict[str, Any]) -> list[str]:
    """`--name=value` lines; tuples comma-separated, booleans in lower case.

    Raises:
        InputError: a text that a line can't hold: with a line break, a blank at its end, or bytes that aren't UTF-8.
    """
    lines = []
    for name, value in values.items():
        text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        if text != text.rstrip() or len(text.splitlines()) > 1 or text != text.encode(errors="ignore").decode():
            raise InputError(
                f"{name}={text!r} has a line break, a blank at its end or bytes that aren't UTF-8, which no flag file "
                "can hold; rename it."
            )
        lines.append(f"--{name}={text.lower() if isinstance(value, bool) else text}\n")
    return lines
