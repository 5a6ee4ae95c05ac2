"""HDF5 files that others wrote: opened only if reading them stays in the file and in memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import h5py

from retinanet_tf.errors import InputError, refusing

_LARGEST = 2**33
"""Bytes: more than any network here, and little enough for a machine that trains one."""
_COMPRESSION = 20
"""Times that the arrays of a file may be larger than the file; weights hardly compress."""


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[h5py.File]:
    """Yields an HDF5 file for reading; what goes wrong inside the block is an InputError that names the file.

    Raises:
        InputError: no regular file, damaged, with links or with data in other files, or larger than any network.
    """
    with refusing(f"{os.fspath(path)} can't be read as HDF5 weights"):
        if not os.path.isfile(path):
            raise InputError("there is no such file")
        with h5py.File(path, "r") as file:
            size = sum(dataset.nbytes for dataset in _datasets(file))
            if size > min(_LARGEST, _COMPRESSION * os.path.getsize(path)):
                raise InputError(f"its arrays would take {size} bytes")
            yield file


def _datasets(file: h5py.File) -> Iterator[h5py.Dataset]:
    seen, waiting = set(), [file["/"]]
    while waiting:
        group = waiting.pop()
        for name in group:
            # Links can point to other files, to nothing and to each other.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{name!r} in {group.name} is a link, which no weights need")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise InputError(f"{item.name} has its data in another file")
                yield item
