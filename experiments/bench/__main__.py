"""The CPU benchmarks in one run, and their table: `make bench`, or

    python -m experiments.bench --output=runs/bench [--images=photos] [--only=losses,train]

Each benchmark is a process of its own, one after the other: nothing else should run on the machine. `accelerator`,
`exports` and `workers` are run by themselves. What they compare with is in the extra `bench`; a peer that
isn't installed is "not run". Leaves NAME_vXYZ.json for every benchmark, and bench_vXYZ.json, .md and .png of all rows:
ours, the peer, their ratio and the limit that it is held to. Where the peer is a share of the machine (matmul peak, a
copy of the array, bare decoding), the ratio is ours of it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from retinanet_tf import files
from retinanet_tf.cli.before_tensorflow import original_environment
from retinanet_tf.cli.main import run
from retinanet_tf.errors import InputError
from retinanet_tf.visualize import new_figure, save_figure

BENCHMARKS = ("losses", "train", "detect", "input", "prepare", "scaling")
_OUTPUT = flags.DEFINE_string("output", "runs/bench", "Folder for what the benchmarks leave.")
_IMAGES = flags.DEFINE_string("images", "", "Folder of JPEG photos for `input` and `prepare`; else noise.")
_ONLY = flags.DEFINE_list("only", [], f"Some of {', '.join(BENCHMARKS)}; all by default.")
_COLLECT = flags.DEFINE_boolean("collect", False, "Make the table of what the folder holds; run nothing.")
STEM = f"v{sys.version_info.major}{sys.version_info.minor}"


def main() -> None:
    """Runs what was asked for, then collects."""
    folder = Path(_OUTPUT.value)
    files.make_folder(folder, "--output")
    chosen = _ONLY.value or BENCHMARKS
    for name in chosen:
        if name not in BENCHMARKS:
            raise InputError(f"--only={name} isn't a benchmark; there are {', '.join(BENCHMARKS)}.")
    for name in () if _COLLECT.value else chosen:
        print(f"=== {name}", flush=True)
        result = f"--output={folder}" if name == "scaling" else f"--json={folder / f'{name}_{STEM}.json'}"
        photos = [f"--images={_IMAGES.value}"] if _IMAGES.value and name in ("input", "prepare") else []
        command = [sys.executable, "-m", f"experiments.bench.{name}", result, *photos]
        subprocess.run(command, check=True, env=original_environment())
    rows = [
        {"benchmark": name, **row}
        for name in BENCHMARKS
        if name != "scaling" and (path := folder / f"{name}_{STEM}.json").exists()
        for row in json.loads(path.read_text())
    ]
    if not rows:
        raise InputError(f"{folder} holds no results of this Python ({STEM}); run without --collect.")
    files.write_json(folder / f"bench_{STEM}.json", rows)
    text = table(rows)
    files.write_text(folder / f"bench_{STEM}.md", text)
    draw(rows, folder / f"bench_{STEM}.png")
    print(text)


def table(rows: Sequence[dict]) -> str:
    """Markdown: one row per comparison, with its limit and whether it is kept; the stacks and machines once above."""
    made = sorted({f"{row['stack']}; {row['hardware']}" for row in rows})
    lines = [f"# Benchmarks, {made[0].partition(',')[0]}", "", *made, ""]
    lines += ["| | ours | beside | theirs | unit | ratio | limit | |", "|---" * 8 + "|"]
    for row in rows:
        theirs, ratio = ("not run", "–") if row["ratio"] is None else (f"{row['peer_value']:g}", f"{row['ratio']:.2f}")
        limit = "–" if row["limit"] is None else f"{row['limit']:.2f}"
        kept = "" if None in (row["limit"], row["ratio"]) else "kept" if row["ratio"] <= row["limit"] else "**missed**"
        ours = "–" if row["ours"] is None else f"{row['ours']:g}"
        lines.append(
            f"| {row['name']} | {ours} | {row['peer']} | {theirs} | {row['unit']} | {ratio} | {limit} | {kept} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict], path: Path) -> None:
    """Ratios as bars with a mark at each limit, logarithmic."""
    known = [row for row in rows if row["ratio"]]
    figure = new_figure(11, 1.5 + 0.26 * len(known))
    axes = figure.subplots()
    places = range(len(known))
    axes.barh(places, [row["ratio"] for row in known], color="#4878a8")
    for place, row in zip(places, known, strict=True):
        if row["limit"] is not None:
            axes.plot([row["limit"]] * 2, [place - 0.4, place + 0.4], color="#c03030", linewidth=2)
    axes.set(xscale="log", xlabel="ours / theirs (red: the limit)", yticks=list(places))
    axes.set_yticklabels([f"{row['name']} | {row['peer']}"[:90] for row in known], fontsize=7)
    axes.invert_yaxis()
    save_figure(figure, path)


if __name__ == "__main__":
    run(main)
