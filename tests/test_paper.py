"""The paper's tables as data: each row is the base and what the table says, and every job can be printed."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.paper import study
from retinanet_tf.config_presets import presets

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("table_1a", "table_1b", "table_1c", "table_1d", "table_3", "initialisation")
COUNTS = {"table_1a": 7, "table_1b": 7, "table_1c": 7, "table_1d": 10, "table_3": 4, "initialisation": 2}


def load(name):
    return importlib.import_module(f"experiments.paper.{name}").STUDY


@pytest.mark.parametrize("scale", ["paper", "mini", "real"])
@pytest.mark.parametrize("name", TABLES)
def test_rows_differ_from_the_base_in_nothing_else(name, scale):
    table = load(name)
    base = study._SCALES[scale].replace(**table.base).flat()
    seen = set()
    for row in table.rows:
        config = study.resolve(table, row, scale, seed=7).flat()
        changed = {field for field, value in config.items() if value != base[field]}
        assert changed - {"seed"} <= set(row.changes)
        for field, value in row.changes.items():
            assert config[field] == value, (row.label, field)
        seen.add(tuple(sorted((field, str(value)) for field, value in row.changes.items())))
    assert len(seen) == len(table.rows) == COUNTS[name]


def test_the_papers_scale_is_the_papers_configuration():
    """Table 1b's row γ = 2, α = .25 is the paper's default, field by field."""
    table = load("table_1b")
    row = next(row for row in table.rows if row.changes == {"gamma": 2.0, "alpha": 0.25})
    assert study.resolve(table, row, "paper", seed=0) == presets["paper"]
    assert row.paper == (34.0, 52.5, 36.5)


def test_a_dry_run_prints_jobs_that_train_understands(tmp_path):
    """Two rows, two seeds: four flagfiles, none run; the first one is parsed back into the row's configuration."""
    command = [sys.executable, "-m", "experiments.paper.table_1a", "--scale=paper", "--rows=3,6", "--seeds=0,1"]
    done = subprocess.run(
        [*command, "--dry_run", "--data=d", f"--runs={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    jobs = done.stdout.split("# table_1a, ")[1:]
    assert [job.splitlines()[0] for job in jobs] == [
        "row 3 (α = 0.75), seed 0",
        "row 3 (α = 0.75), seed 1",
        "row 6 (α = 0.999), seed 0",
        "row 6 (α = 0.999), seed 1",
    ]
    lines = set(jobs[3].splitlines())
    assert {"--alpha=0.999", "--gamma=0.0", "--seed=1", "--steps=90000", "--data=d", "--batch_size=16"} <= lines
    assert not list(tmp_path.iterdir())


def test_wrong_rows_are_named():
    command = [sys.executable, "-m", "experiments.paper.table_3", "--rows=9", "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "--rows=9: table_3 has rows 0 to 3." in done.stderr
