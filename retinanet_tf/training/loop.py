"""The training loop: steps on all replicas of all workers, the losses of the whole batch, and one common last step."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.training.callbacks import LOSSES, Progress, StopRequest
from retinanet_tf.training.strategies import gathered


def run_steps(
    model: RetinaNet,
    batches: Iterable,
    callbacks: Sequence[keras.callbacks.Callback],
    progress: Progress,
    epoch_steps: int,
    stop: StopRequest,
) -> None:
    """Trains from step `progress.step` to `progress.total`, as `model.fit` would; also on several workers with Keras 3.

    Epochs end at the multiples of `epoch_steps` and at the last step. Callbacks get the means of the losses since the
    epoch's beginning, over the batches of all workers. `stop.agreed` becomes true on all workers after the same step.
    `model.stop_training`, set by a callback of any worker, ends the loop on all at the epoch's end.

    Args:
        model: compiled, in the scope of the strategy.
        batches: of `strategies.distribute`.
        callbacks: in their order; `progress` is one of them.
        progress: counts the steps.
        epoch_steps: steps of an epoch.
        stop: the signals that this process receives.
    """
    step, iterator = _step_function(model), iter(batches)
    epochs = -(-progress.total // epoch_steps)
    listed = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=epoch_steps, verbose=0)
    model.stop_training = False
    listed.on_train_begin()
    while progress.step < progress.total and not _is_stopped(model):
        epoch = progress.step // epoch_steps
        count = min((epoch + 1) * epoch_steps, progress.total) - progress.step
        model.reset_metrics()
        listed.on_epoch_begin(epoch)
        logs: dict[str, float] = {}
        for number in range(count):
            listed.on_train_batch_begin(number)
            *losses, stopped = step(iterator, tf.constant(float(stop.signal > 0))).numpy().tolist()
            logs = dict(zip(LOSSES, losses, strict=True))
            stop.agreed = stopped > 0
            listed.on_train_batch_end(number, logs)
        listed.on_epoch_end(epoch, logs)
    listed.on_train_end()


def _is_stopped(model: RetinaNet) -> bool:
    return any(flag for (flag,) in gathered(model.distribute_strategy, [int(model.stop_training)]))


def _step_function(model: RetinaNet) -> Callable[[Any, tf.Tensor], tf.Tensor]:
    """A function of (iterator, whether this worker has a signal) → `(4,)`: the losses, the share of workers with one.

    One reduction over all replicas brings both, so that all workers see a signal after the same step.
    """
    strategy = model.distribute_strategy

    def of_replica(batch: Any, stopping: tf.Tensor) -> tf.Tensor:
        logs = model.train_step(batch)
        return tf.stack([*(tf.cast(logs[name], tf.float32) for name in LOSSES), stopping])

    @tf.function(jit_compile=model.jit_compile, reduce_retracing=True, autograph=False)
    def of_batch(batch: Any, stopping: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("MEAN", strategy.run(of_replica, args=(batch, stopping)), axis=None)

    return tf.function(lambda iterator, stopping: of_batch(next(iterator), stopping), autograph=False)
