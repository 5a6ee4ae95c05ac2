"""Table 1a: α-balanced cross entropy (γ = 0) for seven α, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.table_1a --scale=paper --data=… --validation=… --init_weights=…

About 10 hours per row on 8 GPUs. The paper: AP 0.0 at α = 0.10, 31.1 at the best α = 0.75, 25.1 at 0.999.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

AP = {
    0.10: (0.0, 0.0, 0.0),
    0.25: (10.8, 16.0, 11.7),
    0.50: (30.2, 46.7, 32.8),
    0.75: (31.1, 49.4, 33.0),
    0.90: (30.8, 49.7, 32.3),
    0.99: (28.7, 47.4, 29.9),
    0.999: (25.1, 41.7, 26.1),
}
STUDY = study.Study(
    "table_1a",
    "Table 1a: α-balanced cross entropy",
    tuple(study.Row(f"α = {alpha:g}", {"alpha": alpha}, paper) for alpha, paper in AP.items()),
    base={"gamma": 0.0},
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
