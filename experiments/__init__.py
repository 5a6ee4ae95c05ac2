"""Command-line entry points: `python -m experiments.NAME --help`. The logic lives in the library."""
