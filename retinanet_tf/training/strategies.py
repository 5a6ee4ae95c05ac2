"""Distribution strategies: one device, a machine, several machines, a TPU; and each worker's part of the data."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tf.errors import InputError, first_line

LOST = (
    *(tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError),
    *(tf.errors.DeadlineExceededError, tf.errors.FailedPreconditionError),
)
"""What a collective operation raises when another worker has ended, is out of reach or has started again."""


@dataclasses.dataclass(frozen=True)
class Worker:
    """This process among the `count` processes of the job; worker 0 is the chief, which writes the results."""

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.index == 0


def make_strategy(name: str = "mirrored", devices: int = 0) -> tf.distribute.Strategy:
    """The strategy called `name`; before any other use of TensorFlow for 'multi_worker' and `devices` on CPUs.

    Args:
        name: 'mirrored', 'one_device', 'multi_worker' (TF_CONFIG or Slurm names the machines) or 'tpu'.
        devices: how many 'mirrored' uses, 0 for all. Without a GPU they are logical CPU devices.

    Raises:
        InputError: the machine, the environment or the Keras version doesn't support it.
    """
    if name == "one_device":
        gpus = tf.config.list_logical_devices("GPU")
        return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/CPU:0")
    if name == "multi_worker":
        return _multi_worker()
    if name == "tpu":
        return _tpu()
    return _mirrored(tuple(_first_devices(devices) if devices else ()))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One for all jobs of a process: another one would use the keys of its collectives again, with other shapes."""
    return tf.distribute.MirroredStrategy(devices or None)


def _first_devices(count: int) -> list[str]:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        # Refused once TensorFlow has started; the devices it started with are counted below.
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    kind = "GPU" if gpus else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if len(names) < count:
        raise InputError(f"devices={count} is more than the {len(names)} {kind} device(s) here.")
    return names[:count]


def _multi_worker() -> tf.distribute.Strategy:
    text = os.environ.get("TF_CONFIG", "")
    try:
        resolver = slurm_cluster() if not text and "SLURM_STEP_NODELIST" in os.environ else _tf_config(text)
        address = resolver.cluster_spec().task_address(resolver.task_type, resolver.task_id)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        found = f"TF_CONFIG={text!r} is not that" if text else "there are none"
        raise InputError(
            "strategy=multi_worker needs the machines in the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}, or those '
            f"of Slurm's srun; {found} ({error!r})."
        ) from None
    worker = _place(resolver)
    print(f"worker {worker.index} of {worker.count}, {address}: it starts when all are there.", file=sys.stderr)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (tf.errors.OpError, ValueError) as error:
        raise InputError(
            f"worker {worker.index} of {worker.count} can't start at {address} ({first_line(error)}): another process "
            "may have the port, or the address isn't HOST:PORT of this machine."
        ) from None


def _tf_config(text: str) -> tf.distribute.cluster_resolver.ClusterResolver:
    content = json.loads(text)
    kind = content["task"]["type"]
    if kind not in ("chief", "worker"):
        raise ValueError(f"a task is chief or worker, not {kind}")
    if others := set(content["cluster"]) - {"chief", "worker", "evaluator"}:
        raise ValueError(f"the cluster has tasks of the kind {min(others)}, which nobody starts")
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def slurm_cluster() -> tf.distribute.cluster_resolver.ClusterResolver:
    """The workers of a Slurm step, as TensorFlow's resolver lists them, and this one's place among them.

    The resolver sorts the hosts by name (n10 before n2), which Slurm's ranks don't follow: the place is looked up by
    the address. GPUs are left to Slurm. Ports follow from the job's number, so that jobs of one machine don't meet.

    Raises:
        KeyError, ValueError, RuntimeError: the variables aren't those of a step.
    """
    resolvers, variables = tf.distribute.cluster_resolver, os.environ
    tasks, port = int(variables["SLURM_STEP_NUM_TASKS"]), 20000 + int(variables["SLURM_JOB_ID"]) % 1000 * 10
    slurm = resolvers.SlurmClusterResolver(port_base=port, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)
    cluster = slurm.cluster_spec()
    address = f"{variables['SLURMD_NODENAME']}:{port + int(variables['SLURM_LOCALID'])}"
    return resolvers.SimpleClusterResolver(
        cluster,
        task_type="worker",
        task_id=cluster.job_tasks("worker").index(address),
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=os.environ.get("TPU_NAME", ""))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise InputError(
            f"strategy=tpu finds no TPU ({first_line(error)}); set TPU_NAME (local on a TPU VM)."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def worker_of(strategy: tf.distribute.Strategy) -> Worker:
    """This process among the job's processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Worker()
    return _place(strategy.cluster_resolver)


def _place(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> Worker:
    cluster = resolver.cluster_spec()
    chiefs, workers = (cluster.num_tasks(job) if job in cluster.jobs else 0 for job in ("chief", "worker"))
    index = resolver.task_id if resolver.task_type == "chief" else chiefs + resolver.task_id
    return Worker(index, chiefs + workers)


def gathered(strategy: tf.distribute.Strategy, values: Sequence[int]) -> list[tuple[int, ...]]:
    """The integers that each worker gives, by worker; waits until all workers are here."""
    count = worker_of(strategy).count
    if count == 1:
        return [tuple(values)]
    rows = _gather(strategy, tf.constant([list(values)], tf.int64)).numpy().tolist()
    return [tuple(row) for row in rows[:: len(rows) // count]]


def leave_together(strategy: tf.distribute.Strategy, is_written: Callable[[], bool]) -> None:
    """Waits until all workers are here and the chief has written what it writes before, then lets them end.

    The first to end closes its connections, which may reach another one before the answer it waits for: no error, if
    `is_written`.
    """
    try:
        gathered(strategy, [0])
    except LOST:
        if not is_written():
            raise


@tf.function(autograph=False)
def _gather(strategy: tf.distribute.Strategy, own: tf.Tensor) -> tf.Tensor:
    """The rows `(1, N)` of all replicas of all workers."""
    return strategy.gather(strategy.run(tf.identity, args=(own,)), axis=0)


def distribute(
    strategy: tf.distribute.Strategy, load: Callable[[tuple[int, int]], tf.data.Dataset]
) -> tf.distribute.DistributedDataset:
    """The endless batches for the replicas, from `load((worker, workers))`, which returns a worker's part of each."""

    def load_part(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = load((context.input_pipeline_id, context.num_input_pipelines))
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        if replicas > 1:
            images, _ = dataset.element_spec
            dataset = dataset.rebatch(images.shape[0] // replicas, drop_remainder=True)
        # Said, or the batches' size would be open, and workers would ask each other whether there is another batch.
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    return strategy.distribute_datasets_from_function(load_part)
