"""Published weights by name: `retinanet models` lists them, `retinanet models NAME` has everything known of one.

A name works wherever a run's folder does: `--model=NAME` of predict, evaluate and export, `--init_weights=NAME` of
train, and `load_detector` in Python. Its file is downloaded and converted at the first use, into RETINANET_TF_HOME or
the platform's cache folder; a download that breaks off begins anew.
"""

import itertools
import operator
import textwrap
from collections.abc import Sequence

from absl import flags

from retinanet_tf.pretrained.cache import published_file
from retinanet_tf.pretrained.zoo import INPUTS, NEVER_RUN, ZOO, Entry, find

_NAME = flags.DEFINE_string("name", None, "The model whose facts are shown; `retinanet models NAME` is the same.")
_MARKDOWN = flags.DEFINE_boolean("markdown", False, "Print all facts of all models, as docs/models.md has them.")
_HEAD = ("name", "network", "trained on", "published", "MB")
_LAYOUT = (
    "Each layout was tried with random weights: outputs equal those of the publisher's network, rebuilt in the tests."
)


def main() -> None:
    """Prints the list, or a model's facts."""
    if _MARKDOWN.value:
        print(markdown(), end="")
    else:
        print(facts(find(_NAME.value)) if _NAME.value else table())


def table() -> str:
    """All models, grouped by origin, licence and conditions of the published value."""
    widths = [max(map(len, column)) for column in zip(_HEAD, *map(_row, ZOO.values()), strict=True)]
    lines = [_line(_HEAD, widths)]
    common = operator.attrgetter("origin", "licence", "conditions")
    for (origin, licence, conditions), entries in itertools.groupby(ZOO.values(), common):
        lines += ["", f"{origin}; licence: {licence}", *[f"published: {conditions}"] * bool(conditions)]
        lines += [_line(_row(entry), widths) for entry in entries]
    last = "None was run with its original file; `retinanet models NAME` has the check and all facts."
    return "\n".join([*lines, "", _LAYOUT, last])


def facts(entry: Entry) -> str:
    """Everything known of a model, and the commands that use and check it."""
    file = published_file(entry)
    known = {**_facts(entry), "file": f"{file} ({'is there' if file.exists() else 'not downloaded yet'})"}
    lines = [entry.name, *(_field(name, text) for name, text in known.items() if text), ""]
    if entry.detects:
        lines += ["Detections:", f"  retinanet predict --model={entry.name} --images=photo.jpg --output=found"]
    if command := entry.check_command():
        lines += ["Check of the published value:", f"  {command}", f"  should print about AP {entry.value:g}"]
    lines += [
        "Training from it:",
        f"  retinanet train --init_weights={entry.name} --num_classes=N --data=… --run_dir=…",
    ]
    return "\n".join(lines)


def markdown() -> str:
    """All models with all facts as a page."""
    lines = [
        "# Published weights by name",
        "",
        "`retinanet models --markdown` wrote this page from `retinanet_tf/pretrained/zoo.py`. Facts marked",
        "(unconfirmed) weren't found in the publisher's own sources.",
        "No row was run here with its original file: none could be downloaded where this was written.",
        "",
        "What was verified instead is that tensors with random values, in the publisher's names and shapes, are all",
        "matched, and that with them the network gives the outputs of the publisher's network, which the tests rebuild",
        "independently of the package, on a picture of 96x64 pixels, to a thousandth of the largest value. The tests",
        'are tests/pretrained/test_importing*.py; "once by hand" is the same comparison outside of them.',
        "",
        "| name | tensors | outputs | the original file | AP to be printed |",
        "|---|---|---|---|---|",
        *(
            f"| {entry.name} | {entry.tensors} | {entry.outputs} | never run | "
            f"{f'{entry.value:g}' if entry.check_command() else '–'} |"
            for entry in ZOO.values()
        ),
        "",
        "The command that prints the AP is below, with each row's facts.",
    ]
    for entry in ZOO.values():
        command = entry.check_command()
        check = f"`{command}` should print about AP {entry.value:g}" if command else ""
        known = {**_facts(entry), "check": check}
        lines += ["", f"## {entry.name}", "", *(f"- {name}: {text}" for name, text in known.items() if text)]
    return "\n".join(lines) + "\n"


def _row(entry: Entry) -> tuple[str, ...]:
    return (entry.name, entry.network, _data(entry), _value(entry), _megabytes(entry))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(map(str.ljust, cells, widths)).rstrip()


def _facts(entry: Entry) -> dict[str, str]:
    """Facts by their name, '' where nothing is known."""
    classes = [category["name"] for category in entry.categories()]
    return {
        "network": entry.network,
        "input": INPUTS[entry.source],
        "trained on": _data(entry),
        "classes": ", ".join([*classes[:8], "…"] if len(classes) > 8 else classes),
        "published": f"{_value(entry)} ({entry.conditions})" if entry.value is not None else "",
        "licence": entry.licence,
        "source": entry.origin,
        "URL": entry.url,
        "size": f"{_megabytes(entry)} MB" if entry.megabytes else "",
        "digest": _digest(entry),
        "settings": ", ".join(f"{name}={value}" for name, value in entry.settings.items()),
        "tensors": f"matched: {entry.tensors}",
        "outputs": f"equal: {entry.outputs}",
        "original": NEVER_RUN,
        "notes": "; ".join(entry.notes),
    }


def _data(entry: Entry) -> str:
    count = len(entry.categories())
    return f"{entry.data}, {count} class{'es' * (count > 1)}" if entry.detects else entry.data


def _value(entry: Entry) -> str:
    return "–" if entry.value is None else f"{entry.metric} {entry.value:g}"


def _digest(entry: Entry) -> str:
    algorithm, url = entry.digest_url
    said = f"the {algorithm.upper()} that {url} says" if url else "none known; the tensors are checked"
    return entry.digest or said


def _megabytes(entry: Entry) -> str:
    return "–" if entry.megabytes is None else f"{entry.megabytes:g}"


def _field(name: str, text: str) -> str:
    return textwrap.fill(
        text,
        110,
        initial_indent=f"  {name:<11}",
        subsequent_indent=" " * 13,
        break_long_words=False,
        break_on_hyphens=False,
    )
