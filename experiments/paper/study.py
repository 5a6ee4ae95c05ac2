"""A table of the paper as data: rows of changed settings with the paper's numbers, run at one of three scales.

    python -m experiments.paper.table_1b --scale=paper --data=… --validation=… --init_weights=… --rows=1,3
    python -m experiments.paper.table_1b --scale=mini --seeds=0,1,2
    python -m experiments.paper.table_1b --scale=real --data=… --validation=…       (bccd's shards)
    python -m experiments.paper.table_1b --scale=paper --dry_run                    (prints every job as a flagfile)
    python -m experiments.paper.table_1b --scale=mini --collect                     (the table of what has finished)

A row that has finished isn't run again, in whichever table it stands: a job's folder is named by what it changes. So
rows can be spread over machines that share --runs. Every scale writes into its own folder; a miniature's number never
stands beside the paper's in one column.
"""

import csv
import dataclasses
import glob
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
from absl import flags

from experiments.paper import miniature, report
from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flagfile
from retinanet_tf.config.presets import presets
from retinanet_tf.data.records.reader import labels_beside
from retinanet_tf.errors import InputError
from retinanet_tf.inference import checkpoint
from retinanet_tf.provenance import provenance
from retinanet_tf.training import run_directory
from retinanet_tf.training.callbacks import LOSSES
from retinanet_tf.training.train import train

STUDIES = (
    "table_1a",
    "table_1b",
    "table_1c",
    "table_1d",
    "table_1e",
    "table_2",
    "table_3",
    "initialisation",
    "hinge",
    "figure_7",
    "losses",
    "longer",
)
"""The modules of this folder that are tables."""
SCALE = flags.DEFINE_enum("scale", "mini", ["paper", "mini", "real"], "Schedule and data; 'paper' is the paper's.")
ROWS = flags.DEFINE_list("rows", [], "Numbers of the rows to run, from 0; all by default.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds; each row is run with each of them.")
DATA = flags.DEFINE_string("data", "", "Pattern of the training shards; scale=mini makes its own.")
VALIDATION = flags.DEFINE_string("validation", "", "Pattern of the validation shards; scale=mini makes its own.")
INIT_WEIGHTS = flags.DEFINE_string(
    "init_weights", "", "Imported ImageNet weights; '{backbone}' in it stands for the row's backbone."
)
RUNS = flags.DEFINE_string("runs", "runs/paper", "Folder for the jobs.")
OUTPUT = flags.DEFINE_string("output", "experiments/results", "Folder for SCALE/NAME.json, .md and .png.")
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print every job as the flagfile of `retinanet train`; run nothing.")
COLLECT = flags.DEFINE_boolean("collect", False, "Write the table of the jobs that have finished; run nothing.")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: its label, what it changes in the study's base, and what the paper reports (AP, …)."""

    label: str
    changes: Mapping[str, Any]
    paper: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """A table."""

    name: str
    title: str
    rows: tuple[Row, ...]
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of all rows that differ from the scale's own configuration."""
    paper_base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The same at the paper's scale alone: the miniatures keep their small network."""
    small_rows: tuple[Row, ...] = ()
    """The rows of the other scales, where the paper's make no sense there (depths, image sizes)."""
    others: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """The paper's rows that aren't run here, beside the others at its own scale: {label: the paper's numbers}."""
    measure: Callable[[Path], Mapping[str, float]] | None = None
    """Measurement of a finished job's folder, made once, when the table is collected."""

    def rows_at(self, scale: str) -> tuple[Row, ...]:
        """The table's rows at a scale."""
        return self.rows if scale == "paper" or not self.small_rows else self.small_rows


REAL = presets["mini"].replace(
    num_classes=3, image_size=288, max_size=384, batch_size=4, steps=1000, checkpoint_steps=250
)
SCALES: Mapping[str, Config] = {"paper": presets["paper"], "mini": miniature.BASE, "real": REAL}


def base_at(study: Study, scale: str) -> Config:
    """Settings of the rows at a scale."""
    return SCALES[scale].replace(**study.base, **(study.paper_base if scale == "paper" else {}))


def resolve(study: Study, row: Row, scale: str, seed: int) -> Config:
    """The whole configuration of a row at a scale."""
    return base_at(study, scale).replace(**row.changes, seed=seed)


def job_name(config: Config, scale: str) -> str:
    """A folder's name: the settings in which a job differs from the scale's own configuration, and its seed."""
    before = SCALES[scale].flat()
    changed = {name: value for name, value in config.flat().items() if value != before[name] and name != "seed"}
    parts = [f"{name}={_short(value)}" for name, value in changed.items()]
    return ",".join([*(parts or ["base"]), f"seed={config.train.seed}"])


def _short(value) -> str:
    if isinstance(value, tuple):
        return "+".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(study: Study) -> None:
    """Runs, prints or collects a study, as the flags say."""
    scale = SCALE.value
    rows = study.rows_at(scale)
    chosen, seeds = numbers("rows", ROWS.value) or range(len(rows)), numbers("seeds", SEEDS.value)
    if any(not 0 <= number < len(rows) for number in chosen):
        raise InputError(f"--rows={','.join(ROWS.value)}: {study.name} has rows 0 to {len(rows) - 1}.")
    folder = Path(RUNS.value) / scale
    jobs = [(number, resolve(study, rows[number], scale, seed)) for seed in seeds for number in chosen]
    pictures = Path(RUNS.value) / "miniature"
    paths = miniature.places(pictures) if scale == "mini" else _given()
    if DRY_RUN.value:
        for number, config in jobs:
            print(f"# {study.name}, row {number} ({rows[number].label}), seed {config.train.seed}")
            run_dir = folder / job_name(config, scale)
            print(flagfile(config, **_filled(paths, config), run_dir=str(run_dir)))
        return
    if not COLLECT.value:
        if scale == "mini":
            miniature.make(pictures, {config.model.backbone for _, config in jobs})
        if not (paths["data"] and paths["validation"]):
            raise InputError(f"--scale={scale} needs --data and --validation, patterns of prepared shards.")
        for _, config in jobs:
            run_job(config, folder / job_name(config, scale), _filled(paths, config))
    _collect(study, scale, folder)


def numbers(name: str, values: list[str]) -> list[int]:
    """A flag's list of whole numbers."""
    try:
        return [int(value) for value in values]
    except ValueError:
        raise InputError(f"--{name}={','.join(values)} must be a list of whole numbers.") from None


def _given() -> dict[str, str]:
    return {"data": DATA.value, "validation": VALIDATION.value, "init_weights": INIT_WEIGHTS.value}


def _filled(paths: Mapping[str, str], config: Config) -> dict[str, str]:
    return {**paths, "init_weights": paths["init_weights"].replace("{backbone}", config.model.backbone)}


def run_job(config: Config, run_dir: Path, paths: dict[str, str]) -> None:
    """One row with one seed; a divergence is a result too, and kept as such."""
    if (run_dir / "outcome.json").exists():
        _check_same(config, run_dir, paths["data"])
        print(f"{run_dir} has finished and is reused.")
        return
    print(run_dir, flush=True)
    keras.backend.clear_session()
    start = time.time()
    outcome = {"seed": config.train.seed, "diverged": False}
    try:
        train(config, **paths, run_dir=str(run_dir))
        outcome |= files.read_json(run_dir / "metrics.json", "the metrics")
        evaluations = run_directory.read_evaluations(run_dir, config.train.steps)
        outcome["AP_by_step"] = {row["step"]: row["AP"] for row in evaluations}
    except InputError as error:
        if "became NaN" not in str(error):
            raise
        outcome |= {"diverged": True, "why": str(error).partition(" (")[0]}  # without this machine's paths
    outcome |= {"losses": _last_losses(run_dir), "hours": round((time.time() - start) / 3600, 4)}
    files.write_json(run_dir / "outcome.json", {**outcome, "made_by": provenance()})


def _check_same(config: Config, run_dir: Path, data: str) -> None:
    """Refuses a finished job of other classes, or of another version's settings, whose name is the same."""
    if not (run_dir / "run.json").exists():  # an outcome that was copied alone
        return
    labels = files.read_json(run_dir / "run.json", "the run").get("labels")
    if checkpoint.load_config(run_dir) != config or labels != labels_beside(data).to_json():
        raise InputError(f"{run_dir} is a finished job with other settings or classes; give another --runs.")


def _last_losses(run_dir: Path) -> dict[str, float]:
    """The mean losses of the last epoch that came to its end."""
    log = run_dir / run_directory.LOG
    if not log.exists():
        return {}
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    last = rows[-1] if rows else {}
    return {name: float(last[name]) for name in LOSSES if last.get(name)}


def _collect(study: Study, scale: str, folder: Path) -> None:
    rows = []
    for row in study.rows_at(scale):
        name = job_name(resolve(study, row, scale, seed=0), scale).removesuffix("seed=0")
        found = []
        paths = folder.glob(f"{glob.escape(name)}seed=*/outcome.json")
        for path in sorted(paths, key=lambda path: int(path.parent.name.rpartition("=")[2])):
            outcome = files.read_json(path, "the outcome")
            if "diverged" not in outcome or not (outcome["diverged"] or set(report.NUMBERS) <= set(outcome)):
                raise InputError(f"{path} isn't a job's outcome; remove it, and the row is made again.")
            found.append(outcome if outcome["diverged"] else {**outcome, **_measured(study, path.parent)})
        rows.append({"label": row.label, "changes": dict(row.changes), "paper": list(row.paper), "runs": found})
    for label, paper in study.others.items() if scale == "paper" else ():
        rows.append({"label": label, "changes": {}, "paper": list(paper), "runs": []})
    config = base_at(study, scale)
    steps = sorted({resolve(study, row, scale, seed=0).train.steps for row in study.rows_at(scale)})
    schedule = (
        f"{' or '.join(map(str, steps))} steps of {config.data.batch_size} images of {config.model.image_size} px"
    )
    report.write(Path(OUTPUT.value) / scale, study.name, study.title, scale, schedule, rows)


def _measured(study: Study, run_dir: Path) -> Mapping[str, float]:
    path = run_dir / "measured.json"
    if study.measure is None:
        return {}
    if not path.exists():
        files.write_json(path, dict(study.measure(run_dir)))
    return files.read_json(path, "the measurement")
