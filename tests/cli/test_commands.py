"""The command line: help with defaults and citations, wrong flags, and bad input as one sentence and status 1."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags
from PIL import Image

from retinanet_tf.cli.before_tensorflow import START_UP
from retinanet_tf.cli.main import COMMANDS, with_dashes
from retinanet_tf.data.synthetic import shapes

ROOT = Path(__file__).resolve().parents[2]
ABSL = {flag.name for module, defined in absl_flags.FLAGS.flags_by_module_dict().items() for flag in defined}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A small generated COCO dataset."""
    folder = tmp_path_factory.mktemp("coco")
    shapes.generate(folder, num_train=3, num_val=1, image_size=64)
    return folder


def run(*arguments, python=("-m", "retinanet_tf")):
    """(exit status, stdout, stderr) of a command in a process of its own, as a shell starts it."""
    command = [sys.executable, *python, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


def test_help_lists_the_commands_without_tensorflow():
    code = "import sys; sys.modules['tensorflow'] = None; from retinanet_tf.cli.main import main; main()"
    status, text, _ = run("--help", python=("-c", code))
    assert status == 0
    assert {line.split()[0] for line in text.splitlines() if line.startswith("  ")} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_lists_every_flag_it_accepts(command, forked):
    """Of flags, those of the project's modules; `--flagfile` and `--verbosity` are absl's."""
    accepted = re.findall(r"^\w{2,}$", forked.flags(command)[1], re.MULTILINE)
    status, text = forked.run(command, ["--help"])
    listed = re.findall(r"^  --(\w+):", text, re.MULTILINE)
    project = {name for name in accepted if name not in ABSL}
    assert status == 0 and project | {"flagfile", "verbosity"} == set(listed)


def test_help_has_defaults_presets_and_citations():
    flat = " ".join(run("train", "--help")[1].split())
    assert "γ, the focusing parameter (§3.2). (default 2.0" in flat
    assert (
        "Initial learning rate at the configured batch_size (§4.1). (default 0.01; modern: 0.0001, mini: 0.007)" in flat
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean train?"),
        (["train", "--learning_rat=0.1"], "Did you mean --learning_rate?"),
        (["train", "learning_rate=0.1", "--data=x", "--run_dir=y"], "is not a flag"),
        (["train", "--data=x"], "error: --run_dir must have a value. See --help."),
        (["predict", "--model=x", "--output=y"], "error: --images must have a value. See --help."),
        (["evaluate", "--batch_size=none"], "--batch_size"),
        (["predict", "--tiles=31"], "error: flag --tiles=31: 31 is not integer >= 32. See --help."),
        (["train", "--preset=mni"], "value should be one of <paper|detectron|modern|mini>. See --help."),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(arguments, message):
    status, _, text = run(*arguments)
    assert status == 2 and message in text and len(text.splitlines()) == 1


def test_flags_are_read_from_a_file(tmp_path, forked):
    (tmp_path / "flags.txt").write_text("--preset=mini\n--gamma=1.5\n--batch_size=0\n")
    status, text = forked.run("train", [f"--flagfile={tmp_path / 'flags.txt'}", "--data=x", "--run_dir=y"])
    assert status == 1 and text.endswith("error: --batch_size=0 must lie in [1, 65536].\n")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size=3 must be even.", "--batch_size=3 must be even."),
        ("give data=x and run_dir too", "give --data=x and --run_dir too"),
        ("--data=x matches nothing in old/run_dir/a or run_dir.txt.", None),
        ("the data are in x_data=3 or my-data=4", None),
    ],
)
def test_parameters_of_errors_become_flags(message, expected):
    names = absl_flags.FlagValues()
    for name in ("batch_size", "data", "run_dir"):
        absl_flags.DEFINE_string(name, None, "", flag_values=names)
    assert with_dashes(message, names) == (expected or message)


WITHOUT_TENSORFLOW = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from retinanet_tf.cli.serving_client import detect
try:
    detect([open("tests/data/samples/photo.jpg", "rb").read()], "localhost:1")
except importlib.import_module("retinanet_tf.errors").InputError as error:
    assert "UNAVAILABLE" in str(error)
assert not {"tensorflow", "keras"} & set(sys.modules)
import retinanet_tf as rn, retinanet_tf.export.saved_model
assert callable(rn.export) and set(rn.__all__) <= set(dir(rn))
"""


@pytest.mark.once
def test_the_package_its_readers_and_the_client_need_no_tensorflow():
    readers = [f"retinanet_tf.data.sources.{path.stem}" for path in (ROOT / "retinanet_tf/data/sources").glob("*.py")]
    modules = ["retinanet_tf", *readers, "retinanet_tf.cli.client"]
    subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW, *modules], cwd=ROOT, check=True)


@pytest.mark.once
@pytest.mark.parametrize("flags", [[], ["--verbosity=1"]])
def test_start_up_lines_of_tensorflow_are_left_out(flags):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "retinanet_tf", "train", "--data=/none", "--run_dir=x", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "error: no file matches /none" in done.stderr
    assert ("cpu_feature_guard" in done.stderr) == bool(flags)
    assert flags or len(done.stderr.splitlines()) == 1, done.stderr


def test_other_lines_that_tensorflow_writes_are_kept():
    kept = [
        "2026-11-27 20:24:35.7: W tensorflow/core/gpu_device.cc:2256] Cannot dlopen some GPU libraries",
        "W0000 00:00:1795811079.8 18214 gpu_device.cc:2433] TensorFlow was not built with CUDA kernel binaries",
        "RuntimeError: anything else",
    ]
    assert not any(START_UP.search(line) for line in kept)


def test_bad_input_is_one_sentence_and_status_1(coco, tmp_path, forked):
    """Every case of bad input that a command can meet first: no traceback, nothing left behind."""
    content = json.loads((coco / "train.json").read_text())
    (tmp_path / "broken.json").write_text("{not json")
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    missing = [{**content["images"][0], "file_name": "lost.jpg"}, *content["images"][1:]]
    (tmp_path / "missing.json").write_text(json.dumps({**content, "images": missing}))
    (tmp_path / "blocked").write_text("a file where a folder should be")
    out = tmp_path / "out"

    def prepare(annotations, output=out):
        return forked.run("prepare", [f"--annotations={annotations}", f"--images={coco}/train", f"--output={output}"])

    def predict(min_score):
        flags = [f"--model={tmp_path}", f"--images={coco}/train", f"--output={out}", f"--min_score={min_score}"]
        return forked.run("predict", flags)

    cases = {
        "nowhere.json": prepare(tmp_path / "nowhere.json"),
        "broken.json": prepare(tmp_path / "broken.json"),
        "empty.json": prepare(tmp_path / "empty.json"),
        "lost.jpg": prepare(tmp_path / "missing.json"),
        "blocked": prepare(coco / "train.json", tmp_path / "blocked" / "out"),
        "none-*.tfrecord": forked.run("train", [f"--data={tmp_path}/none-*.tfrecord", f"--run_dir={out}"]),
        "run.json": forked.run("export", [f"--model={tmp_path}", f"--output={out}"]),
        "finds no evaluation in": predict("auto"),
        "--min_score=most is neither a number from 0 to 1 nor auto": predict("most"),
        "--min_score=2 is neither": predict(2),
        "--tiles is for --model": forked.run("evaluate", ["--results=x", "--data=y", "--tiles=64"]),
        "--images is for --annotations": forked.run("evaluate", ["--model=x", "--data=y", "--images=z"]),
        "--alpha is for other sources": forked.run(
            "import-weights", ["--source=run", "--file=x", f"--output={out}", "--alpha=0.5"]
        ),
        "boxes.csv must be a COCO instances JSON": forked.run("evaluate", ["--model=x", "--annotations=boxes.csv"]),
    }
    for culprit, (status, err) in cases.items():
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status == 1 and len(lines) == 1 and culprit in lines[0], (culprit, status, err[-2000:])
        assert "Traceback" not in err
    assert not out.exists()


@pytest.mark.once
def test_choices_that_commands_repeat_to_start_fast_are_the_librarys():
    code = """
from retinanet_tf.cli import detector_flags, export
from retinanet_tf.export import formats, image_decoding, litert_file, saved_model
from retinanet_tf.inference.test_time_augmentation import MERGES
from retinanet_tf.inference.tiles import SMALLEST_TILE
assert export._FORMATS == formats.FORMATS
assert set(export._PRECISIONS) == {*saved_model.PRECISIONS, *litert_file.PRECISIONS}
assert export._MAX_PIXELS.default == image_decoding.MAX_PIXELS
assert tuple(detector_flags._MERGES) == MERGES
assert detector_flags._SMALLEST_TILE == SMALLEST_TILE
"""
    status, _, text = run(python=("-c", code))
    assert status == 0, text


def test_an_image_that_does_not_decode_is_named(coco, tmp_path, forked):
    images = tmp_path / "images"
    images.mkdir()
    content = json.loads((coco / "train.json").read_text())
    names = [Path(image["file_name"]).name for image in content["images"]]
    for name in names:
        (images / name).write_bytes((coco / "train" / name).read_bytes())
    (images / names[1]).write_bytes(b"\xff\xd8 no picture")
    flags = (f"--annotations={coco}/train.json", f"--images={images}", f"--output={tmp_path}/out")
    status, err = forked.run("prepare", flags)
    assert status == 1 and names[1] in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_prepare_divides_a_folder(tmp_path, forked):
    for i in range(10):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("0 .5 .5 .2 .4\n")
    flags = [f"--annotations={tmp_path}", f"--output={tmp_path}/out", "--num_workers=1"]
    for wrong in (["--split_shares=0.8"], ["--split_shares=0.8,0.2", "--name=train"], ["--group=x"]):
        status, printed = forked.run("prepare", [*flags, *wrong])
        assert status == 1 and "--split_shares" in printed and not (tmp_path / "out").exists()
    status, printed = forked.run("prepare", [*flags, "--split_shares=0.7,0.2,0.1"])
    assert status == 0, printed
    for name, count in (("train", 7), ("val", 2), ("test", 1)):
        assert json.loads((tmp_path / "out" / f"{name}.summary.json").read_text())["images"] == count
    status, printed = forked.run("prepare", [*flags, "--split_shares=0.5,0.5"])
    assert status == 1 and "out/test.summary.json is of an earlier division" in printed
    for path in (tmp_path / "out").glob("test*"):
        path.unlink()
    assert forked.run("prepare", [*flags, "--split_shares=0.5,0.5"])[0] == 0


def test_without_git_and_in_another_repository_the_commit_is_unknown(monkeypatch, tmp_path):
    """Slim containers have no git; an environment may lie in somebody else's repository."""
    from retinanet_tf import provenance

    assert re.fullmatch(r"[0-9a-f]{40}", provenance.provenance()["commit"])
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib/retinanet_tf/provenance.py"))
    (tmp_path / "lib").mkdir()
    assert provenance.provenance()["commit"] == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.provenance()["commit"] == "unknown"
