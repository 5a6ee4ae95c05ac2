"""The command line: help with defaults and citations, wrong flags, and bad input as one sentence and status 1."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retinanet_tf.data.synthetic import shapes

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("prepare_data", "train", "evaluate", "predict", "export")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A small generated COCO dataset."""
    folder = tmp_path_factory.mktemp("coco")
    shapes.generate(folder, num_train=3, num_val=1, image_size=64)
    return folder


def test_help_tells_every_flag_with_its_default(forked):
    texts = {name: forked.run(f"experiments.{name}", ["--help"])[1] for name in COMMANDS}
    for name, text in texts.items():
        assert "--output" in text or "--run_dir" in text, name
    flat = " ".join(texts["train"].split())
    assert "γ, the focusing parameter (§3.2). (default 2.0" in flat
    assert "Initial learning rate at the configured batch_size (§4.1). (default 0.01; mini: 0.007)" in flat


def test_bad_input_is_one_sentence_and_status_1(coco, tmp_path, forked):
    """Every case of bad input that a command can meet first: no traceback, nothing left behind."""
    content = json.loads((coco / "train.json").read_text())
    (tmp_path / "broken.json").write_text("{not json")
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    missing = [{**content["images"][0], "file_name": "lost.jpg"}, *content["images"][1:]]
    (tmp_path / "missing.json").write_text(json.dumps({**content, "images": missing}))
    (tmp_path / "blocked").write_text("a file where a folder should be")
    out = tmp_path / "out"

    def run(name, *flags):
        return forked.run(f"experiments.{name}", flags)

    def prepare(annotations, output=out):
        return run("prepare_data", f"--annotations={annotations}", f"--images={coco}/train", f"--output={output}")

    cases = {
        "nowhere.json": prepare(tmp_path / "nowhere.json"),
        "broken.json": prepare(tmp_path / "broken.json"),
        "empty.json": prepare(tmp_path / "empty.json"),
        "lost.jpg": prepare(tmp_path / "missing.json"),
        "blocked": prepare(coco / "train.json", tmp_path / "blocked" / "out"),
        "none-*.tfrecord": run("train", f"--data={tmp_path}/none-*.tfrecord", f"--run_dir={out}"),
        "run.json": run("export", f"--checkpoint={tmp_path}", f"--output={out}"),
    }
    for culprit, (status, err) in cases.items():
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status == 1 and len(lines) == 1 and culprit in lines[0], (culprit, status, err[-2000:])
        assert "Traceback" not in err
    assert not out.exists()


def test_an_image_that_does_not_decode_is_named(coco, tmp_path, forked):
    images = tmp_path / "images"
    images.mkdir()
    content = json.loads((coco / "train.json").read_text())
    names = [Path(image["file_name"]).name for image in content["images"]]
    for name in names:
        (images / name).write_bytes((coco / "train" / name).read_bytes())
    (images / names[1]).write_bytes(b"\xff\xd8 no picture")
    flags = (f"--annotations={coco}/train.json", f"--images={images}", f"--output={tmp_path}/out")
    status, err = forked.run("experiments.prepare_data", flags)
    assert status == 1 and names[1] in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_mistyped_flag_gets_a_suggestion():
    """In a process from nothing, as a shell starts it."""
    command = [sys.executable, "-m", "experiments.train", "--learning_rat=0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Did you mean --learning_rate?" in done.stderr and "Traceback" not in done.stderr
