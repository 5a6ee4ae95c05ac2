"""The variables of TensorFlow's CPU allocator: set where the user hasn't set them."""

import os
import sys

import pytest

from retinanet_tf.cli import before_tensorflow

NAMES = ("TF_CPU_ALLOCATOR_USE_BFC", "TF_CPU_BFC_MEM_LIMIT_IN_MB")


@pytest.mark.skipif(sys.platform != "linux", reason="The allocator is chosen on Linux alone.")
@pytest.mark.parametrize("user", [{}, {NAMES[0]: "0"}, {NAMES[1]: "100"}])
def test_what_the_user_set_stays(monkeypatch, user):
    monkeypatch.setattr(os, "environ", dict(user))
    monkeypatch.setattr(before_tensorflow, "_chosen", {})
    before_tensorflow.choose_allocator()
    assert set(os.environ) == set(NAMES) and user.items() <= os.environ.items()
    assert before_tensorflow.original_environment() == user
