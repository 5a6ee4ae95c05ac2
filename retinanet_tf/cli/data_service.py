"""Dispatcher or worker of a tf.data service: other machines decode and augment for the trainer.

    retinanet data-service --port=5050
    retinanet data-service --dispatcher=grpc://HOST:5050 --address=THIS_HOST:5051 --port=5051
    retinanet train … --data_service=grpc://HOST:5050

One dispatcher, any number of workers; each must see the shards under the path that the trainer was given. Runs until it
is interrupted.
"""

import threading

from absl import flags

_DISPATCHER = flags.DEFINE_string("dispatcher", None, "grpc://HOST:PORT to be a worker of; without it this dispatches.")
_PORT = flags.DEFINE_integer("port", 0, "Port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
_ADDRESS = flags.DEFINE_string("address", None, "HOST:PORT under which the trainer reaches this worker.")


def main() -> None:
    """Starts the server and waits."""
    from retinanet_tf.data.service import start_dispatcher, start_worker

    if _DISPATCHER.value:
        server = start_worker(_DISPATCHER.value, _PORT.value, _ADDRESS.value)
        print(f"a worker of {_DISPATCHER.value}", flush=True)
    else:
        server = start_dispatcher(_PORT.value)
        print(f"dispatching at {server.target}", flush=True)
    threading.Event().wait()  # `server.join()` would wait in C++, where Ctrl-C doesn't come through
