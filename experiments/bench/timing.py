"""Timing in turns and result rows, for all benchmarks."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

from absl import flags

from retinanet_tf.files import write_json

JSON = flags.DEFINE_string("json", None, "File for the rows as JSON.")


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds per call, one list per function. All are called once per round, so that a busy moment hits each alike.

    The first call, which may trace a graph, is timed only where it takes longer than a minute; that function is not
    called again, and its one figure stands for every round.
    """
    first = {name: _seconds(function) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(first[name] if first[name] > 60.0 else _seconds(function))
    return times


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def stack(*packages: str) -> str:
    """The versions that a measurement belongs to, by default those of TensorFlow and Keras."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages or ("tensorflow", "keras")]
    return ", ".join([f"Python {platform.python_version()}", *versions])


def hardware() -> str:
    """The machine that a measurement belongs to, as Linux names it; and what TensorFlow turns oneDNN on for."""
    model, vectors = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            known = dict(line.replace("\t", "").strip().split(": ", 1) for line in file if ": " in line)
        model = known.get("model name", model)
        vectors = " with AVX-512 VNNI" if "avx512_vnni" in known.get("flags", "").split() else ""
    return f"{os.cpu_count()} cores of {model}{vectors}"


class Rows:
    """Collects {"name", "ours", "peer", "peer_value", "unit", "ratio", "limit", "stack", "hardware"}, printing each."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def add(self, name: str, ours: list[float], peer: str, theirs: list[float] | None, limit: float | None) -> None:
        """A time in milliseconds beside a peer's (None: it could not be run); the ratio is the rounds' median."""
        value = 1000 * statistics.median(ours)
        row = {"name": name, "ours": round(value, 2), "peer": peer, "peer_value": None, "unit": "ms", "ratio": None}
        if theirs is not None:
            row["peer_value"] = round(1000 * statistics.median(theirs), 2)
            row["ratio"] = round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)
        self._append({**row, "limit": limit, "stack": stack()})

    def add_absolute(self, name: str, ours: list[float], limit: float) -> None:
        """A time in milliseconds with a limit of its own; the ratio is to the limit."""
        value = 1000 * statistics.median(ours)
        row = {"name": name, "ours": round(value, 2), "peer": "limit", "peer_value": limit, "unit": "ms"}
        self._append({**row, "ratio": round(value / limit, 3), "limit": 1.0, "stack": stack()})

    def add_memory(self, name: str, ours: int | None, unit: int, limit: float | None) -> None:
        """Bytes (None: could not be measured) as a multiple of `unit` bytes."""
        value = None if ours is None else round(ours / 2**20, 1)
        row = {"name": name, "ours": value, "peer": "the logits", "peer_value": round(unit / 2**20, 1), "unit": "MiB"}
        ratio = None if ours is None else round(ours / unit, 2)
        self._append({**row, "ratio": ratio, "limit": limit, "stack": stack()})

    def add_value(
        self, name: str, ours: float, peer: str, peer_value: float | None, unit: str, limit: float | None
    ) -> None:
        """One measured value beside another of the same unit; the ratio is ours over theirs."""
        ratio = None if not peer_value else round(ours / peer_value, 3)
        row = {"name": name, "ours": round(ours, 3), "peer": peer, "peer_value": peer_value, "unit": unit}
        self._append({**row, "ratio": ratio, "limit": limit, "stack": stack()})

    def write(self) -> None:
        """Writes --json, if it was given."""
        if JSON.value:
            write_json(JSON.value, self.rows)

    def _append(self, row: dict) -> None:
        self.rows.append({**row, "hardware": hardware()})
        unit = row["unit"]
        theirs = "not run" if row["ratio"] is None else f"{row['peer_value']:g} {unit}, ratio {row['ratio']:g}"
        print(f"{row['name']}: {row['ours']} {unit}; {row['peer']}: {theirs} (limit {row['limit']})", flush=True)
