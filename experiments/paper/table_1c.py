"""Table 1c: numbers of anchor scales and aspect ratios, ResNet-50-FPN, 600 px, COCO minival.

    python -m experiments.paper.table_1c --scale=paper --data=… --validation=… --init_weights=…

k scales are the k-th roots of an octave, 2^(i/k); one ratio is the square. About 10 hours per row on 8 GPUs. The paper:
AP 30.3 with one square anchor, 34.2 with 2 × 3, 34.0 with 3 × 3, 33.8 with 4 × 3.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

AP = {
    (1, 1): (30.3, 49.0, 31.8),
    (2, 1): (31.9, 50.0, 34.0),
    (3, 1): (31.8, 49.4, 33.7),
    (1, 3): (32.4, 52.3, 33.9),
    (2, 3): (34.2, 53.1, 36.5),
    (3, 3): (34.0, 52.5, 36.5),
    (4, 3): (33.8, 52.1, 36.2),
}
RATIOS = {1: (1.0,), 3: (0.5, 1.0, 2.0)}
STUDY = study.Study(
    "table_1c",
    "Table 1c: anchors",
    tuple(
        study.Row(
            f"{scales} scales × {ratios} ratios",
            {"anchor_scales": tuple(2 ** (i / scales) for i in range(scales)), "anchor_ratios": RATIOS[ratios]},
            paper,
        )
        for (scales, ratios), paper in AP.items()
    ),
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
