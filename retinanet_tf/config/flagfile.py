"""Settings as the lines of an absl flagfile."""

from typing import Any

from retinanet_tf.config.config import Config


def flagfile(config: Config, **paths: str) -> str:
    """Every setting as the lines of an absl flagfile."""
    lines = [f"--{name}={value}\n" for name, value in paths.items() if value]
    return "".join(lines + flag_lines(config.flat()))


def flag_lines(settings: dict[str, Any]) -> list[str]:
    """Settings as lines of a flagfile."""
    lines = []
    for name, value in settings.items():
        text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"--{name}={text.lower() if isinstance(value, bool) else text}\n")
    return lines
