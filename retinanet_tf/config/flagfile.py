"""A configuration as an absl flagfile."""

from typing import Any

from retinanet_tf.config.config import Config


def flagfile(config: Config, **paths: str) -> str:
    """Paths that aren't empty, then every setting, one flag per line."""
    return "".join(flag_lines({name: path for name, path in paths.items() if path} | config.flat()))


def flag_lines(values: dict[str, Any]) -> list[str]:
    """`--name=value` lines; tuples comma-separated, booleans in lower case."""
    lines = []
    for name, value in values.items():
        text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"--{name}={text.lower() if isinstance(value, bool) else text}\n")
    return lines
