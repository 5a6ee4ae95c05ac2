"""The command line's start of TensorFlow: its CPU allocator, and its start-up lines left out."""

import os
import re
import sys
import tempfile

from absl import flags

from retinanet_tf.errors import InputError

# Batch images exceed what malloc keeps (32 MB): their pages would go back to Linux and be cleared anew for every
# batch. TensorFlow's BFC allocator keeps them; its own limit would be 64 GB.
_ALLOCATOR = {}
if sys.platform == "linux":
    _MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    _ALLOCATOR = {"TF_CPU_ALLOCATOR_USE_BFC": "1", "TF_CPU_BFC_MEM_LIMIT_IN_MB": str(_MEMORY)}

START_UP = re.compile(
    r"^(\d{4}-\d\d-\d\d [\d:.]+: I |I0000 )|absl::InitializeLog|^To enable the following instructions"
    r"|failed call to cuInit|Unable to register cu\w+ factory|TF-TRT Warning: Could not find TensorRT"
)
"""Lines that TensorFlow writes at its import and at the first look at devices, whatever TF_CPP_MIN_LOG_LEVEL is."""

_chosen: dict[str, str] = {}


def choose_allocator() -> None:
    """Sets the variables of TensorFlow's CPU allocator that the user hasn't set; before TensorFlow takes memory."""
    for name, value in _ALLOCATOR.items():
        if name not in os.environ:
            os.environ[name] = _chosen[name] = value


def original_environment() -> dict[str, str]:
    """The environment without what `choose_allocator` set, for other programs."""
    return {name: value for name, value in os.environ.items() if name not in _chosen}


def import_tensorflow() -> None:
    """Imports TensorFlow with its allocator and lists the devices; start-up lines are left out without --verbosity=1.

    C++ writes these lines to file descriptor 2 itself, which points to a temporary file meanwhile; other lines of
    stderr are kept.
    """
    choose_allocator()
    shown = flags.FLAGS.verbosity > 0
    if not shown:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        if not shown:
            os.dup2(written.fileno(), 2)
        try:
            try:
                import tensorflow as tf
            except ImportError as error:
                raise InputError(
                    f"TensorFlow can't be imported ({error}); without it `retinanet predict` runs .onnx and .tflite."
                ) from None
            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            print_relevant(written.read().decode(errors="replace"))


def print_relevant(text: str) -> None:
    """Prints the lines of a process' stderr that aren't TensorFlow's start-up lines."""
    for line in text.splitlines():
        if not START_UP.search(line):
            print(line, file=sys.stderr)
