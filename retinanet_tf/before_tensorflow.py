"""What TensorFlow reads once, at its import: `retinanet_tf` imports this module first.

Whoever imports TensorFlow before `retinanet_tf`, or sets the variables, decides.
"""

import os
import sys


def _settings() -> dict[str, str]:
    """Environment variables by name."""
    settings: dict[str, str] = {}
    if sys.platform == "linux":
        # A batch of images is larger than what the C library keeps for the next (32 MB): its memory goes back to Linux
        # and comes anew, page after page, which can cost more than decoding the images. TensorFlow's allocator for
        # accelerators, used for the CPU's memory too, keeps what it got. Its limit would be 64 GB.
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        settings |= {"TF_CPU_ALLOCATOR_USE_BFC": "1", "TF_CPU_BFC_MEM_LIMIT_IN_MB": str(memory)}
    return settings


SET = {name: value for name, value in _settings().items() if name not in os.environ}
"""What was set here, because nobody else had."""

os.environ.update(SET)


def as_it_came() -> dict[str, str]:
    """The environment without what was set here, for a process that shall decide for itself."""
    return {name: value for name, value in os.environ.items() if name not in SET}
