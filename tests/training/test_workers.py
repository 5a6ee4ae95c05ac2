"""Several workers and devices, as far as one process goes: where a worker is, who may resume, one sum of gradients."""

import json
import subprocess
import sys
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_jobs import TINY

import retinanet_tf as rn
from retinanet_tf.models.train_step import Step
from retinanet_tf.training import run_directory, strategies
from retinanet_tf.training.strategies import gathered, make_strategy, slurm_cluster, worker_of

LABELS = rn.data.LabelMap([1], ["a"])


def test_slurms_ranks_need_not_follow_the_names_of_the_hosts(monkeypatch):
    """Rank 0 runs on n2; sorted by name, n10 comes first. All workers name one list, each its own place in it."""
    places = {}
    for rank, host in enumerate(("n2", "n10")):
        variables = {"JOB_ID": 7_042, "PROCID": rank, "LOCALID": 0, "STEP_NUM_TASKS": 2}
        variables |= {"STEP_NODELIST": "n[2,10]", "STEP_TASKS_PER_NODE": "1(x2)"}
        for name, value in variables.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        monkeypatch.setenv("SLURMD_NODENAME", host)
        resolver = slurm_cluster()
        addresses = resolver.cluster_spec().job_tasks("worker")
        assert sorted(addresses) == ["n10:20420", "n2:20420"]
        places[addresses[resolver.task_id]] = host
    assert places == {"n2:20420": "n2", "n10:20420": "n10"}


class Waiting:
    """In place of the strategy, which waits for the other workers."""

    def __init__(self, resolver):
        self.cluster_resolver = resolver


@pytest.mark.parametrize(
    ("cluster", "kind", "place"),
    [
        ({"chief": ["a:1"]}, "chief", (0, 1)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "worker", (2, 3)),
        ({"worker": ["a:1", "b:1"]}, "worker", (1, 2)),
    ],
)
def test_the_place_of_a_worker(monkeypatch, cluster, kind, place):
    """The chief comes before the workers, and may be alone, as Kubeflow's TFJob of one replica has it."""
    task = {"type": kind, "index": len(cluster[kind]) - 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Waiting)
    worker = worker_of(make_strategy("multi_worker"))
    assert (worker.index, worker.count) == place


TWO = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    "value, found",
    [
        ("", "there are none"),
        ("{}", "'{}' is not that"),
        ("worker 0", "'worker 0' is not that"),
        (json.dumps({"cluster": TWO, "task": {"type": "worker", "index": 2}}), "No task with index 2"),
        (json.dumps({"cluster": TWO, "task": {"type": "ps", "index": 0}}), "chief or worker, not ps"),
        (
            json.dumps({"cluster": {**TWO, "ps": ["c:1"]}, "task": {"type": "worker", "index": 0}}),
            "tasks of the kind ps, which nobody starts",
        ),
    ],
)
def test_a_wrong_cluster_is_a_sentence(monkeypatch, value, found):
    monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(rn.InputError, match="needs the machines in the environment variable TF_CONFIG") as error:
        make_strategy("multi_worker")
    assert found in str(error.value)


def start(run_dir, workers, **changes):
    resumed = run_directory.start(run_dir, TINY.replace(**changes), LABELS, data="d", validation="", workers=workers)
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    (run_dir / "checkpoints/step-1.index").touch()
    return resumed


def test_another_number_of_workers_is_said_or_refused(tmp_path, capsys):
    """Batches by records are the same; by files they aren't."""
    assert not start(tmp_path / "records", 2) and start(tmp_path / "records", 2)
    assert not capsys.readouterr().out
    assert start(tmp_path / "records", 4)
    assert "begun by 2 worker(s), continued by 4 with the same batches" in capsys.readouterr().out
    assert start(tmp_path / "records", 4) and not capsys.readouterr().out
    start(tmp_path / "files", 2, shard_by="files")
    with pytest.raises(rn.InputError, match=r"a job of 2 worker\(s\) with shard_by=files"):
        start(tmp_path / "files", 1, shard_by="files")


@pytest.mark.parametrize("is_written", [True, False])
def test_a_worker_that_ends_first_is_no_loss_once_all_is_written(monkeypatch, two_devices, is_written):
    def lose(*_):
        raise tf.errors.UnavailableError(None, None, "Socket closed")

    monkeypatch.setattr(strategies, "gathered", lose)
    with nullcontext() if is_written else pytest.raises(tf.errors.UnavailableError):
        strategies.leave_together(two_devices, lambda: is_written)


TWO_JOBS = """
import tensorflow as tf
from retinanet_tf.training.strategies import make_strategy
for size in (3, 5):
    strategy = make_strategy("mirrored", devices=2)
    def ones():
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.ones([size]))
    for value in strategy.experimental_local_results(tf.function(lambda: strategy.run(ones))()):
        assert value.numpy().tolist() == [2.0] * size
"""


@pytest.mark.slow
def test_a_second_job_of_a_process_may_have_other_shapes():
    """TensorFlow wants one shape for each key of a collective, and every strategy counts them anew."""
    subprocess.run([sys.executable, "-c", TWO_JOBS], check=True)


def test_one_worker_agrees_with_itself(two_devices):
    assert gathered(two_devices, [3, 5]) == [(3, 5)]


X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32) * np.array([[5.0]] * 4 + [[0.1]] * 4, np.float32)
Y = X[:, ::-1].copy()


class Regression(keras.Sequential):
    """As much of RetinaNet as `Step` needs."""

    compiles_replicas = False

    def assign(self, images, y):
        return y

    def compute_loss(self, x=None, y=None, y_pred=None, **_):
        return tf.reduce_mean((y_pred - y) ** 2) / self.distribute_strategy.num_replicas_in_sync


def weights_after(strategy, optimizer, step, x, steps=1):
    """The kernel before and after `steps` on (x, Y), and the optimizer."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = Regression([keras.Input((3,)), keras.layers.Dense(3, use_bias=False)])
        model.compile(optimizer(), "mse")
        model.optimizer.build(model.trainable_variables)
        model.reset_metrics()
    before = np.array(model.get_weights()[0])
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices((x, Y)).batch(8).repeat())
    run = tf.function(lambda batch: strategy.run(lambda x, y: step(model, x, y), args=batch), autograph=False)
    for _, batch in zip(range(steps), batches, strict=False):
        run(batch)
    return before, np.array(model.get_weights()[0]), model.optimizer


@pytest.fixture
def strategy(request, two_devices):
    return two_devices if request.param == 2 else tf.distribute.OneDeviceStrategy("/CPU:0")


@pytest.mark.parametrize("strategy", [1, 2], indirect=True)
def test_the_whole_batchs_gradient_is_clipped(strategy):
    """Against the gradient by hand; the two halves' gradients have other norms than their sum."""
    before, after, _ = weights_after(strategy, lambda: keras.optimizers.SGD(0.1), Step(clip_norm=0.5), X)
    gradient = 2.0 * X.T @ (X @ before - Y) / Y.size
    norm = np.linalg.norm(gradient)
    assert norm > 1.0
    np.testing.assert_allclose(after, before - 0.1 * gradient * 0.5 / norm, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", [1, 2], indirect=True)
def test_an_overflow_on_one_device_skips_the_step_on_all(strategy):
    """The first device's half overflows, the second's doesn't."""
    kind = getattr(keras.optimizers, "LossScaleOptimizer", None) or keras.mixed_precision.LossScaleOptimizer
    x = X.copy()
    x[0] = 1e30
    before, after, optimizer = weights_after(strategy, lambda: kind(keras.optimizers.SGD(0.1)), Step(), x, steps=2)
    np.testing.assert_array_equal(after, before)
    scale = optimizer.dynamic_scale if hasattr(optimizer, "step_counter") else optimizer.loss_scale
    assert float(tf.convert_to_tensor(scale)) == 2.0**15 / 4
