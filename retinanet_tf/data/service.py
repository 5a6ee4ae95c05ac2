"""tf.data service: other processes or machines decode and augment, the trainer receives finished batches."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf
from absl import logging

from retinanet_tf.errors import InputError, first_line

WAIT_SECONDS = 60.0
ANSWER_SECONDS = 10.0
_CLIENTS_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = b"\4"
"""The type of the frame that a gRPC server begins with (RFC 9113, 3.4 and 6.5)."""


def start_dispatcher(port: int = 0) -> tf.data.experimental.service.DispatchServer:
    """Starts the dispatcher, one per job; `.target` is its address, grpc://HOST:PORT. InputError for a used port."""
    with _listening(port):
        return tf.data.experimental.service.DispatchServer(tf.data.experimental.service.DispatcherConfig(port=port))


def start_worker(
    dispatcher: str, port: int = 0, address: str | None = None
) -> tf.data.experimental.service.WorkerServer:
    """Starts a worker of the dispatcher at grpc://HOST:PORT; it needs to see the shards under the trainer's path.

    address: HOST:PORT under which the trainer reaches this worker, by default localhost. InputError for a used port.
    """
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=_without_protocol(dispatcher), worker_address=address, port=port
    )
    with _listening(port):
        return tf.data.experimental.service.WorkerServer(config)


@contextmanager
def _listening(port: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, tf.errors.OpError) as error:
        raise InputError(
            f"port={port} can't be listened on ({first_line(error)}): another process may have it; choose another one."
        ) from None


def distributed(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """The dataset as computed by the workers of the dispatcher at `address`.

    Steps are handed out in blocks, so no two workers make the same batch; their order is not deterministic.
    """
    _wait_for_dispatcher(address)
    sharding = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    try:
        return dataset.apply(tf.data.experimental.service.distribute(processing_mode=sharding, service=address))
    except tf.errors.OpError as error:
        raise InputError(
            f"data_service={address}: what answers there is no dispatcher of this version ({first_line(error)}); give "
            "the address that `retinanet data-service` without --dispatcher prints."
        ) from None


def _wait_for_dispatcher(address: str) -> None:
    """Waits WAIT_SECONDS for a dispatcher that may be starting; TensorFlow would wait for ever, without a word."""
    host, _, port = _without_protocol(address).rpartition(":")
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return _greet(host, int(port))
        except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
            if isinstance(error, UnicodeError) or time.monotonic() >= deadline:
                raise InputError(
                    f"data_service={address}: no dispatcher answers there ({error}); `retinanet data-service` starts "
                    "one."
                ) from None
            logging.log_first_n(logging.WARNING, "waiting for the dispatcher at %s (%s).", 1, address, error)
        time.sleep(1.0)


def _greet(host: str, port: int) -> None:
    """Raises OSError unless a gRPC server answers within ANSWER_SECONDS; a stopped one accepts and is silent."""
    with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
        connection.sendall(_CLIENTS_PREFACE)
        if connection.recv(9)[3:4] != _SETTINGS:
            raise ConnectionError("it is no gRPC server")


def _without_protocol(address: str) -> str:
    protocol, _, rest = address.partition("://")
    if protocol != "grpc" or not rest.rpartition(":")[2].isdecimal():
        raise InputError(f"the dispatcher {address} must look like grpc://HOST:PORT.")
    return rest
