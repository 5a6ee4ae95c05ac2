"""The accelerator bench on a small network: what it exports is complete, static, and gives the same loss elsewhere."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from experiments.bench import accelerator, accelerator_jobs, run_hlo
from experiments.bench.accelerator_jobs import Job
from retinanet_tf.compat import tensorflow_variables
from retinanet_tf.config.presets import presets
from retinanet_tf.training.train import compile_model
from tests.small_detectors import TINY_NETWORK


def job(kind, precision="float32"):
    config = presets["detectron"].replace(
        num_classes=3, image_size=64, max_size=64, batch_size=2, precision=precision, **TINY_NETWORK
    )
    return Job(kind, kind, config, 64, 64)


KINDS = [pytest.param(kind, marks=pytest.mark.once) for kind in ("train", "detect")]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hlo")
    accelerator_jobs.export(job(request.param), folder)
    return folder, run_hlo.read_jobs(folder)[request.param]


def test_the_description_is_complete(exported):
    """Every parameter has the values that its shape and dtype ask for; every alias replaces one of the same kind."""
    folder, description = exported
    assert (folder / f"{description['name']}.hlo.pb").stat().st_size > 10_000
    for index, parameter in enumerate(description["parameters"]):
        array = run_hlo.values(parameter, index)
        assert list(array.shape) == parameter["shape"] and array.dtype.name == parameter["dtype"]
        assert np.isfinite(array).all()
    for output, parameter in description["aliases"]:
        replaced = description["parameters"][parameter]
        assert description["outputs"][output] == {"shape": replaced["shape"], "dtype": replaced["dtype"]}
    assert np.isfinite(description["expected"]) and description["expected"] > 0


def test_a_step_replaces_what_it_trains(exported):
    """Kernels of the frozen stem and stage 2 stay, their momenta don't exist; a detector replaces nothing."""
    _, description = exported
    parameters = description["parameters"]
    replaced = [parameters[parameter] for _, parameter in description["aliases"]]
    if description["kind"] != "train":
        assert not replaced
        return
    kernels = [parameter for parameter in replaced if len(parameter["shape"]) == 4]
    kept = [parameter for parameter in parameters[3:] if len(parameter["shape"]) == 4 and parameter not in replaced]
    assert len(kernels) % 2 == 0 and len(kept) == 3  # the stem's and two of stage 2
    assert any(parameter["dtype"] == "int64" and not parameter["shape"] for parameter in replaced)


@pytest.mark.once
def test_no_dynamic_dimension_and_no_call_of_the_host():
    program = accelerator_jobs.build(job("detect", "bfloat16"))
    text = program.function.experimental_get_compiler_ir(*program.signature)(stage="hlo")
    assert "<=" not in text
    assert not [word for word in ("infeed", "outfeed", "send(", "custom-call", "dynamic-dimension") if word in text]


@pytest.mark.once
def test_the_step_is_that_of_fit():
    """A call leaves the loss and the weights that a step of `fit` leaves, from the same weights on the same batch."""
    small = job("train")
    program = accelerator_jobs.build(small)
    start = [run_hlo.values(parameter, index) for index, parameter in enumerate(program.parameters)]
    loss = float(program.function(*map(tf.constant, start[:3])))
    traced = program.function.get_concrete_function(*program.signature)
    by_handle = {id(variable.handle): variable for variable in traced.graph.variables}
    stepped = [by_handle[id(captured)] for captured in traced.captured_inputs]
    names = list(map(key, stepped))
    before, after = dict(zip(names, start[3:], strict=True)), dict(zip(names, stepped, strict=True))

    model = compile_model(small.config)
    weights = tensorflow_variables(model.weights)
    for variable in weights:
        variable.assign(before[key(variable)])
    history = model.fit(start[0], {"boxes": start[1], "labels": start[2]}, batch_size=2, verbose=0).history
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)
    for variable in weights:
        np.testing.assert_allclose(variable.numpy(), after[key(variable)].numpy(), rtol=1e-4, atol=1e-6)
    assert sum((variable.numpy() != before[key(variable)]).any() for variable in weights) > 20


def key(variable):
    """Keras 2's names are unique with the shape only."""
    return variable.name, tuple(variable.shape)


def test_values_are_those_of_their_descriptions():
    def made(dtype, shape, **value):
        return run_hlo.values({"name": "x", "shape": shape, "dtype": dtype, "value": value}, 5)

    assert (made("int64", [], constant=7) == 7).all()
    assert made("float32", [2, 2], constant=[8.0, 9.0]).tolist() == [[8, 9], [8, 9]]
    normal = made("float32", [50, 50], normal=0.1)
    assert abs(normal.std() - 0.1) < 0.01 and (normal == made("float32", [50, 50], normal=0.1)).all()
    boxes = made("float32", [4, 6, 4], boxes=[100, 200])
    assert (boxes[..., 2:] > boxes[..., :2]).all() and (boxes >= 0).all()
    assert (boxes[..., [1, 3]] <= 100).all() and (boxes[..., [0, 2]] <= 200).all()
    labels = made("int32", [4, 6], labels=3)
    assert (labels[:, 3:] == -1).all() and (labels[:, :3] >= 0).all() and (labels < 3).all()
    assert made("bfloat16", [3], normal=1.0).dtype.name == "bfloat16"


def test_headers_are_read():
    line = (
        "HloModule f.1, input_output_alias={ {1}: (2, {}, may-alias), {2}: (0, {}, may-alias) }, "
        "entry_computation_layout={(f32[2,3]{1,0}, bf16[4]{0}, /*index=2*/s64[])->(f32[], s64[], f32[2,3]{1,0})}"
    )
    inputs, outputs, aliases = accelerator_jobs.read_header(line)
    assert inputs == [
        {"shape": [2, 3], "dtype": "float32"},
        {"shape": [4], "dtype": "bfloat16"},
        {"shape": [], "dtype": "int64"},
    ]
    assert [output["shape"] for output in outputs] == [[], [], [2, 3]] and aliases == [[1, 2], [2, 0]]


def test_a_row_divides():
    """2 TFLOP in half a second, where a matmul of 8 TFLOP takes one: 4 of 8 TFLOP/s, half of the peak."""
    matmul = {"kind": "matmul", "backbone": "", "precision": "bfloat16", "batch": 1, "height": 9, "width": 9}
    step = {**matmul, "kind": "train", "backbone": "resnet50", "batch": 16, "flop": 2e12, "expected": 2.0}
    measured = {"seconds": [0.5, 0.4, 9.0], "compile_seconds": 3.0, "peak_bytes": 2**20, "result": 2.01}
    peaks: dict = {}
    first = accelerator.row({**matmul, "flop": 8e12}, {**measured, "seconds": [1.0]}, None, peaks)
    row = accelerator.row(step, measured, [2.0, 1.0, 3.0], peaks)
    assert first["tflops"] == 8 and first["ratio"] is None
    assert (row["ours"], row["peer_value"], row["ratio"], row["images_per_second"]) == (500, 2000, 0.25, 32)
    assert (row["tflops"], row["share_of_matmul"], row["peak_mib"]) == (4, 0.5, 1)
    assert row["difference"] == pytest.approx(0.005)


def test_jobs_have_names():
    assert {"matmul_float32", "train_bfloat16_b16", "detect_float16_b1", "mlperf_train_bfloat16_b32"} <= set(
        accelerator_jobs.JOBS
    )
    mlperf = accelerator_jobs.JOBS["mlperf_train_bfloat16_b32"]
    assert mlperf.config.model.backbone == "resnext50_32x4d" and mlperf.config.model.num_classes == 264


def test_measuring_here_gives_what_the_export_expects(exported):
    _, description = exported
    described, measured = accelerator_jobs.measure(job(description["kind"]), rounds=2)
    assert measured["result"] == pytest.approx(description["expected"], rel=1e-5) and len(measured["seconds"]) == 2
    assert described["flop"] == description["flop"] > 0


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX isn't installed")
def test_jax_computes_the_same(exported):
    folder, description = exported
    measured = run_hlo.measure(folder, description, rounds=1)
    assert measured["result"] == pytest.approx(description["expected"], rel=1e-4)


@pytest.mark.once
def test_running_imports_no_tensorflow():
    code = (
        "import sys; from experiments.bench import accelerator, run_hlo\n"
        "assert not {'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
