"""Figure 2: accuracy against time, RetinaNet at several depths and scales beside the detectors of its time.

    python -m experiments.paper.figure_2 --scale=paper

Draws the paper's points (COCO test-dev, times on an M40) and, in a panel of their own, those that `table_1e --collect`
measured at this scale on this machine. Nothing is trained.
"""

import json
from pathlib import Path

from experiments.paper import report, study, table_1e
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.errors import InputError
from retinanet_tf.visualize import new_figure, save_figure

OTHERS = {
    "YOLOv2": (25, 21.6),
    "SSD321": (61, 28.0),
    "DSSD321": (85, 28.0),
    "R-FCN": (85, 29.9),
    "SSD513": (125, 31.2),
    "DSSD513": (156, 33.2),
    "FPN Faster R-CNN": (172, 36.2),
}
"""(milliseconds, AP) in the figure's legend."""

Curves = dict[str, list[tuple[float, float]]]


def papers() -> Curves:
    """The paper's points of RetinaNet, {depth: [(milliseconds, AP)]}."""
    found: Curves = {}
    for (backbone, size), numbers in table_1e.AP.items():
        found.setdefault(backbone, []).append((table_1e.MILLISECONDS[backbone, size], numbers[0]))
    return found


def measured(path: Path) -> Curves:
    """The points of a collected Table 1e."""
    if not path.exists():
        raise InputError(f"{path} is missing; run experiments.paper.table_1e and its --collect first.")
    found: Curves = {}
    for row in json.loads(path.read_text())["rows"]:
        times = [run["ms_an_image"] for run in row["runs"] if "ms_an_image" in run]
        if times:
            found.setdefault(row["changes"]["backbone"], []).append((min(times), report.mean(row)[0]))
    return found


def main() -> None:
    """Draws both panels and writes the points."""
    scale = study.SCALE.value
    folder = Path(study.OUTPUT.value) / scale
    ours = measured(folder / "table_1e.json")
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    for axes, curves in ((left, papers()), (right, ours)):
        for name, points in curves.items():
            axes.plot(*zip(*sorted(points), strict=True), "o-", label=f"RetinaNet, {name}")
    for name, (time, accuracy) in OTHERS.items():
        left.plot(time, accuracy, "s", color="#777777")
        left.annotate(name, (time, accuracy), textcoords="offset points", xytext=(4, -11), fontsize=8)
    left.set(title="the paper: COCO test-dev, M40")
    right.set(title=f"scale {scale}: its own data and machine")
    for axes in (left, right):
        axes.set(xlabel="milliseconds per image", ylabel="AP")
        axes.legend()
    points = {"paper": papers(), "paper_others": OTHERS, scale: ours}
    files.write_json(folder / "figure_2.json", points)
    print(save_figure(figure, folder / "figure_2.png"))


if __name__ == "__main__":
    run(main)
