"""Reads PyTorch's files without PyTorch, today's zip and the older stream of pickles; nothing in them is executed."""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tf.errors import InputError

BFLOAT16 = np.dtype(tf.bfloat16.as_numpy_dtype)
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""The first pickle of the older layout."""


class Storage(NamedTuple):
    """A tensor's numbers, which lie elsewhere in the file."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, content: bytes | memoryview) -> np.ndarray:
        """The tensor as a view of its storage's bytes.

        Raises:
            InputError: it is larger than the storage, or reaches beyond it, or the bytes are others.
        """
        storage, numbers = self.storage, (self.offset, *self.shape, *self.strides)
        if len(content) != storage.size * storage.dtype.itemsize:
            raise InputError(f"storage {storage.key} has {len(content)} bytes, not {storage.size} {storage.dtype}")
        whole = all(type(number) is int and number >= 0 for number in numbers) and len(self.shape) == len(self.strides)
        last = sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=False))
        if not whole or 0 not in self.shape and max(math.prod(self.shape), self.offset + last + 1) > storage.size:
            raise InputError(f"a tensor of shape {self.shape} doesn't lie within its storage of {storage.size} numbers")
        flat = np.frombuffer(content, storage.dtype)
        strides = [stride * storage.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


class Foreign:
    """Stands in for an object of a class that isn't tensors, e.g. a training setting; whatever fills it is dropped."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def _ignore(self, *args: Any) -> "Foreign":
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _Unpickler(pickle.Unpickler):
    """Makes plain containers, tensors that are still to be read, and Foreign objects in place of all others."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, encoding="utf-8")
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        }
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return known.get((module, name)) or type(name, (Foreign,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        # The older layout adds the place in another storage, which releases before 0.4 used.
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or any(pid[5:]):
            return Foreign()
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, np.dtype) or type(key) is not str or type(count) is not int or count < 0:
            return Foreign()
        self.dtypes[key] = dtype
        return Storage(key, dtype, count)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        return Foreign()
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


def load(content: bytes) -> tuple[Any, Callable[[Tensor], np.ndarray]]:
    """The object in a file of `torch.save`, and the function that reads one of its tensors.

    Raises:
        InputError: it is no such file.
    """
    if content.startswith(b"PK"):
        return _load_zip(content)
    if content.startswith(_MAGIC):
        return _load_stream(content)
    raise InputError("it isn't a file of torch.save; is it complete, and not a web page?")


def _load_zip(content: bytes) -> tuple[Any, Callable[[Tensor], np.ndarray]]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise InputError(f"it is a zip file that isn't whole ({error}); fetch or copy it again") from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    names = [name for name in entries if name.split("/", 1)[-1] == "data.pkl"]
    if len(names) != 1:
        raise InputError("it is a zip file, but not of torch.save (no data.pkl)")
    prefix = names[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise InputError("it holds a TorchScript program; save the model's state_dict() instead")

    def member(name: str) -> bytes:
        # torch.save stores without compression, so that no entry is larger than the file.
        if name not in entries or entries[name].compress_type != zipfile.ZIP_STORED:
            raise InputError(f"its {name} is missing or compressed")
        return archive.read(name)

    if f"{prefix}byteorder" in entries and member(f"{prefix}byteorder") != b"little":
        raise InputError("its numbers are big-endian; save it again on a little-endian machine")
    kept: dict[str, bytes] = {}

    def read(tensor: Tensor) -> np.ndarray:
        key = tensor.storage.key
        if key not in kept:
            kept[key] = member(f"{prefix}data/{key}")
        return tensor.read(kept[key])

    return _Unpickler(io.BytesIO(member(names[0]))).load(), read


def _load_stream(content: bytes) -> tuple[Any, Callable[[Tensor], np.ndarray]]:
    stream = io.BytesIO(content)
    _, version, system = (_Unpickler(stream).load() for _ in range(3))
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("its numbers are big-endian, or its version is unknown; save it again with today's PyTorch")
    unpickler = _Unpickler(stream)
    result, keys = unpickler.load(), _Unpickler(stream).load()
    places, begin = {}, stream.tell()
    for key in keys:
        # The storages in turn: the number of elements, and their bytes.
        size = int.from_bytes(content[begin : begin + 8], "little") * unpickler.dtypes[key].itemsize
        places[key] = slice(begin + 8, begin + 8 + size)
        begin += 8 + size
    return result, lambda tensor: tensor.read(memoryview(content)[places[tensor.storage.key]])
