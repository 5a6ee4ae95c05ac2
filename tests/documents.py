"""The documentation taken apart: fenced blocks and the project's commands."""

import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from retinanet_tf.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "experiments/README.md", ROOT / "serving/README.md"]
LANGUAGES = ("bash", "python", "yaml", "bibtex", "text")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """`retinanet MODULE ARGUMENTS` or `python -m MODULE ARGUMENTS`; `open` if the page leaves some of it out (…)."""

    module: str
    arguments: tuple[str, ...]
    open: bool

    def __str__(self):
        return shlex.join([self.module, *self.arguments])


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return FENCE.findall(text)


def block_after(text: str, heading: str, language: str = "bash") -> str:
    """The first fenced block of a language under a heading."""
    _, found, rest = text.partition(f"# {heading}\n")
    assert found, f"there is no heading {heading!r}"
    return next(content for kind, content in blocks(rest) if kind == language)


def commands(text: str) -> list[Command]:
    """Every `retinanet COMMAND …` and `python -m experiments.…` in a text; `a|b` of a table is two commands."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = []
    names = "|".join(COMMANDS)
    pattern = rf"(?:python -m (experiments\.[a-z_\d.]+\b)|\bretinanet ({names})(?= -| …))(?![.{{])([^`\n]*)"
    for match in re.finditer(pattern, text):
        words = _words(match[3])
        # Two spaces and a bracket begin a remark in docstrings.
        alternatives = [word.replace("\\|", "|").split("|") if "|" in word else [word] for word in words if word != "…"]
        for choice in itertools.product(*alternatives):
            arguments = tuple(_whole(word, first) for word, first in zip(choice, alternatives, strict=True))
            found.append(Command(match[1] or match[2], arguments, "…" in match[3]))
    return found


def _whole(word: str, alternatives: list[str]) -> str:
    """`--scale=paper|mini` splits into '--scale=paper' and 'mini'; the second one gets its flag back."""
    return word if word.startswith("-") else f"{alternatives[0].partition('=')[0]}={word}"


def _words(text: str) -> list[str]:
    text = re.split(r"\s{2,}\(|\s[>|&]\s|;|,\s|\*\*", text)[0].rstrip(" .:")
    for ending in ("", "'", '"'):
        try:
            words = shlex.split(text.removesuffix(ending), comments=True)
        except ValueError:  # The command stands inside of another one's quotes.
            continue
        return [word for word in words if word == "…" or word.startswith("-")]
    raise AssertionError(f"not a command line: {text}")
