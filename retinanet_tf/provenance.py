"""Provenance of a result: versions, hardware and git commit."""

import os
import platform
import subprocess
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.version import __version__


def provenance() -> dict[str, str]:
    """Versions, hardware and git commit ('unknown' outside a checkout)."""
    here = Path(__file__).resolve().parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "retinanet_tf": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "commit": git.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {len(tf.config.list_physical_devices('GPU'))} GPUs",
    }
