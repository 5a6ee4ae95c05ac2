"""Exports of a small detector; each conversion happens once in a process."""

import pytest

from tests.small_exports import HEIGHT, WIDTH, exported, spread_out_detector


@pytest.fixture(scope="session")
def detector():
    """One whose scores lie between 0 and 1 and whose boxes differ from the anchors."""
    return spread_out_detector()


@pytest.fixture(scope="session")
def onnx_export(detector, tmp_path_factory):
    """For any number of canvases."""
    path = tmp_path_factory.mktemp("onnx") / "probe.onnx"  # also the name of what an export is compared with, aside
    return exported(detector, path, "onnx", "float32", [(None, HEIGHT, WIDTH)])


@pytest.fixture(scope="session")
def litert_export(detector, tmp_path_factory):
    """For two canvases."""
    path = tmp_path_factory.mktemp("litert") / "probe.tflite"
    return exported(detector, path, "litert", "float32", [(2, HEIGHT, WIDTH)])
