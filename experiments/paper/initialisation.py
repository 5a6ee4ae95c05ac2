"""§5.1: training with plain cross entropy diverges without the prior π in the class layer's bias.

    python -m experiments.paper.initialisation --scale=paper --data=… --validation=… --init_weights=…

About 10 hours per row on 8 GPUs. The paper: AP 30.2 with π = 0.01; without (all probabilities begin at .5) it diverges.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

STUDY = study.Study(
    "initialisation",
    "§5.1: the prior",
    (
        study.Row("π = .01", {"prior": 0.01}, (30.2,)),
        study.Row("π = .5 (none)", {"prior": 0.5}),
    ),
    base={"gamma": 0.0, "alpha": 0.5},
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
