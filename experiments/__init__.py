"""Scripts that reproduce the paper and the benchmarks; each lists its flags with --help."""

import os

# Before TensorFlow is imported, which these scripts do before they parse their flags.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
