"""A table of the paper as data: rows of changed settings with the paper's numbers, run at one of three scales.

    python -m experiments.paper.table_1b --scale=paper --data=… --validation=… --init_weights=… --rows=1,3
    python -m experiments.paper.table_1b --scale=mini --seeds=0,1,2
    python -m experiments.paper.table_1b --scale=real --data=… --validation=…       (bccd's shards)
    python -m experiments.paper.table_1b --scale=paper --dry_run                    (prints every job as a flagfile)
    python -m experiments.paper.table_1b --scale=mini --collect                     (the table of what has finished)

A row that has finished isn't run again, so rows can be spread over machines that share --output. Every scale writes
into its own folder; a miniature's number never stands beside the paper's in one column.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from retinanet_tf import runs
from retinanet_tf.config import Config
from retinanet_tf.config_presets import presets
from retinanet_tf.data import files, shapes
from retinanet_tf.data.prepare import prepare
from retinanet_tf.errors import InputError
from retinanet_tf.training import train

SCALE = flags.DEFINE_enum("scale", "mini", ["paper", "mini", "real"], "Schedule and data; 'paper' is the paper's.")
ROWS = flags.DEFINE_list("rows", [], "Numbers of the rows to run, from 0; all by default.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds; each row is run with each of them.")
DATA = flags.DEFINE_string("data", "", "Pattern of the training shards; scale=mini makes its own.")
VALIDATION = flags.DEFINE_string("validation", "", "Pattern of the validation shards; scale=mini makes its own.")
INIT_WEIGHTS = flags.DEFINE_string("init_weights", "", "ImageNet weights, imported; the paper begins with them.")
RUNS = flags.DEFINE_string("runs", "runs/paper", "Folder for the jobs.")
OUTPUT = flags.DEFINE_string("output", "experiments/results", "Folder for SCALE/NAME.json and SCALE/NAME.md.")
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print every job as the flagfile of experiments.train; run nothing.")
COLLECT = flags.DEFINE_boolean("collect", False, "Write the table of the jobs that have finished; run nothing.")

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: its label, what it changes in the study's base, and what the paper reports (AP, …)."""

    label: str
    changes: Mapping[str, Any]
    paper: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """A table. `base` changes the scale's own configuration for all rows; `hours` is of a row on 8 GPUs."""

    name: str
    title: str
    rows: tuple[Row, ...]
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hours: float = 10.0


# One image of 192 pixels has 6,975 anchors and a small object or two: about a thousand easy negatives a positive. The
# optimiser is the paper's, for as many steps as two cores take in some minutes.
_MINI = presets["mini"].replace(
    image_size=192,
    max_size=192,
    batch_size=8,
    subnet_norm="none",
    normalizer="image",
    promote="never",
    optimizer="sgd",
    learning_rate=0.01,
    schedule="step",
    steps=900,
    decay_steps=(600, 800),
    warmup_steps=0,
    weight_decay=1e-4,
    checkpoint_steps=300,
    log_steps=0,
)
_REAL = presets["mini"].replace(
    num_classes=3, image_size=288, max_size=384, batch_size=4, steps=1000, checkpoint_steps=250, cache="ram"
)
_SCALES: Mapping[str, Config] = {"paper": presets["paper"], "mini": _MINI, "real": _REAL}


def resolve(study: Study, row: Row, scale: str, seed: int) -> Config:
    """The whole configuration of a row at a scale."""
    return _SCALES[scale].replace(**study.base).replace(**row.changes, seed=seed)


def with_base(study: Study, base: Mapping[str, Any]) -> Study:
    """The study with further settings for all its rows."""
    return dataclasses.replace(study, base={**study.base, **base})


def main(study: Study) -> None:
    """Runs, prints or collects a study, as the flags say."""
    seeds = _numbers("seeds", SEEDS.value)
    chosen = _numbers("rows", ROWS.value) or range(len(study.rows))
    if any(not 0 <= number < len(study.rows) for number in chosen):
        raise InputError(f"--rows={','.join(ROWS.value)}: {study.name} has rows 0 to {len(study.rows) - 1}.")
    scale, folder = SCALE.value, Path(RUNS.value) / SCALE.value / study.name
    if DRY_RUN.value:
        for number in chosen:
            for seed in seeds:
                config = resolve(study, study.rows[number], scale, seed)
                print(f"# {study.name}, row {number} ({study.rows[number].label}), seed {seed}")
                print(runs.flagfile(config, **_paths(), run_dir=str(_run_dir(folder, number, seed))))
        return
    if not COLLECT.value:
        paths = _generated() if scale == "mini" else _given()
        for number in chosen:
            for seed in seeds:
                _job(resolve(study, study.rows[number], scale, seed), _run_dir(folder, number, seed), paths)
    _collect(study, scale, folder)


def _numbers(name: str, values: list[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise InputError(f"--{name}={','.join(values)} must be a list of whole numbers.") from None


def _run_dir(folder: Path, number: int, seed: int) -> Path:
    return folder / f"row{number}-seed{seed}"


def _paths() -> dict[str, str]:
    return {"data": DATA.value, "validation": VALIDATION.value, "init_weights": INIT_WEIGHTS.value}


def _given() -> dict[str, str]:
    if not (DATA.value and VALIDATION.value):
        raise InputError(f"--scale={SCALE.value} needs --data and --validation, patterns of prepared shards.")
    return _paths()


def _generated() -> dict[str, str]:
    """Shards of generated pictures with few, small objects; made once."""
    folder = Path(RUNS.value) / "mini" / "data"
    splits = shapes.generate(
        folder / "coco", num_train=2000, num_val=300, image_size=_MINI.model.image_size, objects=(1, 2), sizes=(12, 48)
    )
    for name, split in splits.items():
        prepare(split.annotations, split.images, folder, name, shards=2)
    return {"data": str(folder / "train-*.tfrecord"), "validation": str(folder / "val-*.tfrecord"), "init_weights": ""}


def _job(config: Config, run_dir: Path, paths: dict[str, str]) -> None:
    """One row with one seed; a divergence is a result too, and kept as such."""
    if (run_dir / "outcome.json").exists():
        print(f"{run_dir} has finished and is reused.")
        return
    start = time.time()
    try:
        train(config, **paths, run_dir=str(run_dir))
        outcome = {"diverged": False, **json.loads((run_dir / "metrics.json").read_text())}
    except InputError as error:
        if "NaN" not in str(error):
            raise
        outcome = {"diverged": True, "why": str(error)}
    hours = (time.time() - start) / 3600
    files.write_json(run_dir / "outcome.json", {**outcome, "hours": round(hours, 3), "made_by": runs.provenance()})


def _collect(study: Study, scale: str, folder: Path) -> None:
    rows = []
    for number, row in enumerate(study.rows):
        found = {
            int(path.parent.name.rsplit("seed", 1)[1]): json.loads(path.read_text())
            for path in sorted(folder.glob(f"row{number}-seed*/outcome.json"))
        }
        rows.append({"label": row.label, "changes": dict(row.changes), "paper": list(row.paper), "seeds": found})
    output = Path(OUTPUT.value) / scale
    files.make_folder(output, "--output")
    schedule = _SCALES[scale].replace(**study.base)
    heading = f"{schedule.train.steps} steps of {schedule.data.batch_size} images of {schedule.model.image_size} px"
    files.write_json(output / f"{study.name}.json", {"title": study.title, "schedule": heading, "rows": rows})
    files.write_text(output / f"{study.name}.md", _table(study, scale, heading, rows))
    print((output / f"{study.name}.md").read_text())


def _table(study: Study, scale: str, heading: str, rows: list[dict]) -> str:
    ours = "ours" if scale == "paper" else f"{scale} scale, not comparable"
    lines = [
        f"# {study.title}",
        "",
        f"At scale `{scale}`: {heading}.",
        "",
        f"| | paper AP / AP50 / AP75 | {ours}: AP / AP50 / AP75 (mean ± spread) | seeds |",
        "|---|---|---|---|",
    ]
    for row in rows:
        paper = " / ".join(f"{value:.1f}" for value in row["paper"][:3]) or "–"
        values = list(row["seeds"].values())
        kept = [value for value in values if not value["diverged"]]
        text = "–" if not values else " / ".join(_spread([100 * value[name] for value in kept]) for name in NUMBERS[:3])
        if values and len(kept) < len(values):
            text += f" ({len(values) - len(kept)} of {len(values)} diverged)"
        lines.append(f"| {row['label']} | {paper} | {text} | {len(values)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    if not values:
        return "diverged"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
