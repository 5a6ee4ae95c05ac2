"""Tables of a study: NAME.json with every run; NAME.md and NAME.png with ours beside the paper's, apart from it.

Means are over the seeds that didn't diverge, ± the sample's standard deviation.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from retinanet_tf import files
from retinanet_tf.visualize import new_figure, save_figure

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def write(folder: Path, name: str, title: str, scale: str, schedule: str, rows: Sequence[Mapping]) -> None:
    """Writes the three files and prints the table.

    Args:
      folder: of the scale.
      name: of the study, and of the files.
      title: for readers.
      scale: 'paper', 'mini' or 'real'.
      schedule: steps, batch and image size in words.
      rows: {"label", "changes", "paper": numbers of the paper, "runs": outcomes}.
    """
    files.make_folder(folder, "--output")
    command = f"python -m experiments.paper.{name} --scale={scale}"
    heading = {"title": title, "scale": scale, "schedule": schedule, "command": command}
    files.write_json(folder / f"{name}.json", {**heading, "rows": rows})
    shown = [row for row in rows if row["runs"] or row["paper"]]
    text = _table(heading, shown)
    if len(shown) < len(rows):
        text += f"\n{len(rows) - len(shown)} of {len(rows)} rows haven't been run and are left out.\n"
    files.write_text(folder / f"{name}.md", text)
    _plot(folder / f"{name}.png", heading, shown)
    print(text)


def mean(row: Mapping, number: str = "AP") -> tuple[float, float]:
    """(mean, standard deviation) in points over a row's runs that gave the number; NaN without one or two of them."""
    values = _values(row, number)
    return (
        statistics.mean(values) if values else float("nan"),
        statistics.stdev(values) if len(values) > 1 else float("nan"),
    )


def _values(row: Mapping, number: str) -> list[float]:
    """COCO's numbers in points; −1, "no such objects", is left out."""
    return [100 * run[number] for run in row["runs"] if not run["diverged"] and run[number] >= 0]


def _cell(row: Mapping, number: str) -> str:
    middle, spread = mean(row, number)
    if middle != middle:
        return "–"
    return f"{middle:.1f}" + ("" if spread != spread else f" ± {spread:.1f}")


def _gain(row: Mapping) -> str:
    """The mean gain of AP in points since two thirds of the schedule: that of a training which has come to its end is
    small."""
    gains = []
    for run in row["runs"]:
        by_step = {int(step): value for step, value in run.get("AP_by_step", {}).items()}
        earlier = [step for step in by_step if step <= 2 / 3 * max(by_step)]
        if earlier and not run["diverged"]:
            gains.append(100 * (by_step[max(by_step)] - by_step[max(earlier)]))
    return f"{statistics.mean(gains):+.1f}" if gains else "–"


def _table(heading: Mapping, rows: Sequence[Mapping]) -> str:
    scale = heading["scale"]
    ours = "ours" if scale == "paper" else f"{scale} scale (its own data and network)"
    measured = sorted({key for row in rows for run in row["runs"] for key in run if key.startswith("ms_")})
    lines = [
        f"# {heading['title']}",
        "",
        f"{ours[0].upper()}{ours[1:]}: {heading['schedule']}. `{heading['command']}`",
        "",
        "| | the paper: AP / AP50 / AP75 | "
        + " | ".join([*(f"{scale}: {number}" for number in NUMBERS), *measured, "last third", "seeds", "diverged"])
        + " |",
        "|---" * (len(NUMBERS) + len(measured) + 5) + "|",
    ]
    for row in rows:
        paper = " / ".join(f"{value:.1f}" for value in row["paper"][:3]) or "–"
        done = row["runs"]
        times = [
            f"{statistics.median(times):.1f}" if (times := [run[key] for run in done if key in run]) else "–"
            for key in measured
        ]
        cells = [*(_cell(row, number) for number in NUMBERS), *times, _gain(row), str(len(done))]
        lines.append(f"| {row['label']} | {paper} | {' | '.join(cells)} | {sum(run['diverged'] for run in done)} |")
    return "\n".join(lines) + "\n"


def _plot(path: Path, heading: Mapping, rows: Sequence[Mapping]) -> None:
    """AP by row: the paper's in one panel, ours in another with an axis of its own."""
    places = range(len(rows))
    figure = new_figure(9, 1.2 + 0.34 * len(rows))
    theirs, ours = figure.subplots(1, 2, sharey=True)
    theirs.plot([row["paper"][0] if row["paper"] else float("nan") for row in rows], places, "s", color="#555555")
    theirs.set(title="the paper", xlabel="AP", yticks=list(places), yticklabels=[row["label"] for row in rows])
    for place, row in enumerate(rows):
        values = _values(row, "AP")
        ours.plot(values, [place] * len(values), "o", color="#1f77b4", alpha=0.4)
        ours.errorbar(mean(row)[0], place, xerr=mean(row)[1], fmt="|", color="#1f77b4", markersize=12, capsize=3)
        diverged = sum(run["diverged"] for run in row["runs"])
        if diverged:
            ours.text(0.02, place, f"{diverged} of {len(row['runs'])} diverged", transform=ours.get_yaxis_transform())
    ours.set(title=f"scale {heading['scale']}: {heading['schedule']}", xlabel="AP")
    theirs.invert_yaxis()
    figure.suptitle(heading["title"])
    save_figure(figure, path)
