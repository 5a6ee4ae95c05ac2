"""Reads checkpoint files into {name: array}; nothing in an untrusted file is executed."""

import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from retinanet_tf.errors import InputError, refusing
from retinanet_tf.files import read_bytes
from retinanet_tf.hdf5 import opened

_CONTAINERS = ("model", "state_dict", "blobs")
"""Keys of the weights in files that also hold optimizers and counters."""


def _encode(text: str, encoding: str) -> bytes:
    """Rebuilds bytes in pickles of protocol 2."""
    return text.encode(encoding)


_NUMPY = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    # numpy 1 and 2 name the same two functions differently.
    **{
        (module, name): function
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, function in _NUMPY.items()
    },
}


class _ArraysOnly(pickle.Unpickler):
    """Refuses all classes and functions except those of numpy arrays and plain containers."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by their names in the file.

    Args:
        path: `.pkl` (Detectron, detectron2), `.pth` or `.pt` (needs torch), `.h5` (keras.applications).

    Raises:
        InputError: the file is missing, of another format, damaged, or holds anything but arrays.
    """
    suffix = Path(path).suffix
    if suffix in (".h5", ".hdf5"):
        return _read_h5(path)
    if suffix not in (".pkl", ".pth", ".pt"):
        raise InputError(f"{path} ends in {suffix or 'nothing'}; known formats are .pkl, .pth, .pt and .h5.")
    content = io.BytesIO(read_bytes(path, "the checkpoint"))
    if suffix != ".pkl":
        return _load_torch(content, path)
    with refusing(f"{path} is not a pickle of arrays"):
        # Detectron wrote its own with Python 2.
        return _arrays(_ArraysOnly(content, encoding="latin1").load())


def _load_torch(content: io.BytesIO, path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is in PyTorch's format; `pip install torch --index-url https://download.pytorch.org/whl/cpu` "
            "installs what reads it (only for the import)."
        ) from None
    with refusing(f"{path} can't be read by torch.load(weights_only=True)"):
        return _arrays(torch.load(content, map_location="cpu", weights_only=True))


def _arrays(content: Any) -> dict[str, np.ndarray]:
    """Unwraps the container and keeps the arrays."""
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(f"it holds a {type(content).__name__}, not tensors by name")
    tensors = {}
    for name, value in content.items():
        if hasattr(value, "detach"):
            value = value.detach()
            value = (value.float() if value.is_floating_point() else value).numpy()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            tensors[str(name)] = value
    if not tensors:
        raise InputError("it holds no tensors by name")
    return tensors


def _read_h5(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Keras' older HDF5 layout, one group per layer: {"layer/weight": array}."""
    tensors = {}
    with opened(path) as file:
        for layer, group in file.get("model_weights", file).items():
            for name in group.attrs.get("weight_names", ()):
                name = name.decode() if isinstance(name, bytes) else str(name)
                tensors[f"{layer}/{name.split('/')[-1].split(':')[0]}"] = np.asarray(group[name], np.float32)
        if not tensors:
            raise InputError("it isn't in the layout of keras.applications' .h5 files (one group per layer)")
    return tensors


def download_keras(backbone: str) -> dict[str, np.ndarray]:
    """Downloads the ImageNet weights of keras.applications.

    Args:
        backbone: resnet50, resnet101 or resnet152.

    Raises:
        InputError: another backbone, or the download failed.
    """
    makers = {
        "resnet50": keras.applications.ResNet50,
        "resnet101": keras.applications.ResNet101,
        "resnet152": keras.applications.ResNet152,
    }
    if backbone not in makers:
        raise InputError(
            f"keras.applications has {', '.join(makers)}, not {backbone!r}; give a file or one of these as backbone."
        )
    with refusing(f"Keras can't download {backbone}, whose .h5 file can be given as file"):
        model = makers[backbone](include_top=False, weights="imagenet")
    kinds = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
    return {
        f"{layer.name}/{kind}": np.array(getattr(layer, kind))
        for layer in model.layers
        for kind in kinds
        if getattr(layer, kind, None) is not None
    }
