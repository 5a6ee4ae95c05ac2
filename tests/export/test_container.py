"""The Dockerfile against the repository, as far as that goes without an engine that builds it."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text()


def instructions():
    """(instruction, argument) of every line, continuations joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


ARGUMENTS = dict(value.split("=") for name, value in instructions() if name == "ARG")


def test_every_instruction_is_dockers():
    known = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "CMD"}
    names = [name for name, _ in instructions()]
    assert set(names) <= known and names.index("ARG") < names.index("FROM") and names.count("FROM") == 1


def test_what_is_copied_is_there_and_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [word for name, value in instructions() if name == "COPY" for word in value.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    assert set(sources) == kept, "what is sent to the builder is what it copies"


def test_packages_and_their_requirements_are_copied():
    """pyproject.toml reads the requirements and the README; commands need both packages of the repository."""
    copied = " ".join(value for name, value in instructions() if name == "COPY").split()
    assert {"requirements.txt", "README.md", "retinanet_tf", "experiments"} <= set(copied)


def test_versions_come_from_the_requirements_alone():
    assert not re.findall(r"==\s*\d", TEXT), "a second place for versions"
    assert "pip install --no-cache-dir -r requirements.txt" in TEXT
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()).groups()
    pages = "".join((ROOT / name).read_text() for name in ("BUILD.md", "README.md", "experiments/paper/launch.py"))
    versions = {ARGUMENTS["PYTHON"], *re.findall(r"PYTHON=(\d\.\d+)", pages + TEXT)}
    versions |= set(re.findall(r"retinanet_tf:(\d\.\d+)", pages + TEXT))
    assert versions and all(int(low) <= int(version.split(".")[1]) < int(high) for version in versions)


def test_documented_build_arguments_exist():
    given = re.findall(r"--build-arg (\w+)=(\S+)", (ROOT / "BUILD.md").read_text() + TEXT)
    assert given and {name for name, _ in given} <= set(ARGUMENTS)
    assert {value for name, value in given if name == "ACCELERATOR"} <= {"cpu", "cuda"}


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shells_accept_what_runs(shell):
    for name, value in instructions():
        if name == "RUN":
            done = subprocess.run([shell, "-n"], input=value, text=True, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr


def test_only_cuda_asks_for_cuda():
    """The branch of the build argument, with echo in the place of pip and python."""
    run = next(value for name, value in instructions() if name == "RUN" and "ACCELERATOR" in value)
    for accelerator, expected in (("cpu", ""), ("cuda", "install --no-cache-dir tensorflow[and-cuda]==1.2.3\n")):
        script = f'python() {{ echo 1.2.3; }}; pip() {{ echo "$@"; }}; ACCELERATOR={accelerator}; {run}'
        done = subprocess.run(["sh"], input=script, text=True, capture_output=True, check=False)
        assert (done.stdout, done.returncode) == (expected, 0), shlex.quote(script)
