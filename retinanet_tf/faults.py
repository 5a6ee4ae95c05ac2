"""What a job leaves behind when its loss is no number: the batch, its image ids, and what usually causes it."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from retinanet_tf.data.files import written_aside

CAUSES = (
    "usually the learning rate is too high for the batch (lower --learning_rate, lengthen --warmup_steps, set "
    "--clip_norm), the class loss begins without the prior, or a box is wrong (experiments.inspect_data)"
)


def report(run_dir: Path, step: int, batch: tuple[tf.Tensor, dict[str, tf.Tensor]], ids: list[str], kept: int) -> str:
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
