"""Reading checkpoint files: nothing in them is executed, and wrong ones are refused by name."""

import collections
import os

import numpy as np
import pytest
from published import write

import retinanet_tf as rn
from retinanet_tf.pretrained import reading


class Harm:
    """A pickle that runs a command."""

    def __reduce__(self):
        return os.system, ("exit 3",)


def test_nothing_in_a_pickle_is_executed(tmp_path):
    write(tmp_path / "bad.pkl", {"conv1_w": Harm()})
    with pytest.raises(rn.InputError, match=r"bad.pkl is not a pickle of arrays.*system"):
        reading.read_tensors(tmp_path / "bad.pkl")
    content = collections.OrderedDict(a=np.arange(3.0), b=np.float32(2))
    for key in ("model", "blobs"):
        good = write(tmp_path / "good.pkl", {key: content, "iteration": 3})
        np.testing.assert_array_equal(reading.read_tensors(good)["a"], [0, 1, 2])


@pytest.mark.parametrize(
    "name, content", [("empty.pkl", b""), ("text.h5", b"no hdf5"), ("x.bin", b""), ("lost.pkl", None)]
)
def test_wrong_files_are_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(rn.InputError, match=name):
        reading.read_tensors(tmp_path / name)


def test_pth_files(tmp_path):
    """With torch: read with weights_only. Without: a sentence that says what to install."""
    path = tmp_path / "weights.pth"
    try:
        import torch
    except ImportError:
        path.write_bytes(b"any")
        with pytest.raises(rn.InputError, match=r"weights.pth.*pip install torch"):
            reading.read_tensors(path)
        return
    torch.save({"model": {"a": torch.arange(4.0).half(), "b": torch.ones(2, dtype=torch.int64)}}, path)
    tensors = reading.read_tensors(path)
    np.testing.assert_array_equal(tensors["a"], np.arange(4, dtype=np.float32))
    torch.save({"model": Harm()}, path)
    with pytest.raises(rn.InputError, match=r"weights.pth can't be read"):
        reading.read_tensors(path)
