"""Glob patterns that leave alone what exists: `data [v2]/train-*` is of a folder "data [v2]" if there is one."""

import glob
import os

from retinanet_tf.errors import InputError, first_line


def matching(pattern: str | os.PathLike) -> list[str]:
    """The sorted paths, local or remote, that a glob pattern matches; `**` is any number of folders.

    What exists is no pattern: neither a whole path nor the folders that one begins with. In the rest square brackets
    stand for themselves where that matches something, else for a set of characters.

    Raises InputError for a remote path that can't be listed, such as a web address.
    """
    pattern = os.fspath(pattern)
    if "://" in pattern:
        import tensorflow as tf

        try:
            return sorted(tf.io.gfile.glob(pattern))
        except tf.errors.OpError as error:
            raise InputError(f"{pattern} can't be listed: {first_line(error)}; copy it to a local folder.") from None
    if "\0" in pattern:  # in no path
        return []
    if os.path.lexists(pattern):
        return [pattern]
    head = existing_folder(pattern)
    rest = pattern[len(head) :]
    matches = glob.glob(glob.escape(head) + rest.replace("[", "[[]"), recursive=True)
    return sorted(matches or glob.glob(glob.escape(head) + rest, recursive=True))


def split_list(text: str) -> list[str]:
    """The paths and patterns of a comma-separated list; a name that exists or matches something isn't split."""
    if matching(text):
        return [text]
    parts, found = text.split(","), []
    while parts:
        count = next((n for n in range(1, len(parts) + 1) if matching(",".join(parts[:n]))), 0)
        found.append(",".join(parts[:count]) if count else parts[0].strip())
        del parts[: count or 1]
    return [part for part in found if part]


def existing_folder(path: str) -> str:
    """The longest beginning of a local path or pattern that is a folder, or "" for the current one."""
    head = path
    while not os.path.isdir(head or "."):
        head = os.path.dirname(head)
    return head
