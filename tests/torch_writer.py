"""Files as `torch.save` writes them, today's and the older layout, written without PyTorch."""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {
    **{"float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"},
    **{"int64": "LongStorage", "int32": "IntStorage", "uint8": "ByteStorage", "bool": "BoolStorage"},
}
for _name in STORAGES.values():
    globals()[_name] = type(_name, (), {"__module__": __name__})


def _rebuild_tensor_v2(*arguments):
    raise AssertionError("stands in for torch's")


def _rebuild_parameter(*arguments):
    raise AssertionError("stands in for torch's")


class Storage:
    """Numbers that several tensors may share."""

    def __init__(self, numbers):
        self.numbers = np.ascontiguousarray(numbers).reshape(-1)


class View:
    """A tensor that is a view of a storage; offset and strides count its elements."""

    def __init__(self, storage, shape, strides, offset=0):
        self.arguments = (storage, offset, tuple(shape), tuple(strides), False, OrderedDict())

    def __reduce__(self):
        return _rebuild_tensor_v2, self.arguments


class Parameter:
    """A tensor as a module's parameter."""

    def __init__(self, view):
        self.view = view

    def __reduce__(self):
        return _rebuild_parameter, (self.view, True, OrderedDict())


def tensor(array):
    """A tensor with a storage of its own."""
    array = np.asarray(array)
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    return View(Storage(array), array.shape, strides)


def save(path, content, older=False, byteorder=b"little"):
    """Writes a file of `torch.save`; arrays in a mapping of names become tensors. Returns its path."""
    storages, stream = [], io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, Storage):
                return None
            if item not in storages:
                storages.append(item)
            kind = getattr(sys.modules[__name__], STORAGES[item.numbers.dtype.name])
            pid = ("storage", kind, str(storages.index(item)), "cpu", item.numbers.size)
            return (*pid, None) if older else pid

        def reducer_override(self, item):
            return tensor(item).__reduce__() if isinstance(item, np.ndarray) else NotImplemented

    def dump(item):
        part = io.BytesIO()
        Pickler(part, protocol=2).dump(item)
        # In protocol 2 names of modules have no length before them.
        for name, theirs in (("_rebuild", b"torch._utils"), ("", b"torch")):
            ours = b"c" + __name__.encode() + b"\n" + name.encode()
            part = io.BytesIO(part.getvalue().replace(ours, b"c" + theirs + b"\n" + name.encode()))
        return part.getvalue()

    if older:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        for item in (0x1950A86A20F9469CFC6C, 1001, system, content):
            stream.write(dump(item))
        stream.write(dump([str(number) for number in range(len(storages))]))
        for storage in storages:
            stream.write(storage.numbers.size.to_bytes(8, "little") + storage.numbers.tobytes())
    else:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", dump(content))
            archive.writestr("archive/byteorder", byteorder)
            for number, storage in enumerate(storages):
                archive.writestr(f"archive/data/{number}", storage.numbers.tobytes())
            archive.writestr("archive/version", b"3\n")
    path.write_bytes(stream.getvalue())
    return path
