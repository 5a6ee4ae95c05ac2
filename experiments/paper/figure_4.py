"""Figure 4: the cumulative distribution of the normalised loss over positives and negatives at γ = 0, 0.5, 1, 2.

    python -m experiments.paper.figure_4 --scale=paper --validation=…

Needs the model of Table 1d's row "focal loss" (ResNet-101-FPN, 600 px), which the script takes from --runs; at the
other scales the base of the study. The paper, with 10^5 positives and 10^7 negatives: the hardest fifth of the
positives has about half of their loss at γ = 0 and little more with larger γ; the hardest negatives have nearly all of
theirs at γ = 2. `retinanet diagnose` does the same with any trained model.
"""

from pathlib import Path

from experiments.paper import miniature, study, table_1d
from retinanet_tf.cli.main import run
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.loss_distribution import FIGURE_4_GAMMAS, diagnose
from retinanet_tf.inference import checkpoint


def main() -> None:
    """Finds the model and draws."""
    scale = study.SCALE.value
    row = next(row for row in table_1d.STUDY.rows if row.label == "focal loss")
    seed, *_ = study.numbers("seeds", study.SEEDS.value) or [0]
    config = study.resolve(table_1d.STUDY, row, scale, seed)
    run_dir = Path(study.RUNS.value) / scale / study.job_name(config, scale)
    if not (run_dir / checkpoint.WEIGHTS).exists():
        raise InputError(
            f"{run_dir} has no trained model; run experiments.paper.table_1d --scale={scale} "
            f"--rows={table_1d.STUDY.rows.index(row)} first."
        )
    data = study.VALIDATION.value
    if scale == "mini":
        pictures = Path(study.RUNS.value) / "miniature"
        miniature.make(pictures, set())
        data = miniature.places(pictures)["validation"]
    if not data:
        raise InputError(f"--scale={scale} needs --validation, a pattern of prepared shards.")
    output = Path(study.OUTPUT.value) / scale
    diagnose(run_dir, data, output, FIGURE_4_GAMMAS, name="figure_4")


if __name__ == "__main__":
    run(main)
