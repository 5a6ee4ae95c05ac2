"""Benchmarks against other implementations; each script takes --json=FILE for its rows, but `scaling` --output."""
