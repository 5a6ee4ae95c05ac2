"""Table 1b: focal loss with the best α for each γ, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.table_1b --scale=paper --data=… --validation=… --init_weights=…

About 10 hours per row on 8 GPUs. The paper: AP 31.1 at γ = 0, 34.0 at γ = 2, 32.2 at γ = 5.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

AP = {
    (0.0, 0.75): (31.1, 49.4, 33.0),
    (0.1, 0.75): (31.4, 49.9, 33.1),
    (0.2, 0.75): (31.9, 50.7, 33.4),
    (0.5, 0.50): (32.9, 51.7, 35.2),
    (1.0, 0.25): (33.7, 52.0, 36.2),
    (2.0, 0.25): (34.0, 52.5, 36.5),
    (5.0, 0.25): (32.2, 49.6, 34.8),
}
STUDY = study.Study(
    "table_1b",
    "Table 1b: focal loss",
    tuple(
        study.Row(f"γ = {gamma:g}, α = {alpha:g}", {"gamma": gamma, "alpha": alpha}, paper)
        for (gamma, alpha), paper in AP.items()
    ),
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
