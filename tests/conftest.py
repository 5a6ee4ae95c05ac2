"""What every test gets: four logical CPU devices, and the real data where RETINANET_TF_TEST_DATA names it."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real images and annotations."""
    folder = os.environ.get("RETINANET_TF_TEST_DATA")
    if not folder:
        pytest.skip("RETINANET_TF_TEST_DATA is not set: the tests on real photos need it (BUILD.md).")
    path = pathlib.Path(folder)
    assert path.is_dir(), f"RETINANET_TF_TEST_DATA={folder} is not a folder."
    return path
