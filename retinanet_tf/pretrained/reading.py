"""Reads checkpoint files into {name: array}; nothing in an untrusted file is executed."""

import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from retinanet_tf.errors import InputError, refusing
from retinanet_tf.files import read_bytes
from retinanet_tf.hdf5 import opened
from retinanet_tf.pretrained import torch_files

_CONTAINERS = ("model", "state_dict", "model_state_dict", "blobs", "ema")
"""Keys of the weights in files that also hold optimizers and counters; the average only if it is alone."""
_WRAPPERS = re.compile(r"^((module|model|net|_orig_mod)\.)+")
"""Prefixes of torch's DataParallel and torch.compile, and of modules that hold a model."""
_SAFETENSORS: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": torch_files.BFLOAT16, "BOOL": np.bool_},
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
}


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


_FORMATS = (".pkl", ".pth", ".pt", ".ckpt", ".safetensors", ".h5", ".hdf5")


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by their names in the file, without the prefixes of wrappers such as `module.`.

    Args:
        path: `.pkl` (Detectron, detectron2), `.pth`, `.pt` or `.ckpt` (PyTorch, Lightning), `.safetensors`, or `.h5`
            (keras.applications).

    Raises:
        InputError: the file is missing, of another format, damaged, or holds no tensors by name.
    """
    suffix = Path(path).suffix
    if suffix in (".h5", ".hdf5"):
        return _read_h5(path)
    if suffix not in _FORMATS:
        raise InputError(f"{path} ends in {suffix or 'nothing'}; known formats are {', '.join(_FORMATS)}.")
    content = read_bytes(path, "the checkpoint")
    if suffix == ".safetensors":
        with refusing(f"{path} is no .safetensors file that can be read"):
            return _named(_safetensors(content))
    if suffix != ".pkl":
        with refusing(f"{path} can't be read"):
            loaded, read = torch_files.load(content)
            tensors = {
                name: value for name, value in _unwrapped(loaded).items() if isinstance(value, torch_files.Tensor)
            }
            return _named({name: read(tensor) for name, tensor in tensors.items()})
    with refusing(f"{path} is not a pickle of arrays"):
        # Detectron wrote its own with Python 2.
        loaded = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        return _named({name: value for name, value in _unwrapped(loaded).items() if isinstance(value, np.ndarray)})


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in safetensors.deserialize(content):
        if tensor["dtype"] not in _SAFETENSORS:
            raise InputError(f"{name} has the type {tensor['dtype']}, which no weights have")
        arrays[name] = np.frombuffer(tensor["data"], _SAFETENSORS[tensor["dtype"]]).reshape(tensor["shape"])
    return arrays


def _unwrapped(content: Any) -> Mapping:
    """The mapping with the weights in what a program saved."""
    mappings = list(_mappings(content))
    for mapping in mappings:
        if any(isinstance(value, (np.ndarray, torch_files.Tensor)) for value in mapping.values()):
            return mapping
    values = [content, *(value for mapping in mappings for value in mapping.values())]
    for kind in (type(value) for value in values if isinstance(value, torch_files.Foreign)):
        raise InputError(f"it holds an object of {kind.__module__}.{kind.__name__}; save its state_dict() instead")
    raise InputError("it holds no tensors by name")


def _mappings(content: Any) -> Iterator[Mapping]:
    """The mappings in which the weights may be, the innermost first."""
    if isinstance(content, Mapping):
        for key in _CONTAINERS:
            yield from _mappings(content.get(key))
        yield content


def _named(tensors: Mapping[Any, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of numbers by their names without wrappers' prefixes; 16-bit floats become 32-bit ones."""
    named: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if value.dtype in (np.float16, torch_files.BFLOAT16):
            value = value.astype(np.float32)
        if value.dtype.kind not in "fiu":
            continue
        plain = _WRAPPERS.sub("", str(name))
        if plain in named:
            raise InputError(f"it holds {plain} twice, once as {name}; keep one of the two networks")
        named[plain] = value
    if not named:
        raise InputError("it holds no tensors by name")
    return named


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
