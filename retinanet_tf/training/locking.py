"""One job a run directory."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retinanet_tf.errors import InputError


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Holds `run_dir` inside the block; the system lets go of it when the process ends, however it does.

    Raises:
      InputError: another process has it, named by host and process id.
    """
    path = Path(run_dir) / "lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"run_dir={run_dir} is in use by another job ({holder}); wait for its end or choose another run_dir."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
