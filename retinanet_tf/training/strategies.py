"""Distribution strategies: one device, a machine, several machines, a TPU; and each worker's part of the data."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable

import tensorflow as tf

from retinanet_tf.compat import KERAS_3
from retinanet_tf.errors import InputError


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
        name: 'mirrored', 'one_device', 'multi_worker' (TF_CONFIG names the machines) or 'tpu'.
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
    return tf.distribute.MirroredStrategy(_first_devices(devices) if devices else None)


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
    if KERAS_3:
        raise InputError(
            "strategy=multi_worker needs Keras 2: Keras 3's model.fit doesn't support MultiWorkerMirroredStrategy "
            "(keras issue 20585); use Python 3.10 or 3.11, whose requirements bring TensorFlow 2.15 and Keras 2."
        )
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        _ = config["cluster"], config["task"]["type"], config["task"]["index"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "strategy=multi_worker needs the machines in the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
            f"; {'it is not set' if not text else f'{text!r} is not that ({error!r})'}."
        ) from None
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=os.environ.get("TPU_NAME", ""))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"strategy=tpu finds no TPU ({reason}); set TPU_NAME (local on a TPU VM).") from None
    return tf.distribute.TPUStrategy(resolver)


def worker_of(strategy: tf.distribute.Strategy) -> Worker:
    """This process among the job's processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Worker()
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec()
    chiefs = cluster.num_tasks("chief") if "chief" in cluster.jobs else 0
    index = resolver.task_id if resolver.task_type == "chief" else chiefs + resolver.task_id
    return Worker(index, chiefs + cluster.num_tasks("worker"))


def distribute(
    strategy: tf.distribute.Strategy, load: Callable[[tuple[int, int]], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """The dataset for `model.fit`, from `load((worker, workers))`, which returns a worker's part of each batch."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return load((0, 1))

    def load_part(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = load((context.input_pipeline_id, context.num_input_pipelines))
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        if replicas == 1:
            return dataset
        images, _ = dataset.element_spec
        return dataset.rebatch(images.shape[0] // replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(load_part)
