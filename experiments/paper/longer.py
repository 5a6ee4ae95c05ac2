"""Cross entropy and focal loss on a longer schedule, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.longer --scale=paper --data=… --validation=… --init_weights=…

Not in the paper: whether Table 1b's order depends on how long is trained. A well-classified example's focal loss is
small from the beginning, so it starts more slowly. About 30 hours per row on 8 GPUs.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

LOSSES = {"CE, α = .75": {"gamma": 0.0, "alpha": 0.75}, "FL, γ = 2": {}}


def rows(steps: int, decay_steps: tuple[int, int]) -> tuple[study.Row, ...]:
    """Both losses at a schedule."""
    schedule = {"steps": steps, "decay_steps": decay_steps}
    return tuple(study.Row(f"{label}, {steps:,} steps", {**changes, **schedule}) for label, changes in LOSSES.items())


STUDY = study.Study(
    "longer",
    "Table 1b's losses on a longer schedule",
    rows(270_000, (180_000, 240_000)),
    small_rows=rows(12_000, (6_000, 8_000)),
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
