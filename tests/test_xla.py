"""What is compiled with XLA: accelerators, not CPUs, unless the caller says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small_jobs import TINY

import retinanet_tf as rn
from retinanet_tf.training.callbacks import Progress
from retinanet_tf.training.job import Job
from retinanet_tf.training.strategies import Worker
from retinanet_tf.training.validation import Validation
from retinanet_tf.xla import resolve_jit_compile

ROOT = Path(__file__).resolve().parents[1]
LABELS = rn.data.LabelMap(range(5), "abcde")


@pytest.fixture(scope="module")
def model():
    return rn.RetinaNet.from_config(TINY)


@pytest.fixture
def pretended(monkeypatch):
    """A machine that has an accelerator, as far as TensorFlow's lists of devices say."""

    def pretend(kind):
        devices = [tf.config.PhysicalDevice("/physical_device:CPU:0", "CPU")]
        devices.append(tf.config.PhysicalDevice(f"/physical_device:{kind}:0", kind))
        monkeypatch.setattr(
            tf.config, "get_visible_devices", lambda of=None: [d for d in devices if of in (None, d[1])]
        )

    return pretend


@pytest.mark.parametrize(("kind", "expected"), [("GPU", True), ("TPU", True), ("CPU", False)])
def test_auto_is_for_accelerators_and_the_caller_decides(pretended, model, kind, expected):
    pretended(kind)
    assert resolve_jit_compile() is resolve_jit_compile(None) is resolve_jit_compile("auto") is expected
    assert resolve_jit_compile(True) is resolve_jit_compile("true") is True
    assert resolve_jit_compile(False) is resolve_jit_compile("false") is False
    for jit_compile in ("auto", True, False):
        wanted = expected if jit_compile == "auto" else jit_compile
        assert rn.Detector(model, LABELS, jit_compile=jit_compile).jit_compile is wanted


@pytest.mark.once
def test_deterministic_operations_are_not_compiled_by_default():
    program = """
import tensorflow as tf
from retinanet_tf.xla import resolve_jit_compile
tf.config.get_visible_devices = lambda: [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
tf.random.set_seed(1)
before = resolve_jit_compile()
tf.config.experimental.enable_op_determinism()
print(before, resolve_jit_compile(), resolve_jit_compile(True))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False", "True"]


@pytest.mark.parametrize("value", ["yes", "True", 2, "xla"])
def test_other_values_are_refused(value):
    with pytest.raises(rn.InputError, match="jit_compile=.* must be True, False or 'auto'"):
        resolve_jit_compile(value)


def test_a_step_that_runs_eagerly_is_not_compiled_by_default(pretended):
    pretended("GPU")
    model = rn.RetinaNet.from_config(TINY)
    model.compile("sgd", rn.retinanet_losses(), run_eagerly=True)
    assert model.run_eagerly and model.xla_scope == "nothing"
    model.compile("sgd", rn.retinanet_losses())
    assert not model.run_eagerly and model.xla_scope == "step"


@pytest.mark.slow
def test_a_model_of_two_devices_with_batch_norm_detects(two_devices):
    """While a job trains, for one: compiled where each device has all of the statistics."""
    with two_devices.scope():
        model = rn.RetinaNet.from_config(TINY.replace(norm="batch", subnet_norm="batch"))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain, compiled = (rn.Detector(model, LABELS, jit_compile=jit_compile)([image]) for jit_compile in (False, True))
    np.testing.assert_array_equal(compiled["num_detections"], plain["num_detections"])
    np.testing.assert_allclose(compiled["scores"], plain["scores"], atol=1e-5)


@pytest.mark.parametrize(("xla", "expected"), [("auto", True), ("true", True), ("false", False)])
def test_a_jobs_word_reaches_its_evaluation(pretended, model, tmp_path, xla, expected):
    pretended("GPU")
    progress = Progress(6, 0, 4, lambda step: 0.1)
    job = Job(TINY.replace(xla=xla), {}, tf.distribute.get_strategy(), Worker(), LABELS, None)
    validation = Validation(job, model, tmp_path, progress)
    assert validation.detector.jit_compile is expected


@pytest.mark.once
def test_a_compiled_step_is_compiled_once_for_each_canvas(tmp_path):
    """Two canvases and lengths of targets up to 8, over two epochs: XLA writes down what it compiles."""
    program = """
import os, sys
import keras, numpy as np, tensorflow as tf
import retinanet_tf as rn
from tests.small_detectors import TINY_NETWORK

def batches():
    for number, length in enumerate((3, 5, 8, 1)):
        height, width = ((32, 64), (64, 32))[number % 2]
        boxes = np.tile(np.float32([4, 4, 20, 20]), (2, length, 1))
        yield np.full((2, height, width, 3), 9, np.float32), {"boxes": boxes, "labels": np.zeros((2, length), np.int32)}

class Count(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        counts.append(sum(name.endswith("before_optimizations.txt") for name in os.listdir(sys.argv[1])))

spec = {"boxes": tf.TensorSpec((2, None, 4)), "labels": tf.TensorSpec((2, None), tf.int32)}
data = tf.data.Dataset.from_generator(batches, output_signature=(tf.TensorSpec((2, None, None, 3)), spec))
model, counts = rn.RetinaNet(num_classes=2, **TINY_NETWORK), []
model.compile("sgd", rn.retinanet_losses(), jit_compile=True)
model.fit(data, epochs=2, verbose=0, callbacks=[Count()])
print(*counts)
"""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, *others = map(int, run.stdout.split())
    assert 0 < first < second and others == [second] * 6
