"""The paper's tables as data: each row is the base and what the table says, and every job can be printed."""

import importlib
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_jobs import TINY, write_shards

from experiments.paper import launch, rehearse, report, study, table_1e
from retinanet_tf.config.presets import presets
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {
    "table_1a": 7,
    "table_1b": 7,
    "table_1c": 7,
    "table_1d": 10,
    "table_1e": 10,
    "table_2": 2,
    "table_3": 4,
    "initialisation": 2,
    "hinge": 4,
    "figure_7": 26,
    "losses": 57,
    "longer": 2,
}
SMALL_COUNTS = {"table_1e": 6, "table_2": 1, "longer": 5}


def load(name):
    return importlib.import_module(f"experiments.paper.{name}").STUDY


@pytest.mark.parametrize("scale", ["paper", "mini", "real"])
@pytest.mark.parametrize("name", COUNTS)
def test_rows_differ_from_the_base_in_nothing_else(name, scale):
    table = load(name)
    base = study.base_at(table, scale).flat()
    seen = set()
    rows = table.rows_at(scale)
    for row in rows:
        config = study.resolve(table, row, scale, seed=7).flat()
        changed = {field for field, value in config.items() if value != base[field]}
        assert changed - {"seed"} <= set(row.changes)
        for field, value in row.changes.items():
            assert config[field] == value, (row.label, field)
        seen.add(tuple(sorted((field, str(value)) for field, value in row.changes.items())))
    assert len(seen) == len(rows) == (COUNTS if scale == "paper" else {**COUNTS, **SMALL_COUNTS})[name]


@pytest.mark.parametrize("scale", ["paper", "mini", "real"])
def test_equal_rows_of_two_tables_are_one_job(scale):
    """A job's name tells its configuration apart from every other one's, and nothing more."""
    configurations = {}
    for table in map(load, COUNTS):
        for row in table.rows_at(scale):
            config = study.resolve(table, row, scale, seed=3)
            assert configurations.setdefault(study.job_name(config, scale), config) == config
    tables = {name: load(name) for name in ("table_1a", "table_1b", "table_3", "initialisation")}
    chosen = [("table_1a", 3), ("table_1b", 0), ("table_3", 0)]
    names = {
        study.job_name(study.resolve(tables[name], tables[name].rows[row], scale, 0), scale) for name, row in chosen
    }
    assert names == {"gamma=0,alpha=0.75,seed=0"}


@pytest.mark.once
def test_a_job_that_evaluates_at_its_end_alone_has_an_outcome(tmp_path):
    """As those of the paper's scale."""
    shards = write_shards(tmp_path)
    paths = {
        "data": str(shards / "train-*.tfrecord"),
        "validation": str(shards / "val-*.tfrecord"),
        "init_weights": "",
    }
    config = TINY.replace(steps=1, decay_steps=(), warmup_steps=0, eval_steps=0)
    study.run_job(config, tmp_path / "job", paths)
    outcome = json.loads((tmp_path / "job/outcome.json").read_text())
    assert outcome["AP"] >= 0 and outcome["AP_by_step"] == {} and not outcome["diverged"]
    study.run_job(config, tmp_path / "job", paths)
    with pytest.raises(InputError, match="is a finished job with other settings or classes"):
        study.run_job(config.replace(batch_size=3), tmp_path / "job", paths)


@pytest.mark.slow
def test_outcomes_of_every_seed_are_collected_and_damaged_ones_are_named(tmp_path, forked):
    table = load("table_1e")
    row = study.resolve(table, table.rows_at("mini")[0], "mini", seed=4321)
    path = tmp_path / "mini" / study.job_name(row, "mini") / "outcome.json"
    path.parent.mkdir(parents=True)
    flags = ("--scale=mini", "--collect", f"--runs={tmp_path}", f"--output={tmp_path / 'out'}")
    for content, status in (('{"seed": 4321, "diverged": true}', 0), ("{}", 1), ('{"AP', 1)):
        path.write_text(content)
        ended, printed = forked.run("experiments.paper.table_1e", flags)
        assert ended == status and ("Traceback" not in printed)
        assert status == 0 or str(path) in printed
    rows = json.loads((tmp_path / "out" / "mini" / "table_1e.json").read_text())["rows"]
    assert [run["seed"] for run in rows[0]["runs"]] == [4321]


def test_the_papers_scale_is_the_papers_configuration():
    """Table 1b's row γ = 2, α = .25 is the paper's default, field by field."""
    table = load("table_1b")
    row = next(row for row in table.rows if row.changes == {"gamma": 2.0, "alpha": 0.25})
    assert study.resolve(table, row, "paper", seed=0) == presets["paper"]
    assert row.paper == (34.0, 52.5, 36.5)


@pytest.mark.once
def test_a_dry_run_prints_jobs_that_train_understands(tmp_path, forked):
    """Two rows, two seeds: four flagfiles, none run; the first one is parsed back into the row's configuration."""
    flags = ["--scale=paper", "--rows=3,6", "--seeds=0,1", "--dry_run", "--data=d", f"--runs={tmp_path}"]
    status, output = forked.run("experiments.paper.table_1a", flags)
    assert status == 0, output
    jobs = output.split("# table_1a, ")[1:]
    assert [job.splitlines()[0] for job in jobs] == [
        "row 3 (α = 0.75), seed 0",
        "row 6 (α = 0.999), seed 0",
        "row 3 (α = 0.75), seed 1",
        "row 6 (α = 0.999), seed 1",
    ]
    lines = set(jobs[3].splitlines())
    assert {"--alpha=0.999", "--gamma=0.0", "--seed=1", "--steps=90000", "--data=d", "--batch_size=16"} <= lines
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_wrong_rows_are_named(forked):
    status, output = forked.run("experiments.paper.table_3", ["--rows=9", "--dry_run"])
    assert status == 1 and "--rows=9: table_3 has rows 0 to 3." in output


@pytest.mark.parametrize("system", ["slurm", "kubernetes", "shell"])
def test_a_table_is_one_script_on_every_system(system):
    """One task a row, the paths quoted for the shell that sees them; bash accepts what bash gets."""
    paths = {"data": "my shards/train-*", "validation": "my shards/val-*", "init_weights": "w/{backbone}"}
    text = launch.script("table_1c", system, "/shared", **paths, image="registry/me:1", volume="disk")
    assert "'--data=my shards/train-*'" in text and "'--init_weights=w/{backbone}'" in text
    assert "--scale=paper --runs=/shared/runs" in text
    if system == "kubernetes":
        assert "completions: 7\n" in text and "claimName: disk" in text and "nvidia.com/gpu: 8" in text
    else:
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
        assert system == "shell" or "--array=0-6\n" in text


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1], ids=["preempted", "at the time limit"])
def test_a_row_that_slurm_stops_saves_its_state_and_is_queued_again(sent, tmp_path):
    """With a row that needs a moment to save, and a Slurm that only notes what it is told."""
    words = 'trap "sleep 0.3; echo saved >> log; exit 143" TERM; echo started; while true; do sleep 0.05; done'
    commands = {"python": words, "scontrol": 'echo "$@" >> log'}
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = launch.script("table_1a", "slurm", "/shared", "d", "v", "w", image="", volume="")
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    with subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True
    ) as task:
        assert task.stdout.readline() == "started\n"
        task.send_signal(sent)
        assert task.wait(timeout=60) == 143
    requeued = ["requeue 7"] if sent == signal.SIGUSR1 else []  # what is preempted, Slurm requeues itself
    assert (tmp_path / "log").read_text().splitlines() == ["saved", *requeued]


def test_other_detectors_stand_in_table_2_with_the_papers_numbers_alone(tmp_path, forked):
    flags = ("--scale=paper", "--collect", f"--runs={tmp_path}", f"--output={tmp_path}")
    status, output = forked.run("experiments.paper.table_2", flags)
    assert status == 0 and "| DSSD513, R101-DSSD | 33.2 / 53.3 / 35.2 | – |" in output, output


def test_all_distinct_jobs_are_rehearsed_once():
    """Every row of every table is among them, and no configuration twice."""
    jobs = rehearse.distinct_jobs(list(COUNTS))
    rows = [study.resolve(table, row, "paper", 0) for table in map(load, COUNTS) for row in table.rows]
    assert all(config in jobs.values() for config in rows)
    assert len(set(map(repr, jobs.values()))) == len(jobs) < len(rows)


@pytest.mark.once
def test_a_rehearsal_is_three_steps_of_one_image_at_the_linear_rules_rate(tmp_path):
    splits = shapes.generate(tmp_path / "coco", num_train=4, num_val=1, image_size=64)
    prepare(splits["train"].annotations, splits["train"].images, tmp_path, "train", shards=1, progress=False)
    network = {"backbone": "resnet10_w16", "fpn_channels": 8, "subnet_channels": 8, "max_level": 5}
    config = presets["mini"].replace(**network, image_size=128, max_size=256, warmup_steps=0)
    model = RetinaNet.from_config(config)
    before = model.get_weights()
    found = rehearse.rehearse(config, model, str(tmp_path / "train-*.tfrecord"), shrink=2)
    assert (found["image_size"], found["learning_rate"]) == (64, config.train.learning_rate / config.data.batch_size)
    losses = [step["loss"] for step in found["losses"]]
    assert len(losses) == len(set(losses)) == 3 and np.isfinite(losses).all()
    assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


def test_a_finished_row_is_collected_beside_the_papers_numbers(tmp_path):
    """Means and spreads by hand, a divergence counted apart, 'no such objects' (-1) in no mean."""

    def outcome(seed, AP, APl=-1.0):
        numbers = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm"), AP)
        return {"seed": seed, "diverged": False, **numbers, "APl": APl}

    last = outcome(1, 0.3) | {"AP_by_step": {"1000": 0.1, "2000": 0.25, "3000": 0.3}}  # 0.05 in the last third
    rows = [
        {
            "label": "α = 1",
            "changes": {},
            "paper": [31.1, 49.4, 33.0],
            "runs": [outcome(0, 0.2), last],
        },
        {"label": "α = 2", "changes": {}, "paper": [], "runs": [outcome(0, 0.10), {"seed": 1, "diverged": True}]},
        {"label": "α = 3", "changes": {}, "paper": [], "runs": []},
    ]
    report.write(tmp_path, "table_x", "Table x", "mini", "8 steps", rows)
    lines = (tmp_path / "table_x.md").read_text().splitlines()
    assert lines[-1] == "1 of 3 rows haven't been run and are left out."
    assert lines[-4].startswith("| α = 1 | 31.1 / 49.4 / 33.0 | 25.0 ± 7.1 | 25.0 ± 7.1 |")
    assert lines[-4].endswith("| – | +5.0 | 2 | 0 |")
    assert lines[-3].startswith("| α = 2 | – | 10.0 |") and lines[-3].endswith("| 2 | 1 |")
    assert json.loads((tmp_path / "table_x.json").read_text())["rows"] == rows
    assert (tmp_path / "table_x.png").exists()


@pytest.mark.once
def test_table_1e_times_the_whole_detector_on_one_picture_of_its_size(monkeypatch):
    model = RetinaNet(num_classes=1, backbone="resnet10_w16", fpn_channels=8, subnet_channels=8, subnet_depth=1)
    seen = []

    class Counted(Detector):
        def __call__(self, images):
            seen.append([image.shape for image in images])
            return super().__call__(images)

    monkeypatch.setattr(table_1e.checkpoint, "load_detector", lambda _: Counted(model, image_size=64, max_size=64))
    assert table_1e.milliseconds(Path("run"), repetitions=2)["ms_an_image"] > 0
    assert seen == [[(64, 64, 3)]] * 5
