"""Reading checkpoint files: nothing in them is executed, and wrong ones are refused by name."""

import collections
import os

import h5py
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


def keras_layout(path, change):
    """A file of one layer in the layout of keras.applications, changed."""
    with h5py.File(path, "w") as file:
        layer = file.create_group("model_weights").create_group("conv1_conv")
        layer["conv1_conv/kernel:0"] = np.ones((3, 3, 1, 2), np.float32)
        layer.attrs["weight_names"] = [b"conv1_conv/kernel:0"]
        change(file, layer)
    return path


def replace(group, name, value):
    del group[name]
    group[name] = value


def attribute(value):
    return lambda file, layer: layer.attrs.__setitem__("weight_names", value)


def virtual(file, layer):
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/elsewhere.h5", "x", (2,))
    layer.create_virtual_dataset("v", layout)


def test_keras_layout(tmp_path):
    tensors = reading.read_tensors(keras_layout(tmp_path / "good.h5", lambda file, layer: None))
    np.testing.assert_array_equal(tensors["conv1_conv/kernel"], np.ones((3, 3, 1, 2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda file, layer: replace(file, "model_weights", np.zeros(3)),
        lambda file, layer: replace(file["model_weights"], "conv1_conv", np.zeros(3)),
        lambda file, layer: replace(file, "model_weights", h5py.SoftLink("/model_weights")),
        lambda file, layer: replace(file, "model_weights", h5py.SoftLink("/nothing")),
        lambda file, layer: replace(file, "model_weights", h5py.ExternalLink("/etc/other.h5", "/")),
        lambda file, layer: layer.__setitem__("again", h5py.SoftLink("/model_weights/conv1_conv")),
        lambda file, layer: layer.create_dataset("big", (2**40,), "f4"),
        lambda file, layer: layer.create_dataset("packed", (10**7,), "f4", chunks=True, compression="gzip"),
        lambda file, layer: layer.create_dataset("raw", (2,), "f4", external=[("/dev/zero", 0, 8)]),
        lambda file, layer: replace(layer, "conv1_conv/kernel:0", ["text"]),
        virtual,
        attribute(5),
        attribute(2.5),
        attribute([b"\xff\xfe"]),
        attribute([b"nothing/kernel:0"]),
        attribute([b"."]),
        attribute([]),
        attribute("conv1_conv/kernel:0"),
    ],
)
def test_malformed_hdf5_is_refused(tmp_path, change):
    with pytest.raises(rn.InputError, match=r"bad\.h5 can't be read"):
        reading.read_tensors(keras_layout(tmp_path / "bad.h5", change))


def test_a_group_that_holds_itself_ends(tmp_path):
    path = keras_layout(tmp_path / "good.h5", lambda file, layer: layer.__setitem__("itself", file["model_weights"]))
    assert set(reading.read_tensors(path)) == {"conv1_conv/kernel"}


@pytest.mark.parametrize("cut", [1, 100, 1500])
@pytest.mark.parametrize("kind", ["h5", "pkl"])
def test_truncated_files_are_refused(tmp_path, kind, cut):
    path = tmp_path / f"cut.{kind}"
    if kind == "h5":
        keras_layout(path, lambda file, layer: None)
    else:
        write(path, {"a": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(rn.InputError, match=path.name):
        reading.read_tensors(path)


@pytest.mark.parametrize("content", [3, [1, 2], {}, {"model": {}}, {"a": "b"}, {"a": np.array(["b"])}, None])
def test_pickles_without_tensors_are_refused(tmp_path, content):
    with pytest.raises(rn.InputError, match=r"odd\.pkl"):
        reading.read_tensors(write(tmp_path / "odd.pkl", content))


@pytest.mark.parametrize(
    "name, content",
    [
        ("weights.npz", b"PK"),
        ("folder.h5", "folder"),
        ("folder.pkl", "folder"),
        ("empty.pkl", b""),
        ("text.h5", b"no hdf5"),
        ("x.bin", b""),
        ("lost.pkl", None),
    ],
)
def test_wrong_files_are_named(tmp_path, name, content):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
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
