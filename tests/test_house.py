"""The house rules that a machine can check: who imports whom, what is annotated, what is used."""

import ast
import dataclasses
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from retinanet_tf.config.config import Config

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("retinanet_tf", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def imports(name):
    """The project's modules that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(MODULES)) or {node.module}
    return {module for module in found if module in MODULES and module != name}


FOLDERS = (
    *("config", "detection", "data", "runtime", "losses", "models", "inference"),
    *("evaluation", "pretrained", "training", "export", "cli"),
)
"""From the lowest to the highest; the modules beside these folders are below all of them."""


def folder_of(name):
    parts = name.replace("__main__", "cli").split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else ""


def test_no_cycles():
    order = list(TopologicalSorter({name: imports(name) for name in MODULES}).static_order())
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("retinanet_tf.")])
def test_no_folder_imports_one_above_it(name):
    rank = {"": -1, **{folder: rank for rank, folder in enumerate(FOLDERS)}}
    above = {other for other in imports(name) if rank[folder_of(other)] > rank[folder_of(name)]}
    assert not above | {other for other in imports(name) if other.startswith("experiments")}


@pytest.mark.parametrize("name", [name for name in MODULES if folder_of(name) == "data"])
def test_data_needs_only_config_and_detection(name):
    assert {folder_of(other) for other in imports(name)} <= {"", "config", "detection", "data"}


def public_functions(tree):
    """Functions and methods that users may call, with their class: no leading underscore anywhere on the way."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield "", node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and (inner.name == "__init__" or not inner.name.startswith("_")):
                    yield f"{node.name}.", inner


# Keras names and calls these; their arguments are Keras' own.
KERAS = {"call", "build", "compute_output_shape", "compute_loss", "compute_metrics", "train_step", "from_config"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("retinanet_tf")])
def test_the_public_surface_is_annotated(name):
    missing = []
    for owner, function in public_functions(TREES[name]):
        if function.name in KERAS or function.name.startswith("on_"):
            continue
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if function.returns is None and function.name != "__init__":
            bare.append("return")
        if bare:
            missing.append(f"{owner}{function.name}: {', '.join(bare)}")
    assert not missing


DOCUMENTED = {"_asdict", "_fields", "_make", "_replace", "_exit"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("retinanet_tf")])
def test_no_private_name_of_another_library(name):
    """Neither `other._name` nor `getattr(other, "_name")`; an object's own private names are its own."""
    private = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            attribute = node.attr if owner not in ("self", "cls") else ""
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            attribute = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
        else:
            continue
        if attribute.startswith("_") and not attribute.endswith("__") and attribute not in DOCUMENTED:
            private.append(f"line {node.lineno}: {attribute}")
    assert not private


def test_every_setting_is_used():
    """Each field of the configuration is read somewhere outside the modules that define and list it."""
    text = "\n".join(path.read_text() for name, path in MODULES.items() if folder_of(name) != "config")
    fields = [field.name for section in dataclasses.fields(Config) for field in dataclasses.fields(section.type)]
    unused = [field for field in fields if not re.search(rf"\.{field}\b", text)]
    assert set(unused) <= {"mining", "mining_examples", "mining_nms"} | {"anchor_scales"} and len(fields) > 60, unused
