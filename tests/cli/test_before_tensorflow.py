"""The settings that TensorFlow reads at its import: ours where nobody else has chosen."""

import os
import runpy
import sys

import pytest

from retinanet_tf.cli import before_tensorflow

NAMES = ("TF_CPU_ALLOCATOR_USE_BFC", "TF_CPU_BFC_MEM_LIMIT_IN_MB")


def settings_beside(monkeypatch: pytest.MonkeyPatch, **chosen: str) -> dict[str, str]:
    """What the module sets in an environment that has `chosen` alone."""
    monkeypatch.setattr(os, "environ", dict(chosen))
    module = runpy.run_path(before_tensorflow.__file__)
    ours = module["SET"]
    assert os.environ == chosen | ours and module["as_it_came"]() == chosen
    return ours


@pytest.mark.skipif(sys.platform != "linux", reason="The allocator is chosen on Linux alone.")
def test_all_are_set_and_the_memory_is_the_machines(monkeypatch):
    ours = settings_beside(monkeypatch, HOME="/")
    assert tuple(ours) == NAMES
    with open("/proc/meminfo") as file:
        kilobytes = int(next(line for line in file if line.startswith("MemTotal")).split()[1])
    assert int(ours[NAMES[1]]) == pytest.approx(kilobytes / 1024, abs=1)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_set_stays(monkeypatch, name):
    assert name not in settings_beside(monkeypatch, **{name: "0"})
