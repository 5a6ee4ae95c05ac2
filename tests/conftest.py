"""Fixtures of all tests: two logical CPU devices, and the real data where RETINANET_TF_TEST_DATA names it.

Also the number of test processes: a file's tests stay in one, so that its fixtures are made once.
"""

import gc
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# TensorFlow leaves oneDNN off on CPUs without AVX-512 VNNI; with it the tests compute alike on all, and in less memory.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import pytest

from retinanet_tf.cli.before_tensorflow import choose_allocator

choose_allocator()

LONGEST = (
    *("test_jobs.py", "test_real_photos.py", "test_documentation.py", "test_wheel.py", "test_paper.py"),
    *("test_pipeline.py", "test_train.py", "test_retinanet.py", "test_train_step.py", "test_run_directory.py"),
)
"""Files that begin first where several processes share the tests, so that none is left alone with one at the end."""

GIGABYTES_A_WORKER = 6
"""An allowance: the one that has the real photos held 5.5, the other 2.2."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`--numprocesses=auto`: one per core, as far as the memory goes; none besides this process for a single file."""
    if len(config.args) == 1 and ".py" in config.args[0]:
        config.option.dist = "no"
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(os.cpu_count() or 1, int(memory / GIGABYTES_A_WORKER), 8))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, each as it is written."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Garbage collection without walking through the imported modules again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_configure(config: pytest.Config) -> None:
    """Makes the devices, in every process that runs tests; one that only hands them out needs no TensorFlow.

    Two and no more: in one process, strategies of different sizes get the same key for TensorFlow's CPU collectives.
    """
    if getattr(config.option, "numprocesses", None):
        return
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same random numbers in every run, for fixtures too, which are made after this: initial weights above all."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real images and annotations."""
    folder = os.environ.get("RETINANET_TF_TEST_DATA")
    if not folder:
        pytest.skip("RETINANET_TF_TEST_DATA is not set: the tests on real photos need it (CONTRIBUTING.md).")
    path = pathlib.Path(folder)
    assert path.is_dir(), f"RETINANET_TF_TEST_DATA={folder} is not a folder."
    return path


@pytest.fixture(scope="session")
def two_devices():
    """MirroredStrategy on two CPU devices.

    It reduces on one of them, without collectives: those of several models in one process can meet under one key.
    The training job's tests use the default, collectives included.
    """
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())


@pytest.fixture
def figures(monkeypatch):
    """The Matplotlib figures that are saved."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **more: saved.append(figure) or save(figure, *args, **more)
    )
    return saved


@pytest.fixture(scope="session")
def forked():
    """Commands in forks of one process that has imported TensorFlow; tests of a few start theirs from nothing."""
    from forked import Forked

    with Forked() as commands:
        yield commands
