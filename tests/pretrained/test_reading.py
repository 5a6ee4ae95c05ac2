"""Reading checkpoint files: nothing in them is executed, and wrong ones are refused by name."""

import argparse
import collections
import os
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import torch_writer
from published import write, write_safetensors

import retinanet_tf as rn
from retinanet_tf.pretrained import reading

RNG = np.random.default_rng(0)
BFLOAT16 = np.dtype(tf.bfloat16.as_numpy_dtype)


class Harm:
    """A pickle that runs a command."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


class Settings(dict):
    """A class that the reader doesn't know, with items and attributes."""

    def __init__(self, **items):
        super().__init__(items)
        self.items_given = list(items)


def test_nothing_in_a_pickle_is_executed(tmp_path):
    write(tmp_path / "bad.pkl", {"conv1_w": Harm(tmp_path / "executed")})
    with pytest.raises(rn.InputError, match=r"bad.pkl is not a pickle of arrays.*system"):
        reading.read_tensors(tmp_path / "bad.pkl")
    assert not (tmp_path / "executed").exists()
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


def same(tensors, expected):
    assert set(tensors) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], np.asarray(array).astype(tensors[name].dtype))


@pytest.mark.parametrize("older", [False, True])
def test_torchs_files(tmp_path, older):
    """All types, views of shared storages with any strides, parameters; both layouts of torch.save."""
    shared = torch_writer.Storage(np.arange(24, dtype=np.float32))
    content = {
        "f4": RNG.normal(size=(2, 3, 1, 2)).astype(np.float32),
        "f2": np.float16([1.5, -2.25, 60000]),
        "bf16": np.array([1.5, -3e38, 0.0078125], BFLOAT16),
        "f8": RNG.normal(size=5),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True]),
        "whole": torch_writer.View(shared, (4, 6), (6, 1)),
        "transposed": torch_writer.Parameter(torch_writer.View(shared, (3, 4), (1, 6), offset=2)),
    }
    file = torch_writer.save(tmp_path / "weights.pth", collections.OrderedDict(content), older)
    tensors = reading.read_tensors(file)
    numbers = np.arange(24).reshape(4, 6)
    expected = {**content, "whole": numbers, "transposed": numbers[:, 2:5].T}
    del expected["mask"]  # no weights are booleans
    same(tensors, expected)
    assert tensors["bf16"].dtype == tensors["f2"].dtype == np.float32 and tensors["count"].dtype == np.int64


@pytest.mark.parametrize("older", [False, True])
def test_a_lightning_checkpoint_comes_through_and_nothing_in_it_is_executed(tmp_path, older):
    weights = {"model.backbone.a": np.ones(3, np.float32), "model.b": np.zeros((2, 2), np.float32)}
    harm = Harm(tmp_path / "executed")
    content = {
        "epoch": 3,
        "state_dict": collections.OrderedDict(weights),
        "hyper_parameters": {"args": argparse.Namespace(lr=0.1), "path": tmp_path, "label_dict": Settings(Tree=0)},
        "callbacks": {"best": [Settings(score=1.0), collections.Counter("abc"), {1, 2}], "harm": harm},
        "optimizer_states": [{"state": {0: {"exp_avg": np.ones(3, np.float32)}}}],
    }
    file = torch_writer.save(tmp_path / "last.ckpt", content, older)
    same(reading.read_tensors(file), {"backbone.a": np.ones(3), "b": np.zeros((2, 2))})
    assert not (tmp_path / "executed").exists()
    torch_writer.save(file, {"state_dict": harm}, older)
    with pytest.raises(rn.InputError, match=r"last.ckpt can't be read.*system; save its state_dict"):
        reading.read_tensors(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("wrapped", [
    lambda weights: {"model": weights, "optimizer": {}, "lr_scheduler": {"last_epoch": 2}, "epoch": 1},
    lambda weights: {"model_state_dict": weights, "loss": 0.5},
    lambda weights: {"model": {"name": "retinanet", "anchors": [32, 64]}, "state_dict": weights},
    lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    lambda weights: {"ema": {"state_dict": {f"model.net.{name}": value for name, value in weights.items()}}},
    lambda weights: {"model": {f"_orig_mod.module.{name}": value for name, value in weights.items()}, "ema": None},
])  # fmt: skip
def test_wrapped_weights(tmp_path, wrapped):
    weights = {"conv.weight": np.ones(2, np.float32), "net_bias": np.zeros(1, np.float32)}
    same(reading.read_tensors(torch_writer.save(tmp_path / "w.pt", wrapped(weights))), weights)


def test_two_networks_in_one_file_are_refused(tmp_path):
    both = {"net.a": np.ones(2, np.float32), "model.a": np.zeros(2, np.float32)}
    with pytest.raises(rn.InputError, match="holds a twice, once as model.a"):
        reading.read_tensors(torch_writer.save(tmp_path / "w.pt", both))


def repacked(change, **options):
    """A change of a zip file: entry by entry, `change(name, content)` gives the new content, None leaves it out."""

    def apply(path):
        with zipfile.ZipFile(path) as archive:
            entries = {name: change(name, archive.read(name)) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, content in entries.items():
                if content is not None:
                    archive.writestr(name, content)

    return apply


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "isn't whole"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "isn't a file of torch.save"),
        (repacked(lambda name, content: content[:-4] if "data/0" in name else content), "12 bytes, not 4 float32"),
        (repacked(lambda name, content: None if "data/0" in name else content), "data/0 is missing"),
        (repacked(lambda name, content: None if "pkl" in name else content), "no data.pkl"),
        (repacked(lambda name, content: b"big" if "byteorder" in name else content), "big-endian"),
        (repacked(lambda name, content: content, compression=zipfile.ZIP_DEFLATED), "compressed"),
        (repacked(lambda name, content: content[:-9] if "pkl" in name else content), "truncated"),
    ],
)
def test_damaged_files_of_torch_are_refused(tmp_path, change, sentence):
    path = torch_writer.save(tmp_path / "bad.pth", {"a": np.ones(4, np.float32)})
    change(path)
    with pytest.raises(rn.InputError, match=f"bad.pth can't be read.*{sentence}"):
        reading.read_tensors(path)


@pytest.mark.parametrize("view", [
    ((5,), (1,)), ((2, 2), (3, 1)), ((2**40,), (0,)), ((2,), (-1,)), ((2,), (1,), 3), ((2.0,), (1,)), ((2,), (1, 1)),
])  # fmt: skip
@pytest.mark.parametrize("older", [False, True])
def test_tensors_beyond_their_storage_are_refused(tmp_path, view, older):
    shape, strides, *offset = view
    tensor = torch_writer.View(torch_writer.Storage(np.ones(4, np.float32)), shape, strides, *offset)
    with pytest.raises(rn.InputError, match="doesn't lie within its storage of 4 numbers"):
        reading.read_tensors(torch_writer.save(tmp_path / "bad.pth", {"a": tensor}, older))


@pytest.mark.parametrize("cut", [1, 8, 20, 60, 150])
def test_truncated_files_of_older_torch_are_refused(tmp_path, cut):
    path = torch_writer.save(tmp_path / "cut.pth", {"a": np.ones(4, np.float32)}, older=True)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(rn.InputError, match=r"cut.pth can't be read"):
        reading.read_tensors(path)


def test_safetensors(tmp_path):
    arrays = {
        "model.a": RNG.normal(size=(2, 3)).astype(np.float32),
        "b": np.array([1.5, -3e38], BFLOAT16),
        "c": np.float16([0.5]),
        "d": np.array(7, np.int64),
    }
    path = write_safetensors(tmp_path / "model.safetensors", arrays)
    tensors = reading.read_tensors(path)
    same(tensors, {name.removeprefix("model."): array for name, array in arrays.items()})
    for content in (path.read_bytes()[:-1], (10**9).to_bytes(8, "little"), b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(rn.InputError, match="model.safetensors is no .safetensors file"):
            reading.read_tensors(path)
