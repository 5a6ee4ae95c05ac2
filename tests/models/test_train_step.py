"""Gradient accumulation, the biases' rate and averaged weights, each against the plain step it is made of."""

import pathlib
import subprocess
import sys
from functools import lru_cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.config.config import AnchorConfig
from retinanet_tf.models.ema import WeightAverage
from retinanet_tf.models.train_step import Step

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (8, 64, 64, 3)).astype(np.float32)
BOXES = np.tile(np.array([[4.0, 8, 36, 40], [20, 20, 60, 52]], np.float32), (8, 1, 1))
# The first half of the batch has most of the objects: parts with unequal counts.
LABELS = np.where(np.arange(2) < np.array([2, 2, 1, 2, 0, 0, 1, 0])[:, None], [0, 2], -1).astype(np.int32)


@lru_cache
def plain_weights():
    """`weights_after` without anything beyond Keras' step, which several tests compare with; no model."""
    return weights_after()[:4]


@lru_cache
def plain_trail():
    """Trainable weights before three plain steps, and after each of them."""
    trail = []

    def record(model):
        keep = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: trail.append([np.array(w) for w in model.trainable_variables])
        )
        fit = model.fit
        model.fit = lambda *args, **kwargs: fit(*args, callbacks=[keep], **kwargs)

    before = weights_after(record, rate=0.01, steps=3)[1]
    assert len(trail) == 3
    return before, trail


def weights_after(step=None, strategy=None, rate=1.0, steps=1, jit_compile=False, order=range(8), **model_changes):
    """Names and trainable weights after `steps` of SGD on one batch, and what they were before."""
    keras.utils.set_random_seed(0)
    images, boxes, labels = (values[list(order)] for values in (IMAGES, BOXES, LABELS))
    data = tf.data.Dataset.from_tensors((images, {"boxes": boxes, "labels": labels})).repeat()
    data = data.map(lambda x, y: (tf.ensure_shape(x, IMAGES.shape), y))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    arguments = {
        "num_classes": 3,
        **TINY_NETWORK,
        "freeze_stages": 0,
        "anchors": AnchorConfig(max_level=5),
        "normalizer": "global",
        **model_changes,
    }
    with (strategy or tf.distribute.get_strategy()).scope():
        model = rn.RetinaNet(**arguments)
        model.compile(optimizer=keras.optimizers.SGD(rate), loss=rn.retinanet_losses(), jit_compile=jit_compile)
        model.step = (step(model) if callable(step) and not isinstance(step, Step) else step) or Step()
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.05, w.shape) if w.ndim == 4 else w for w in model.get_weights()])
    before = [np.array(w) for w in model.trainable_variables]
    history = model.fit(data.with_options(options), epochs=1, steps_per_epoch=steps, verbose=0).history
    after = [np.array(w) for w in model.trainable_variables]
    names = [getattr(v, "path", v.name).split(":")[0] for v in model.trainable_variables]
    return names, before, after, {name: values[-1] for name, values in history.items()}, model


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch():
    """8 images at once, and in 4 parts of 2: the same step to 1e-5, the same losses in the logs."""
    _, before, whole, logs = plain_weights()
    _, _, parts, logs_of_parts, _ = weights_after(Step(accumulation=4))
    largest = max(np.abs(new - old).max() for new, old in zip(whole, before, strict=True))
    assert largest > 1e-3
    for ours, theirs in zip(parts, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)
    assert logs.keys() == logs_of_parts.keys()
    for name, value in logs.items():
        assert logs_of_parts[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
def test_accumulation_on_two_devices(two_devices):
    """Each device cuts its half; the global normaliser still counts all 8 images."""
    _, before, whole, logs = plain_weights()
    _, _, parts, logs_of_parts, model = weights_after(Step(accumulation=2), two_devices)
    assert model.xla_scope == "nothing"
    largest = max(np.abs(new - old).max() for new, old in zip(whole, before, strict=True))
    for ours, theirs in zip(parts, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)
    assert logs_of_parts["loss"] == pytest.approx(logs["loss"], rel=1e-5)


@pytest.mark.slow
def test_batch_norm_of_a_part_has_the_images_of_both_devices(two_devices):
    """Two devices in two parts: the step, and the means kept, of one device with the images in that order.

    (On one device Keras 2 keeps variances with divisor N - 1.)
    """
    step, order = Step(accumulation=2), (0, 1, 4, 5, 2, 3, 6, 7)
    _, before, alone, logs, model = weights_after(step, order=order, subnet_norm="batch")
    _, _, both, logs_of_both, on_two = weights_after(step, two_devices, subnet_norm="batch")
    assert_same_step(before, alone, both, share=1e-4)
    assert logs_of_both == pytest.approx(logs, rel=1e-5)
    kept = [[np.array(w) for w in one.non_trainable_variables if "moving_mean" in w.name] for one in (model, on_two)]
    assert kept[0] and len(kept[0]) == len(kept[1])
    for ours, one in zip(*kept, strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_biases_learn_twice_as_fast_and_nothing_else_does():
    """Authors' code: one SGD step moves biases by twice as much, kernels by as much as before."""
    names, before, plain, _ = plain_weights()
    _, _, doubled, _, _ = weights_after(Step(bias_lr_factor=2.0))
    kinds = set()
    for name, old, once, twice in zip(names, before, plain, doubled, strict=True):
        factor = 2.0 if name.endswith("bias") else 1.0
        kinds.add(factor)
        np.testing.assert_allclose(twice - old, factor * (once - old), rtol=1e-4, atol=1e-6, err_msg=name)
    assert kinds == {1.0, 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_average_is_the_one_written_by_hand(devices, two_devices):
    """Three steps of a ← a + (1 − d)(w − a), d = min(decay, (1 + t)/(10 + t)), from the same steps without it."""
    expected, trail = plain_trail()
    for t, weights in enumerate(trail):
        kept = min(0.15, (1 + t) / (10 + t))
        expected = [a + (1 - kept) * (w - a) for a, w in zip(expected, weights, strict=True)]

    made = []

    def with_average(model):
        made.append(WeightAverage(model.weights, 0.15))
        return Step(average=made[0])

    def restarted(model):
        step = with_average(model)
        assign = model.set_weights
        model.set_weights = lambda values: (assign(values), step.average.restart())
        return step

    strategy = two_devices if devices == 2 else None
    _, _, after, _, model = weights_after(restarted, strategy, rate=0.01, steps=3)
    average = made[0]
    with average.swapped():
        averaged = [np.array(w) for w in model.trainable_variables]
    for ours, theirs in zip(averaged, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    for restored, last in zip(model.trainable_variables, after, strict=True):
        np.testing.assert_array_equal(np.array(restored), last)


@pytest.mark.slow
def test_a_batch_that_accumulation_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="accumulation=3 must divide the 8 images per device"):
        weights_after(Step(accumulation=3))


@pytest.mark.slow
@pytest.mark.parametrize("step", [Step(), Step(accumulation=2)])
def test_a_data_sets_sample_weights_reach_every_step(step):
    """Images of weight 0 teach nothing: the decay alone is left."""
    model = rn.RetinaNet(num_classes=3, **TINY_NETWORK)
    model.compile(keras.optimizers.SGD(0.01), loss=rn.retinanet_losses())
    model.step = step
    weights = np.zeros(8, np.float32)
    data = tf.data.Dataset.from_tensors((IMAGES, {"boxes": BOXES, "labels": LABELS}, weights))
    history = model.fit(data, verbose=0).history
    assert history["class_logits_loss"] == [0.0] and history["box_deltas_loss"] == [0.0] and history["loss"][0] > 0


def assert_same_step(before, plain, compiled, share=1e-5):
    """The weights after a step from `before` are equal to a share of the largest change."""
    largest = max(np.abs(new - old).max() for new, old in zip(plain, before, strict=True))
    assert largest > 1e-3
    for ours, theirs in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=share * largest)


@pytest.mark.slow
def test_each_replicas_part_is_compiled(two_devices):
    """Two devices in two parts, compiled: the weights and logs of the plain step."""
    _, before, plain, plain_logs = plain_weights()
    _, _, compiled, compiled_logs, model = weights_after(Step(accumulation=2), two_devices, jit_compile=True)
    assert model.xla_scope == "replica"
    assert_same_step(before, plain, compiled)
    assert compiled_logs == pytest.approx(plain_logs, rel=1e-4)


ON_FOUR_DEVICES = """
import pytest, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
from test_train_step import Step, assert_same_step, weights_after
reduced = tf.distribute.ReductionToOneDevice()
four = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(4)], cross_device_ops=reduced)
step = Step(bias_lr_factor=2.0)
_, before, plain, plain_logs, _ = weights_after(step)
_, _, compiled, compiled_logs, model = weights_after(step, four, jit_compile=True)
assert model.xla_scope == "replica"
assert_same_step(before, plain, compiled)
assert compiled_logs == pytest.approx(plain_logs, rel=1e-4)
"""


@pytest.mark.slow
def test_four_compiled_devices_compute_what_one_does():
    """In a process of its own, since the others have two devices."""
    folder = pathlib.Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(folder), str(folder.parent)]}\n{ON_FOUR_DEVICES}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder.parents[1],
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"norm": "batch"}, {"subnet_norm": "batch"}, {"mining": "ohem", "normalizer": "global"}]
)
def test_what_devices_exchange_within_a_part_is_not_compiled(two_devices, changes):
    with two_devices.scope():
        model = rn.RetinaNet(num_classes=3, **{**TINY_NETWORK, **changes})
        model.compile("sgd", loss=rn.retinanet_losses(), jit_compile=True)
    assert model.xla_scope == "nothing" and not model.jit_compile
