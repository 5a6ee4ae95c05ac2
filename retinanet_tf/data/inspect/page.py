"""The dataset report as text for terminals and logs, and as HTML with pictures."""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from retinanet_tf.data.inspect.report import Inspection
from retinanet_tf.text import printable

_LISTED = 50
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ccc}"
    "table{border-collapse:collapse}td{padding:2px 10px 2px 0;vertical-align:top}td.n{text-align:right}"
    ".bar{background:#4a7ebb;height:.8em;display:inline-block}.error{color:#b00020}.warning{color:#8a5a00}"
    "figure{display:inline-block;margin:4px;max-width:260px;vertical-align:top}figure img{max-width:260px}"
    "figcaption{font-size:12px}img.sheet{max-width:100%}"
)


def sections(report: Inspection) -> list[tuple[str, list]]:
    """(title, lines) of the page; a line is a sentence or a (name, value) pair, a value a number, text or dict."""
    kinds = Counter(reason for reason, *_ in report.suspicious)
    anchors = ("unreached", "image size of the model", "box side at that size", "expected positives")
    facts = list(report.facts.items())
    return [
        ("Errors", _cut(report.errors) or ["None."]),
        ("Warnings", _cut(report.warnings) or ["None."]),
        ("Contents", [(name, value) for name, value in facts if not name.startswith(anchors)]),
        ("Anchor coverage", [(name, value) for name, value in facts if name.startswith(anchors)]),
        (
            "Settings with a better coverage (unreached at IoU 0.5, at 0.4)",
            [(flags, f"{half:.1%}, {less:.1%}") for flags, half, less in report.settings] or ["None of those tried."],
        ),
        ("Boxes worth a look", list(kinds.items()) or ["None."]),
    ]


def text_page(report: Inspection) -> str:
    """The page as plain text."""
    lines = [f"Dataset: {report.source}", verdict(report)]
    for title, body in sections(report):
        lines += ["", title, "-" * len(title)]
        for line in body:
            lines += [f"  {line}"] if isinstance(line, str) else _text_of(*line)
    shown = report.suspicious[:_LISTED]
    lines += [f"    {reason}: {image.file_name}, {text}" for reason, image, _, text in shown]
    if len(report.suspicious) > len(shown):
        lines.append(f"    … and {len(report.suspicious) - len(shown)} more")
    return "\n".join(map(printable, lines)) + "\n"


def html_page(
    report: Inspection, thumbnails: Sequence[tuple[np.ndarray, str]], sheets: Sequence[tuple[str, np.ndarray]]
) -> str:
    """The page as one HTML file without outside references.

    Args:
        report: the report.
        thumbnails: (picture uint8, caption) of suspicious boxes.
        sheets: (title, picture) of whole-width pictures.
    """
    style = "error" if report.errors else "warning" if report.warnings else ""
    parts = [
        f"<h1>Dataset: {html.escape(report.source)}</h1><p class='{style}'><b>{html.escape(verdict(report))}</b></p>"
    ]
    for title, body in sections(report):
        style = {"Errors": "error", "Warnings": "warning"}.get(title, "")
        parts.append(f"<h2>{html.escape(title)}</h2>")
        sentences = [line for line in body if isinstance(line, str)]
        parts += [f"<p class='{style if line != 'None.' else ''}'>{html.escape(line)}</p>" for line in sentences]
        rows = [_html_of(*line) for line in body if not isinstance(line, str)]
        parts.append(f"<table>{''.join(rows)}</table>" if rows else "")
    for picture, caption in thumbnails:
        parts.append(f"<figure><img src='{_inline(picture)}'><figcaption>{html.escape(caption)}</figcaption></figure>")
    for title, picture in sheets:
        parts.append(f"<h2>{html.escape(title)}</h2><img class='sheet' src='{_inline(picture)}'>")
    return f"<!doctype html><meta charset='utf-8'><title>Dataset</title><style>{_STYLE}</style>{''.join(parts)}\n"


def verdict(report: Inspection) -> str:
    """One sentence: whether the dataset is fit to train on."""
    if report.errors:
        return f"{len(report.errors)} errors: `retinanet prepare` would stop at, drop or mistake what is named below."
    return f"No errors, {len(report.warnings)} warnings."


def _cut(lines: list[str]) -> list[str]:
    rest = len(lines) - _LISTED
    return lines[:_LISTED] + ([f"… and {rest} more; report.json has all."] if rest > 0 else [])


def _text_of(name: str, value) -> list[str]:
    if not isinstance(value, dict) or "median" in value:
        return [f"  {name}: {_one_line(value)}"]
    bars = [f"    {key:<24} {number!s:>8} {'#' * round(30 * share)}".rstrip() for key, number, share in _bars(value)]
    return [f"  {name}:", *bars]


def _html_of(name: str, value) -> str:
    if not isinstance(value, dict) or "median" in value:
        return f"<tr><td>{html.escape(name)}</td><td>{html.escape(_one_line(value))}</td></tr>"
    rows = []
    for key, number, share in _bars(value):
        bar = f"<span class='bar' style='width:{300 * share:.0f}px'></span>" if share else ""
        rows.append(f"<tr><td>{html.escape(key)}</td><td class='n'>{html.escape(str(number))}</td><td>{bar}</td></tr>")
    return f"<tr><td>{html.escape(name)}</td><td><table>{''.join(rows)}</table></td></tr>"


def _one_line(value) -> str:
    return ", ".join(f"{key} {number:g}" for key, number in value.items()) if isinstance(value, dict) else str(value)


def _bars(value: dict) -> list[tuple[str, object, float]]:
    """(name, value, length of its bar in 0..1); counts in descending order."""
    if not all(isinstance(number, int) for number in value.values()):
        return [(key, text, 0.0) for key, text in value.items()]
    most = max(value.values(), default=0) or 1
    return [(key, number, number / most) for key, number in sorted(value.items(), key=lambda item: -item[1])]


def _inline(picture: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
