"""Speed on an accelerator: training step, network, images to detections, and the share of the matmul peak they reach.

    python -m experiments.bench.accelerator --json=accelerator.json

times the product's own functions, compiled by XLA, with TensorFlow on its first GPU. Where the GPU's machine has JAX
but no TensorFlow it is done in two halves, here and there:

    python -m experiments.bench.accelerator --export_hlo=hlo
    python -m experiments.bench.accelerator --run_hlo=hlo --json=accelerator.json

torchvision's retinanet_resnet50_fpn is timed on the same GPU where it is installed. Times are medians after warm-up.
Floating-point operations are those of the convolutions; the peak is that of a matmul of 8192³ under XLA, in bfloat16
for both half precisions and in TF32 for float32.
"""

import fnmatch
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.bench import run_hlo
from experiments.bench.timing import JSON, stack
from retinanet_tf import files
from retinanet_tf.cli.before_tensorflow import import_tensorflow, original_environment
from retinanet_tf.cli.main import run
from retinanet_tf.errors import InputError

_JOBS = flags.DEFINE_list("jobs", ["all"], "Names or patterns of jobs, e.g. 'matmul_*,train_bfloat16_b16'.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed calls of each job.", lower_bound=1)
_EXPORT = flags.DEFINE_string("export_hlo", None, "Write the jobs' HLO modules into this folder; run nothing.")
_RUN = flags.DEFINE_string("run_hlo", None, "Run the HLO modules of this folder with JAX, without TensorFlow.")
_TOLERANCE = 1e-3  # TF32 has ten bits


def main() -> None:
    """Exports, or measures and writes the rows after every job."""
    if _EXPORT.value and _RUN.value:
        raise InputError("export_hlo and run_hlo are two halves; give one of them.")
    if _RUN.value:
        folder = Path(_RUN.value)
        if not (exported := run_hlo.read_jobs(folder)):
            raise InputError(f"run_hlo={folder} holds no jobs; --export_hlo={folder} writes them.")
        jobs = chosen(exported)
        peers = torchvision_times(jobs.values())
        client, device = stack("jax", "jaxlib"), run_hlo.device_name()
        _report(jobs, lambda job: (job, run_hlo.measure(folder, job, _ROUNDS.value)), peers, client, device)
        return
    import_tensorflow()
    from experiments.bench import accelerator_jobs

    jobs = chosen(accelerator_jobs.JOBS)
    if _EXPORT.value:
        files.make_folder(_EXPORT.value, "export_hlo")
        for job in jobs.values():
            accelerator_jobs.export(job, Path(_EXPORT.value))
            print(job.name, flush=True)
        return
    # Before TensorFlow takes the GPU's memory.
    peers = torchvision_times([accelerator_jobs.describe(job) for job in jobs.values()])
    device = accelerator_jobs.device_name()
    _report(jobs, lambda job: accelerator_jobs.measure(job, _ROUNDS.value), peers, stack(), device)


def chosen(jobs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the jobs that --jobs names."""
    found: dict[str, Any] = {}
    for pattern in _JOBS.value:
        names = fnmatch.filter(jobs, "*" if pattern == "all" else pattern)
        if not names:
            raise InputError(f"jobs={pattern!r} matches none of {', '.join(jobs)}.")
        found |= {name: jobs[name] for name in names}
    return {name: job for name, job in jobs.items() if name in found}


def torchvision_times(jobs: Iterable[dict]) -> dict[str, list[float]]:
    """Seconds of each call of torchvision's RetinaNet by the job's name; empty without torchvision or a GPU."""
    wanted = [job for job in jobs if job["backbone"] == "resnet50"]
    if not wanted or importlib.util.find_spec("torchvision") is None:
        return {}
    command = [sys.executable, "-m", "experiments.bench.torchvision_gpu", str(_ROUNDS.value)]
    worker = subprocess.run(
        command, input=json.dumps(wanted), stdout=subprocess.PIPE, text=True, check=True, env=original_environment()
    )
    rows = map(json.loads, worker.stdout.splitlines())
    return {row["name"]: row["seconds"] for row in rows}


def _report(
    jobs: Mapping[str, Any],
    measure: Callable[[Any], tuple[dict, dict]],
    peers: Mapping[str, list[float]],
    client: str,
    device: str,
) -> None:
    """Measures every job (`measure` returns its description and measurements), prints rows and writes --json.

    Raises:
        InputError: at the end, if jobs failed or had another result than TensorFlow on a CPU; their names.
    """
    rows: list[dict] = []
    peaks: dict[str, float] = {}
    failed: list[str] = []
    for name in jobs:
        try:
            job, measured = measure(jobs[name])
        except Exception as error:  # e.g. out of memory, which must not cost the other jobs their results
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        versions = "; ".join(dict.fromkeys((job["stack"], client)))
        rows.append({**row(job, measured, peers.get(name), peaks), "stack": versions, "hardware": device})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items() if value is not None), flush=True)
        if JSON.value:
            files.write_json(JSON.value, rows)
        if (rows[-1]["difference"] or 0.0) > _TOLERANCE:
            failed.append(name)
    if failed:
        raise InputError(f"{', '.join(failed)} failed or gave another result than TensorFlow on a CPU; see above.")


def row(job: dict, measured: dict, theirs: list[float] | None, peaks: dict[str, float]) -> dict:
    """A result row, with what it reaches besides its time; `peaks` (by precision) learns from the matmuls."""
    seconds, peer = statistics.median(measured["seconds"]), None if theirs is None else statistics.median(theirs)
    reached = job["flop"] / seconds
    if job["kind"] == "matmul":
        peaks[job["precision"]] = reached
    peak = peaks.get("float32" if job["precision"] == "float32" else "bfloat16")
    memory, expected = measured["peak_bytes"], job.get("expected")
    size = f"{job['height']}x{job['width']}"
    return {
        "name": " ".join(filter(None, (job["kind"], job["backbone"], job["precision"], size, f"batch {job['batch']}"))),
        "ours": round(1000 * seconds, 3),
        "peer": "torchvision",
        "peer_value": None if peer is None else round(1000 * peer, 3),
        "unit": "ms",
        "ratio": None if peer is None else round(seconds / peer, 3),
        "limit": None,
        "images_per_second": None if job["kind"] == "matmul" else round(job["batch"] / seconds, 1),
        "tflops": round(reached / 1e12, 3),
        "share_of_matmul": None if peak is None else round(reached / peak, 3),
        "peak_mib": None if memory is None else round(memory / 2**20, 1),
        "compile_seconds": round(measured["compile_seconds"], 1),
        "result": measured["result"],
        "difference": None if expected is None else abs(measured["result"] - expected) / abs(expected),
    }


if __name__ == "__main__":
    run(main, __doc__, tensorflow=False)
