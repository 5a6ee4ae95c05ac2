"""Table 3: FL* beside cross entropy and focal loss, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.table_3 --scale=paper --data=… --validation=… --init_weights=…

About 10 hours per row on 8 GPUs. The paper: AP 31.1 (CE), 34.0 (FL), 33.8 and 33.9 (the two FL*).
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

STUDY = study.Study(
    "table_3",
    "Table 3: FL*",
    (
        study.Row("CE, α = .75", {"gamma": 0.0, "alpha": 0.75}, (31.1, 49.4, 33.0)),
        study.Row("FL, γ = 2", {}, (34.0, 52.5, 36.5)),
        study.Row(
            "FL*, γ = 2, β = 1", {"classification": "focal_star", "gamma": 2.0, "star_beta": 1.0}, (33.8, 52.7, 36.3)
        ),
        study.Row(
            "FL*, γ = 4, β = 0", {"classification": "focal_star", "gamma": 4.0, "star_beta": 0.0}, (33.9, 51.8, 36.4)
        ),
    ),
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
