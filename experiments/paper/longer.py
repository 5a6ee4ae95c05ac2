"""Cross entropy and focal loss on a longer schedule, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.longer --scale=paper --data=… --validation=… --init_weights=…

Not in the paper: whether Table 1b's order depends on how long is trained. A well-classified example's focal loss is
small from the beginning, so it starts more slowly. About 30 hours per row on 8 GPUs. The miniature's rows have the rate
that was best for each loss at its usual schedule (experiments.paper.losses).
"""

from experiments.paper import study
from retinanet_tf.cli.main import run
from retinanet_tf.errors import InputError

LOSSES = {"CE, α = .75": {"gamma": 0.0, "alpha": 0.75}, "FL, γ = 2": {}}
MINI_LOSSES = {
    "CE, α = .75, rate 0.01": {"gamma": 0.0, "alpha": 0.75},
    "FL, γ = .5, α = .5, rate 0.04": {"gamma": 0.5, "alpha": 0.5, "learning_rate": 0.04},
    "FL, γ = 1, α = .25, rate 0.08": {"gamma": 1.0, "learning_rate": 0.08},
    "FL, γ = 2, α = .25, rate 0.04": {"learning_rate": 0.04},
    "CE, α = .75, π = .0001, rate 0.02": {"gamma": 0.0, "alpha": 0.75, "prior": 1e-4, "learning_rate": 0.02},
}


def rows(losses: dict[str, dict], steps: int, decay_steps: tuple[int, int]) -> tuple[study.Row, ...]:
    """The losses at a schedule."""
    schedule = {"steps": steps, "decay_steps": decay_steps}
    return tuple(study.Row(f"{label}, {steps:,} steps", {**changes, **schedule}) for label, changes in losses.items())


STUDY = study.Study(
    "longer",
    "Table 1b's losses on a longer schedule",
    rows(LOSSES, 270_000, (180_000, 240_000)),
    small_rows=rows(MINI_LOSSES, 12_000, (6_000, 8_000)),
)


def main() -> None:
    """The study, whose small rows have the miniature's rates."""
    if study.SCALE.value == "real":
        raise InputError("--scale=real: the rates of these rows are the miniature's.")
    study.main(STUDY)


if __name__ == "__main__":
    run(main)
