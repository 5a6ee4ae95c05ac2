"""The wheel in an environment and a folder of its own: its metadata, and help, three training steps, an export."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest

from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.synthetic import shapes

pytestmark = pytest.mark.once
packaging = pytest.importorskip("packaging.requirements", reason="packaging reads the wheel's requirements")
ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--preset=mini", "--num_classes=5", "--max_level=5", "--backbone=resnet10_w16", "--fpn_channels=16"),
    *("--subnet_channels=16", "--subnet_depth=1", "--image_size=64", "--max_size=64", "--batch_size=2", "--steps=3"),
    *("--warmup_steps=1", "--eval_steps=0", "--checkpoint_steps=3"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment with the wheel; the libraries it needs are the tests' own, by a .pth file."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = folder / "source"  # setuptools builds in the sources' folder
    shutil.copytree(ROOT / "retinanet_tf", source / "retinanet_tf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "wheel", str(source), "--no-deps", f"--wheel-dir={folder}"], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    (Path(paths["purelib"]) / "tests_own.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = str(folder / "venv/bin/python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return folder


def run(installed, *arguments):
    """stdout of the installed command, called from another folder, without the checkout on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed / "venv/bin/retinanet"), *arguments]
    done = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_requirements_are_met_by_the_pinned_environment(installed):
    (folder,) = (installed / "venv/lib").glob("python*/site-packages/retinanet_tf-*.dist-info")
    wanted = [packaging.Requirement(text) for text in metadata.Distribution.at(folder).requires]
    needed = [requirement for requirement in wanted if not requirement.marker or requirement.marker.evaluate()]
    assert {"tensorflow", "keras", "numpy"} <= {requirement.name for requirement in needed}
    for requirement in needed:
        assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), requirement


def test_help_training_and_export(installed):
    assert "import-weights" in run(installed, "--help")
    where = [str(installed / "venv/bin/python"), "-c", "import retinanet_tf; print(retinanet_tf.__file__)"]
    assert subprocess.check_output(where, cwd=installed, text=True).startswith(str(installed))
    split = shapes.generate(installed / "coco", num_train=4, num_val=1, image_size=64)["train"]
    prepare(split.annotations, split.images, installed / "shards", progress=False)
    run(installed, "train", "--data=shards/train-*", "--run_dir=runs/tiny", *TINY)
    run(installed, "export", "--model=runs/tiny", "--output=export")
    assert (installed / "export/1/saved_model.pb").exists()
