"""What every test gets: two logical CPU devices, and the real data where RETINANET_TF_TEST_DATA names it."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as retinanet_tf does, which some tests import after TensorFlow

import pytest
import tensorflow as tf

# Two and no more: in one process, strategies of different sizes get the same key for TensorFlow's CPU collectives.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
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


@pytest.fixture(scope="session")
def two_devices() -> tf.distribute.Strategy:
    """MirroredStrategy on two CPU devices.

    It reduces on one of them, without collectives: those of several models in one process can meet under one key.
    The training job's tests use the default, collectives included.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
