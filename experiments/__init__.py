"""Command-line entry points: `python -m experiments.NAME --help`. The logic lives in the library."""

import os

# Before TensorFlow is imported: what it tells of its CPU kernels and missing GPUs would bury our own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
