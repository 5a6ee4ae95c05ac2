"""Atomic writes (aside, then renamed) and reads, local or remote, with errors that name the path."""

import codecs
import json
import os
import re
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retinanet_tf.errors import InputError

# Byte order marks, and how an XML declaration begins in UTF-16 without one.
_FIRST_BYTES = {
    codecs.BOM_UTF8: "UTF-8-SIG",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"<\0?\0": "UTF-16-LE",
    b"\0<\0?": "UTF-16-BE",
}


@contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[str]:
    """Yields a temporary name in the same folder; it is renamed to `path` if the block ends without an error."""
    path = os.fspath(path)
    # Without the name, with which this one might be longer than a file's name can be.
    aside = os.path.join(os.path.dirname(path), f".{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from None
    finally:
        with suppress(OSError):
            os.remove(aside)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text; raises InputError if the file can't be written."""
    # Bytes of a file's name that are no UTF-8 become \udcXX, which JSON reads back.
    with written_aside(path) as aside, open(aside, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value`, in which there may be NumPy's numbers and arrays, as indented JSON with a closing newline."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=lambda array: array.tolist()) + "\n")


def path_text(path: str | os.PathLike, name: str) -> str:
    """A path or pattern as text; raises InputError, which names the argument, if it is something else."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{name}={path!r} must be a path.")
    return os.fspath(path)


def local(path: str | os.PathLike, flag: str = "the output folder") -> str:
    """The path of an output as text; raises InputError if it is empty or remote (gs://…)."""
    path = path_text(path, flag)
    if not path or re.match(r"\w\w+:/", path):  # pathlib leaves one slash
        raise InputError(f"{flag} {path!r} must be a local folder or a mounted one.")
    return path


def make_folder(path: str | os.PathLike, flag: str = "the output folder") -> None:
    """Creates a folder and its parents; raises InputError if it isn't local, or can't be created or written to."""
    path = local(path, flag)
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


@contextmanager
def output_folder(path: str | os.PathLike, flag: str = "the output folder") -> Iterator[None]:
    """Creates a folder like `make_folder`; an error in the block removes what is new of its path and empty."""
    path = Path(os.path.abspath(local(path, flag)))
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path, flag)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # one isn't empty
            for folder in new:
                folder.rmdir()
        raise


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM inside the block raises SystemExit with 143, so that what is half written is removed.

    In the main thread, and unless the program has a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _) -> None:
    raise SystemExit(128 + number)


def read_text(path: str | os.PathLike, what: str) -> str:
    """A text file, local or remote, decoded strictly: UTF-8, or what its first bytes say.

    A byte order mark (UTF-8, UTF-16) and the encoding that an XML file declares are heeded.

    Args:
        path: local or remote (gs://…).
        what: the kind of file, for messages.

    Raises:
        InputError: naming file and line, if the file can't be read or isn't text of that encoding.
    """
    content = read_bytes(path, what)
    encoding = _encoding_of(content)
    try:
        text = content.decode(encoding)
        if "\0" not in text:
            return text
        line, fault = text[: text.index("\0")].count("\n") + 1, "a NUL character"
    except LookupError:
        raise InputError(f"{what} {path} declares the unknown encoding {encoding}; save it as UTF-8.") from None
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line, fault = content[:start].count(b"\n") + 1, f"the byte 0x{content[start]:02x}"
    remedy = "save it as UTF-8" + (", or declare its encoding in its first line" if b"<?xml" in content[:99] else "")
    raise InputError(f"{what} {path} isn't text in {encoding}: line {line} has {fault}; {remedy}.")


def read_json(path: str | os.PathLike, what: str, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """The content of a JSON file, read by `read_text`.

    Args:
        path: local or remote.
        what: the kind of file, for messages.
        object_hook: see `json.loads`.

    Raises:
        InputError: the file can't be read, isn't JSON, or is nested or has numbers beyond what Python reads.
    """
    try:
        return json.loads(read_text(path, what), object_hook=object_hook)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} isn't JSON that can be read ({error}); is it complete?") from None


def read_bytes(path: str | os.PathLike, what: str) -> bytes:
    """A regular file (no device, pipe or folder) as bytes, local or remote; `what` names its kind in an InputError."""
    path = os.fspath(path)
    if "://" in path:
        return _read_remote(path, what)
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                return file.read()
        reason = "it's a folder" if os.path.isdir(path) else "it isn't a regular file"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, MemoryError) as error:  # a NUL or surrogate in the name; a sparse file
        reason = str(error) or "it doesn't fit into memory"
    raise InputError(f"{what} {path} can't be read: {reason}.")


def _encoding_of(content: bytes) -> str:
    for start, encoding in _FIRST_BYTES.items():
        if content.startswith(start):
            return encoding
    declared = re.match(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""", content)
    # A declaration that is read byte by byte isn't UTF-16, whatever it says: .NET writes such files in UTF-8.
    return declared[1].decode() if declared and not declared[1].lower().startswith(b"utf-16") else "UTF-8"


def _read_remote(path: str, what: str) -> bytes:
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise InputError(f"{what} {path} can't be read: {error.message}.") from None
