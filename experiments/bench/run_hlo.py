"""Runs what `accelerator --export_hlo` wrote with JAX's XLA client; imports no TensorFlow.

A module's parameters are described in the JSON beside it and are made here from seeds, so that a network of 150 MB
travels as its graph alone.
"""

import io
import json
import time
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (registers bfloat16 with NumPy; TensorFlow and JAX have it)
import numpy as np

from experiments.bench.timing import in_turns


def values(parameter: dict[str, Any], index: int) -> np.ndarray:
    """The array of the parameter with this index in its module.

    `parameter["value"]` has one entry: "constant" (broadcast), "normal" (deviation), "uniform" (limits), "boxes"
    (height and width of the canvas) or "labels" (number of classes; the second half of an image's rows is padding, −1).
    """
    shape, ((kind, how),) = parameter["shape"], parameter["value"].items()
    rng = np.random.RandomState(index)  # the generator whose numbers no version of NumPy changes
    if kind == "constant":
        array = np.broadcast_to(how, shape)
    elif kind == "normal":
        array = how * rng.standard_normal(shape)
    elif kind == "uniform":
        array = rng.uniform(*how, shape)
    elif kind == "boxes":
        corner, sides = rng.uniform(0, 0.6, (*shape[:2], 2)), rng.uniform(0.05, 0.39, (*shape[:2], 2))
        array = np.concatenate([corner, corner + sides], axis=2) * [how[1], how[0], how[1], how[0]]
    else:
        array = np.where(np.arange(shape[1]) < shape[1] // 2, rng.randint(how, size=shape), -1)
    return array.astype(parameter["dtype"])


def read_jobs(folder: Path) -> dict[str, dict]:
    """The descriptions in a folder by name, matmuls first."""
    jobs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {job["name"]: job for job in sorted(jobs, key=lambda job: job["kind"] != "matmul")}


def device_name() -> str:
    """The device that JAX uses."""
    import jax

    return jax.devices()[0].device_kind


def measure(folder: Path, job: dict, rounds: int) -> dict[str, Any]:
    """Compiles and times one exported job on JAX's first device.

    Outputs that replace variables are the next call's parameters.

    Returns:
        {"seconds": of each call after the warm-up, "compile_seconds", "peak_bytes": what the executable needs by XLA's
        own analysis, "result": mean of the absolute values of the first call's first output}.
    """
    import jax
    from jaxlib import xla_client

    jax.config.update("jax_enable_x64", True)  # for the optimizer's int64 step
    device = jax.devices()[0]
    module = _stablehlo((folder / f"{job['name']}.hlo.pb").read_bytes())
    start = time.perf_counter()
    executable = device.client.compile_and_load(module, xla_client.DeviceList((device,)), xla_client.CompileOptions())
    compile_seconds = time.perf_counter() - start
    buffers = [jax.device_put(values(parameter, index), device) for index, parameter in enumerate(job["parameters"])]

    def call() -> list:
        outputs = jax.block_until_ready(executable.execute(buffers))
        for output, parameter in job["aliases"]:
            buffers[parameter] = outputs[output]
        return outputs

    result = float(np.abs(np.asarray(call()[0], np.float64)).mean())
    call()
    seconds = in_turns({"ours": call}, rounds)["ours"]
    memory = executable.get_compiled_memory_stats()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += memory.temp_size_in_bytes
    return {"seconds": seconds, "compile_seconds": compile_seconds, "peak_bytes": peak, "result": result}


def _stablehlo(serialized: bytes) -> bytes:
    """A serialized HLO module as JAX takes it, without its copies from layout to layout, which XLA refuses on GPUs."""
    from jax.extend.mlir import hlo_to_stablehlo
    from jax.interpreters.mlir import make_ir_context
    from jaxlib.mlir import ir

    context = make_ir_context()
    context.allow_unregistered_dialects = True
    with context:
        module = ir.Module.parse(hlo_to_stablehlo(serialized))
        copies: list = []

        def visit(operation: Any) -> Any:
            if operation.name == "mhlo.copy":
                copies.append(operation)
            return ir.WalkResult.ADVANCE

        module.operation.walk(visit)
        for copy in copies:
            copy.results[0].replace_all_uses_with(copy.operands[0])
            copy.erase()
        file = io.BytesIO()
        module.operation.write_bytecode(file)
        return file.getvalue()
