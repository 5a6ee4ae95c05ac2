"""What TensorFlow reads from the environment once, before it takes memory: `retinanet_tf` imports this module first.

Whoever has used TensorFlow before, or sets the variables, decides.
"""

import os
import sys

# A batch of images is larger than what the C library keeps for the next (32 MB): its memory goes back to Linux and
# comes anew, page after page, which can cost more than decoding the images. TensorFlow's allocator for accelerators,
# used for the CPU's memory too, keeps what it got. Its limit would be 64 GB.
_SETTINGS = {}
if sys.platform == "linux":
    _MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    _SETTINGS = {"TF_CPU_ALLOCATOR_USE_BFC": "1", "TF_CPU_BFC_MEM_LIMIT_IN_MB": str(_MEMORY)}

SET = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
"""What was set here, because nobody else had."""

os.environ.update(SET)


def as_it_came() -> dict[str, str]:
    """The environment without what was set here, for a process that shall decide for itself."""
    return {name: value for name, value in os.environ.items() if name not in SET}
