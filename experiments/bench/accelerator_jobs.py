"""The jobs of `accelerator` as functions compiled by XLA: the product's own step, network and detector."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from experiments.bench.run_hlo import values
from experiments.bench.timing import hardware, in_turns, stack
from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.config.presets import presets
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.network import variables
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.models.summary import flop
from retinanet_tf.training.train import compile_model

_OBJECTS = 16  # rows of an image's targets, half of them padding
_MATMUL = 8192
_CHECKED_PIXELS = 2 * 800 * 1344  # what a CPU computes in a minute
_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "s32": "int32", "s64": "int64", "pred": "bool"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One function; `kind` is 'train', 'network', 'detect' or 'matmul'. Batch and precision are the configuration's."""

    name: str
    kind: str
    config: Config
    height: int
    width: int


def _jobs() -> Iterator[Job]:
    base = presets["detectron"].replace(image_size=800, max_size=1333)
    mlperf = base.replace(backbone="resnext50_32x4d", num_classes=264, max_size=800)
    for precision in ("bfloat16", "float32"):
        yield Job(f"matmul_{precision}", "matmul", base.replace(precision=precision), _MATMUL, _MATMUL)
    for name, config, width, batches in (("", base, 1344, (1, 2, 16)), ("mlperf_", mlperf, 800, (32,))):
        for kind in ("train", "network", "detect"):
            for precision in ("bfloat16", "float16", "float32"):
                for batch in batches:
                    job = config.replace(precision=precision, batch_size=batch)
                    yield Job(f"{name}{kind}_{precision}_b{batch}", kind, job, 800, width)


JOBS = {job.name: job for job in _jobs()}
"""Matmuls first."""


class Program(NamedTuple):
    """A function compiled by XLA: of tensors, and of variables, which have the values that `parameters` describe."""

    function: Any
    signature: list[tf.TensorSpec]
    parameters: list[dict]  # of `signature`, then of the variables: {"name", "shape", "dtype", "value"}
    flop: float  # of the convolutions, or of the matmul


def build(job: Job) -> Program:
    """Builds and traces a job's function: the step of `compile` and `fit`, or what `Detector` compiles."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    config, batch, canvas = job.config, job.config.data.batch_size, [job.height, job.width]
    inputs = [_parameter("images", [batch, *canvas, 3], "float32", uniform=[0, 255])]
    if job.kind == "matmul":
        inputs = [_parameter(name, canvas, config.train.precision, normal=1.0) for name in "ab"]
        flop = 2.0 * job.height * job.width**2

        def function(a, b):
            return tf.matmul(a, b)
    elif job.kind == "train":
        model = compile_model(config)
        flop = _flop(model, job)
        inputs.append(_parameter("boxes", [batch, _OBJECTS, 4], "float32", boxes=canvas))
        inputs.append(_parameter("labels", [batch, _OBJECTS], "int32", labels=config.model.num_classes))

        def function(images, boxes, labels):
            return model.train_step((images, {"boxes": boxes, "labels": labels}))["loss"]
    else:
        with precision_policy(config.train.precision):
            model = RetinaNet.from_config(config)
        flop = _flop(model, job)
        detector = Detector(model, config=config.detect, jit_compile=True)

        def function(images, *sizes):
            if not sizes:
                return detector.levels(images, training=False)
            found = detector.detect_canvases(images, *sizes)
            return [found[name] for name in ("scores", "boxes", "labels", "num_detections")]

        if job.kind == "detect":
            # All scores are above the threshold: the most that post-processing can have to do.
            bias = variables(model)["class_subnet/predictor/bias"]
            bias.assign(tf.zeros(bias.shape))
            inputs.append(_parameter("scales", [batch, 2], "float32", constant=1.0))
            inputs.append(_parameter("sizes", [batch, 2], "float32", constant=canvas))
    return _traced(function, inputs, flop)


def _traced(function: Callable, inputs: list[dict], flop: float) -> Program:
    """The compiled function; variables without one constant value get seeded ones of the same deviation."""
    signature = [tf.TensorSpec(parameter["shape"], parameter["dtype"]) for parameter in inputs]
    compiled = tf.function(function, jit_compile=True, autograph=False)
    traced = compiled.get_concrete_function(*signature)
    by_handle = {id(variable.handle): variable for variable in traced.graph.variables}
    parameters = list(inputs)
    for captured in traced.captured_inputs:  # variables only: their order is that of the module's parameters
        variable = by_handle[id(captured)]
        value = variable.numpy()
        how = {"constant": value.flat[0].item()} if np.ptp(value) == 0 else {"normal": float(value.std())}
        parameters.append(_parameter(variable.name, value.shape, value.dtype.name, **how))
        variable.assign(values(parameters[-1], len(parameters) - 1))
    return Program(compiled, signature, parameters, flop)


def _parameter(name: str, shape: Sequence[int], dtype: str, **value: Any) -> dict:
    return {"name": name, "shape": list(shape), "dtype": dtype, "value": value}


def _flop(model: RetinaNet, job: Job) -> float:
    return job.config.data.batch_size * flop(model, job.height, job.width, training=job.kind == "train")


def describe(job: Job) -> dict[str, Any]:
    """What a result and an exported module say of their job."""
    matmul = job.kind == "matmul"
    return {
        "name": job.name,
        "kind": job.kind,
        "backbone": "" if matmul else job.config.model.backbone,
        "precision": job.config.train.precision,
        "batch": 1 if matmul else job.config.data.batch_size,
        "height": job.height,
        "width": job.width,
        "stack": stack(),
    }


def export(job: Job, folder: Path) -> None:
    """Writes a job's HLO module, NAME.hlo.pb, and what running it takes, NAME.json.

    NAME.json: `describe`, the fields of `Program`, "outputs" (shapes and dtypes), "aliases" ([output, parameter] of the
    variables that the step replaces) and "expected", the mean of the absolute values of the first output on this
    machine: for a step its loss. It is None for jobs that take a CPU long and those of half precision.
    """
    program = build(job)
    ir = program.function.experimental_get_compiler_ir(*program.signature)
    inputs, outputs, aliases = read_header(ir(stage="hlo").split("\n", 1)[0])
    described = [{"shape": parameter["shape"], "dtype": parameter["dtype"]} for parameter in program.parameters]
    if inputs != described:
        raise RuntimeError(f"{job.name}: the module's parameters aren't the function's inputs and variables in order.")
    pixels = job.config.data.batch_size * job.height * job.width
    checked = job.kind != "matmul" and job.config.train.precision == "float32" and pixels <= _CHECKED_PIXELS
    description = {
        **describe(job),
        "flop": program.flop,
        "parameters": program.parameters,
        "outputs": outputs,
        "aliases": aliases,
        "expected": _first_output(_call(program)()) if checked else None,
    }
    with files.written_aside(folder / f"{job.name}.hlo.pb") as aside:
        Path(aside).write_bytes(ir(stage="hlo_serialized"))
    files.write_json(folder / f"{job.name}.json", description)


def read_header(line: str) -> tuple[list[dict], list[dict], list[list[int]]]:
    """Parameters and outputs ({"shape", "dtype"}) and aliases of an HLO module, from the first line of its text."""
    layout = re.search(r"entry_computation_layout=\{\((.*)\)->(.*)\}", line)
    assert layout, "every module has one"
    inputs, outputs = (
        [
            {"shape": [int(side) for side in sides.split(",") if side], "dtype": _DTYPES[name]}
            for name, sides in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", part)
        ]
        for part in layout.groups()
    )
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", line)
    return inputs, outputs, [[int(output), int(parameter)] for output, parameter in aliases]


def measure(job: Job, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times a job with TensorFlow on its first device.

    Returns:
        `describe` with "flop", and the measurements of `run_hlo.measure`; "peak_bytes" is that of the GPU.
    """
    program = build(job)
    gpu = bool(tf.config.list_physical_devices("GPU"))
    if gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    call = _call(program)
    start = time.perf_counter()
    result = _first_output(call())
    compile_seconds = time.perf_counter() - start
    call()
    seconds = in_turns({"ours": call}, rounds)["ours"]
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpu else None
    measured = {"seconds": seconds, "compile_seconds": compile_seconds, "peak_bytes": peak, "result": result}
    return {**describe(job), "flop": program.flop}, measured


def device_name() -> str:
    """The device that TensorFlow uses."""
    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else hardware()


def _call(program: Program) -> Callable[[], Any]:
    arguments = [tf.constant(values(program.parameters[index], index)) for index in range(len(program.signature))]

    def call():
        outputs = program.function(*arguments)
        tf.test.experimental.sync_devices()
        return outputs

    return call


def _first_output(outputs: Any) -> float:
    first = tf.nest.flatten(outputs)[0]
    return float(np.abs(first.numpy().astype(np.float64)).mean())
