"""What ends a job in the middle, as a sentence: a loss that is no number, too little memory, a lost worker."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import Config
from retinanet_tf.errors import InputError
from retinanet_tf.files import written_aside
from retinanet_tf.training.callbacks import NonFiniteLoss
from retinanet_tf.training.strategies import Worker

Batch = tuple[tf.Tensor, dict[str, tf.Tensor]]

CAUSES = (
    "usually the learning rate is too high for the batch (lower --learning_rate, lengthen --warmup_steps, set "
    "--clip_norm), the class loss begins without the prior, or a box is wrong (experiments.inspect_data)"
)


@contextmanager
def explained(
    config: Config,
    run_dir: Path,
    worker: Worker,
    newest: Callable[[], int],
    batch_of: Callable[[int], tuple[Batch, list[str]]],
) -> Iterator[None]:
    """Turns what can go wrong in `fit` into an InputError.

    Args:
      config: the job's.
      run_dir: gets the batch of a step whose loss is no number.
      worker: this process.
      newest: the step of the newest checkpoint, 0 for none.
      batch_of: the batch of a step, counted from 0, and the ids of its images.
    """
    try:
        yield
    except NonFiniteLoss as error:
        if not worker.is_chief:
            raise InputError(f"{error}; the chief worker has the details.") from None
        if config.data.data_service:
            raise InputError(
                f"{error}, and --data_service makes the batches in an order of its own, so its images aren't known; "
                f"causes: {CAUSES}."
            ) from None
        raise InputError(report(run_dir, error.step, *batch_of(error.step), newest())) from None
    except tf.errors.ResourceExhaustedError as error:
        raise InputError(
            f"the devices' memory is too small for a step of {config.data.batch_size} images of "
            f"{config.model.image_size} px ({error.message.splitlines()[0]}); lower --batch_size, or keep it and "
            "compute it in parts with --accumulation (--precision=bfloat16 and a smaller --image_size help too)."
        ) from None
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError) as e:
        if worker.count == 1:
            raise
        raise InputError(
            f"worker {worker.index} of {worker.count} lost the others ({str(e).splitlines()[0]}); start all workers "
            f"again with the same commands: they go on from step {newest()}."
        ) from None


def report(run_dir: Path, step: int, batch: Batch, ids: list[str], kept: int) -> str:
    """Saves the batch of a bad step as `nonfinite_step_N.npz` and says in one sentence what happened.

    Args:
      run_dir: gets the file: images, boxes, labels, image_ids as the pipeline made them.
      step: counted from 0.
      batch: of that step.
      ids: of its images.
      kept: step of the newest checkpoint, 0 for none.
    """
    images, objects = batch
    path = Path(run_dir) / f"nonfinite_step_{step}.npz"
    with written_aside(path) as aside, open(aside, "wb") as file:
        np.savez(file, images=images, image_ids=np.array(ids), **objects)
    state = f"the state of step {kept} is kept in {run_dir / 'checkpoints'}" if kept else "no state was saved before it"
    return (
        f"the loss of step {step} became NaN or infinite, with the images {', '.join(ids)} (saved in {path}); {state}. "
        f"Causes: {CAUSES}; then start in another run_dir."
    )
