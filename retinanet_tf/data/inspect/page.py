"""The dataset report as text for terminals and logs, and as HTML with pictures."""

import html
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from retinanet_tf.data.inspect.report import Inspection
from retinanet_tf.text import printable
from retinanet_tf.visualize import jpeg_url

_LISTED = 50  # sentences, and boxes worth a look
_NAME, _SENTENCE = 60, 1000  # letters of longer texts
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ccc}"
    "table{border-collapse:collapse}td{padding:2px 10px 2px 0;vertical-align:top}td.n{text-align:right}"
    ".bar{background:#4a7ebb;height:.8em;display:inline-block}.Errors{color:#b00020}.Warnings{color:#8a5a00}"
    "figure{display:inline-block;margin:4px;max-width:260px;vertical-align:top}figure img{max-width:260px}"
    "figcaption{font-size:12px}img.sheet{max-width:100%}"
)

Bars: TypeAlias = list[tuple[str, str, float]]
"""(name, value, length of its bar in 0..1)."""


def sections(report: Inspection) -> list[tuple[str, list[str], list[tuple[str, str | Bars]]]]:
    """(title, sentences, rows of a name and its value) of the page, safe to print."""
    kinds = Counter(reason for reason, *_ in report.suspicious)
    anchors = ("unreached", "image size of the model", "box side at that size", "expected positives")
    rows = [(name, _value(value)) for name, value in report.facts.items()]
    settings = [(flags, f"{half:.1%}, {less:.1%}") for flags, half, less in report.settings]
    return [
        ("Errors", _cut(report.errors) or ["None."], []),
        ("Warnings", _cut(report.warnings) or ["None."], []),
        ("Contents", [], [row for row in rows if not row[0].startswith(anchors)]),
        ("Anchor coverage", [], [row for row in rows if row[0].startswith(anchors)]),
        (
            "Settings with a better coverage (unreached at IoU 0.5, at 0.4)",
            [] if settings else ["None of those tried."],
            [*settings],
        ),
        ("Boxes worth a look", [] if kinds else ["None."], [(kind, str(count)) for kind, count in kinds.items()]),
    ]


def text_page(report: Inspection) -> str:
    """The page as plain text."""
    lines = [f"Dataset: {printable(report.source, _SENTENCE)}", verdict(report)]
    for title, sentences, rows in sections(report):
        lines += ["", title, "-" * len(title), *(f"  {sentence}" for sentence in sentences)]
        for name, value in rows:
            lines.append(f"  {name}: {value}" if isinstance(value, str) else f"  {name}:")
            bars = [] if isinstance(value, str) else value
            lines += [f"    {key:<24} {number:>8} {'#' * round(30 * share)}".rstrip() for key, number, share in bars]
    looks = [f"{reason}: {image.file_name}, {text}" for reason, image, _, text in report.suspicious]
    return "\n".join([*lines, *(f"    {line}" for line in _cut(looks))]) + "\n"


def html_page(
    report: Inspection, thumbnails: Sequence[tuple[np.ndarray, str]], sheets: Sequence[tuple[str, np.ndarray]]
) -> str:
    """The page as one HTML file without outside references.

    Args:
        report: the report.
        thumbnails: (picture uint8, caption) of suspicious boxes.
        sheets: (title, picture) of whole-width pictures.
    """
    style = "Errors" if report.errors else "Warnings" if report.warnings else ""
    parts = [f"<h1>Dataset: {_html(report.source)}</h1><p class='{style}'><b>{_html(verdict(report))}</b></p>"]
    for title, sentences, rows in sections(report):
        parts.append(f"<h2>{_html(title)}</h2>")
        parts += [f"<p class='{title if line != 'None.' else ''}'>{_html(line)}</p>" for line in sentences]
        parts.append("<table>")
        for name, value in rows:
            cell = _html(value) if isinstance(value, str) else _html_table(value)
            parts.append(f"<tr><td>{_html(name)}</td><td>{cell}</td></tr>")
        parts.append("</table>")
    for picture, caption in thumbnails:
        url = jpeg_url(Image.fromarray(picture))
        parts.append(f"<figure><img src='{url}'><figcaption>{_html(caption)}</figcaption></figure>")
    for title, picture in sheets:
        parts.append(f"<h2>{_html(title)}</h2><img class='sheet' src='{jpeg_url(Image.fromarray(picture))}'>")
    return f"<!doctype html><meta charset='utf-8'><title>Dataset</title><style>{_STYLE}</style>{''.join(parts)}\n"


def verdict(report: Inspection) -> str:
    """One sentence: whether the dataset is fit to train on."""
    if report.errors:
        return f"{len(report.errors)} errors: `retinanet prepare` would stop at, drop or mistake what is named below."
    return f"No errors, {len(report.warnings)} warnings."


def _cut(lines: list[str]) -> list[str]:
    rest = len(lines) - _LISTED
    shown = [printable(line, _SENTENCE) for line in lines[:_LISTED]]
    return shown + [f"… and {rest} more; report.json has all."] * (rest > 0)


def _value(value) -> str | Bars:
    if not isinstance(value, dict):
        return printable(str(value), _SENTENCE)
    if "median" in value and isinstance(value["median"], float):  # a spread; a class of that name has a count
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    items = [(printable(key, _NAME), number) for key, number in value.items()]
    if not all(isinstance(number, int) for _, number in items):
        return [(key, str(text), 0.0) for key, text in items]
    most = max([1, *value.values()])
    return [(key, str(number), number / most) for key, number in sorted(items, key=lambda item: -item[1])]


def _html(text: str) -> str:
    return html.escape(printable(text, _SENTENCE))


def _html_table(bars: Bars) -> str:
    rows = [
        f"<tr><td>{_html(name)}</td><td class='n'>{_html(number)}</td>"
        f"<td><span class='bar' style='width:{300 * share:.0f}px'></span></td></tr>"
        for name, number, share in bars
    ]
    return f"<table>{''.join(rows)}</table>"
