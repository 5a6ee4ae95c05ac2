"""Atomic writes (aside, then renamed) and reads, local or remote, with errors that name the path."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from retinanet_tf.errors import InputError


@contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[str]:
    """Yields a temporary name in the same folder; it is renamed to `path` if the block ends without an error."""
    path = os.fspath(path)
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from None
    finally:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.remove(aside)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text; raises InputError if the file can't be written."""
    with written_aside(path) as aside, open(aside, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with a closing newline."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def make_folder(path: str | os.PathLike, flag: str = "the output folder") -> None:
    """Creates a folder and its parents; raises InputError if it can't be created or written to."""
    path = os.fspath(path)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path} can't be created: {error.strerror or error}.") from None
    probe = os.path.join(path, f".{secrets.token_hex(4)}")
    try:
        with open(probe, "wb"):
            os.remove(probe)
    except OSError as error:
        raise InputError(f"{flag} {path} can't be written: {error.strerror or error}.") from None


def read_text(path: str | os.PathLike, what: str) -> str:
    """A text file, local or remote (gs://…); `what` names the kind of file in an InputError."""
    return read_bytes(path, what).decode("utf-8", errors="replace")


def read_bytes(path: str | os.PathLike, what: str) -> bytes:
    """A file as bytes, local or remote; `what` names the kind of file in an InputError."""
    path = os.fspath(path)
    if "://" in path:
        return _read_remote(path, what)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{what} {path} can't be read: {error.strerror or error}.") from None


def _read_remote(path: str, what: str) -> bytes:
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise InputError(f"{what} {path} can't be read: {error.message}.") from None
