"""§5.1, hinge: a loss on p_t that is zero above a threshold, beside focal loss, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.hinge --scale=paper --data=… --validation=… --init_weights=…

About 10 hours per row on 8 GPUs. The paper: training is unstable and gives no meaningful result; it names no threshold,
so three are tried. Focal loss: AP 34.0.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

STUDY = study.Study(
    "hinge",
    "§5.1: hinge loss on p_t",
    (
        study.Row("focal loss", {}, (34.0, 52.5, 36.5)),
        *(
            study.Row(
                f"hinge, zero above {threshold:g}",
                {"classification": "hinge", "hinge_threshold": threshold, "alpha": 0.5},
            )
            for threshold in (0.5, 0.7, 0.9)
        ),
    ),
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
