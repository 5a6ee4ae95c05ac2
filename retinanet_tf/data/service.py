"""tf.data service: other processes or machines decode and augment, the trainer receives finished batches."""

import socket

import tensorflow as tf

from retinanet_tf.errors import InputError


def start_dispatcher(port: int = 0) -> tf.data.experimental.service.DispatchServer:
    """Starts the dispatcher, one per job; `.target` is its address, grpc://HOST:PORT."""
    return tf.data.experimental.service.DispatchServer(
        tf.data.experimental.service.DispatcherConfig(port=port, protocol="grpc")
    )


def start_worker(
    dispatcher: str, port: int = 0, address: str | None = None
) -> tf.data.experimental.service.WorkerServer:
    """Starts a worker of the dispatcher at grpc://HOST:PORT; it needs to see the shards under the trainer's path.

    address: HOST:PORT under which the trainer reaches this worker, by default localhost.
    """
    return tf.data.experimental.service.WorkerServer(
        tf.data.experimental.service.WorkerConfig(
            dispatcher_address=_without_protocol(dispatcher), worker_address=address, port=port, protocol="grpc"
        )
    )


def distributed(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """The dataset as computed by the workers of the dispatcher at `address`.

    Steps are handed out in blocks, so no two workers make the same batch; their order is not deterministic.
    """
    host, _, port = _without_protocol(address).rpartition(":")
    try:  # TensorFlow would wait without a word
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"data_service={address}: no dispatcher answers there ({error}); `retinanet data-service` starts one."
        ) from None
    return dataset.apply(
        tf.data.experimental.service.distribute(
            processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC, service=address
        )
    )


def _without_protocol(address: str) -> str:
    protocol, _, rest = address.partition("://")
    if protocol != "grpc" or ":" not in rest:
        raise InputError(f"the dispatcher {address} must look like grpc://HOST:PORT.")
    return rest
