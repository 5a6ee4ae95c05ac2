"""The losses of Tables 1a, 1b, 1d and 3, each at several learning rates, so that none loses by its rate.

    python -m experiments.paper.losses --scale=mini --seeds=0
    python -m experiments.paper.losses --scale=mini --rows=… --seeds=1,2     (the rows that decide)

Not in the paper, which has one rate for all. OHEM's loss is the mean over its minibatch, where the others divide by the
positives, some ten times fewer: another divisor is another rate, so mining is tried at larger ones. Cross entropy is
steep where it begins (experiments.paper.curvature), so it is tried with a prior near its minimum too.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

MINED = {"classification": "cross_entropy", "alpha": 0.5, "mining_nms": 0.5}
LOSSES: dict[str, tuple[dict, tuple[float, ...]]] = {
    "CE, α = .25": ({"gamma": 0.0, "alpha": 0.25}, (0.0025, 0.005, 0.01)),
    "CE, α = .5": ({"gamma": 0.0, "alpha": 0.5}, (0.0025, 0.005, 0.01)),
    "CE, α = .75": ({"gamma": 0.0, "alpha": 0.75}, (0.005, 0.01, 0.02)),
    "CE, α = .25, π = .0001": ({"gamma": 0.0, "alpha": 0.25, "prior": 1e-4}, (0.04, 0.08, 0.16)),
    "CE, α = .5, π = .0001": ({"gamma": 0.0, "alpha": 0.5, "prior": 1e-4}, (0.01, 0.02, 0.04, 0.08)),
    "CE, α = .75, π = .0001": ({"gamma": 0.0, "alpha": 0.75, "prior": 1e-4}, (0.01, 0.02, 0.04)),
    "FL, γ = .5, α = .5": ({"gamma": 0.5, "alpha": 0.5}, (0.01, 0.02, 0.04, 0.08)),
    "FL, γ = 1, α = .25": ({"gamma": 1.0}, (0.02, 0.04, 0.08, 0.16)),
    "FL, γ = 2, α = .25": ({}, (0.01, 0.02, 0.04, 0.08)),
    "FL, γ = 5, α = .25": ({"gamma": 5.0}, (0.005, 0.01, 0.02, 0.04)),
    "FL*, γ = 2, β = 1": ({"classification": "focal_star", "star_beta": 1.0}, (0.04, 0.08, 0.16)),
    "FL*, γ = 4, β = 0": ({"classification": "focal_star", "gamma": 4.0, "star_beta": 0.0}, (0.005, 0.01, 0.02, 0.04)),
    "OHEM, batch 128": ({"mining": "ohem", "mining_examples": 128, **MINED}, (0.01, 0.16, 0.64)),
    "OHEM, batch 512": ({"mining": "ohem", "mining_examples": 512, **MINED}, (0.16, 0.64, 1.28, 2.56)),
    "OHEM, batch 2048": ({"mining": "ohem", "mining_examples": 2048, **MINED}, (0.16, 0.64)),
    "OHEM 1:3, batch 128": ({"mining": "ohem_1_3", "mining_examples": 128, **MINED}, (0.01, 0.04, 0.16, 0.64)),
    "OHEM 1:3, batch 512": ({"mining": "ohem_1_3", "mining_examples": 512, **MINED}, (0.16, 0.64)),
}
"""Settings of each loss, and learning rates around the best one; OHEM's are further apart, as none is good."""
STUDY = study.Study(
    "losses",
    "The losses, each at several learning rates",
    tuple(
        study.Row(f"{label}, rate {rate:g}", {**changes, "learning_rate": rate})
        for label, (changes, rates) in LOSSES.items()
        for rate in rates
    ),
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
