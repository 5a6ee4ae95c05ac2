"""The examples in the library's docstrings say what happens."""

import doctest
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "retinanet_tf").rglob("*.py")
    if ">>> " in path.read_text()
}


@pytest.mark.parametrize("name", sorted(WITH_EXAMPLES))
def test_examples(name):
    # Attributes of a package can hide its modules (`retinanet_tf.export.saved_model` is a function).
    importlib.import_module(name)
    module = sys.modules[name]
    result = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted > 0 and result.failed == 0


def test_where_to_begin_there_are_examples():
    taught = {
        *("detection.boxes", "detection.anchors", "detection.assignment", "losses.classification", "losses.box"),
        *("models.retinanet", "inference.detector", "config.config", "data.sources.labels"),
    }
    assert {f"retinanet_tf.{name}" for name in taught} <= WITH_EXAMPLES
