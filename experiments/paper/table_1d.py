"""Table 1d: online hard example mining against focal loss, ResNet-101-FPN, 600 px, COCO minival.

    python -m experiments.paper.table_1d --scale=paper --data=… --validation=… --init_weights=…

Mining goes with cross entropy; α isn't given and both kinds count alike here. About 14 hours per row on 8 GPUs. The
paper: AP 32.8 with the best OHEM (128 anchors, NMS at .5), 31.1 with OHEM 1:3, 36.0 with focal loss.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

AP = {
    ("ohem", 128, 0.7): (31.1, 47.2, 33.2),
    ("ohem", 256, 0.7): (31.8, 48.8, 33.9),
    ("ohem", 512, 0.7): (30.6, 47.0, 32.6),
    ("ohem", 128, 0.5): (32.8, 50.3, 35.1),
    ("ohem", 256, 0.5): (31.0, 47.4, 33.0),
    ("ohem", 512, 0.5): (27.6, 42.0, 29.2),
    ("ohem_1_3", 128, 0.5): (31.1, 47.2, 33.2),
    ("ohem_1_3", 256, 0.5): (28.3, 42.4, 30.3),
    ("ohem_1_3", 512, 0.5): (24.0, 35.5, 25.8),
}
NAMES = {"ohem": "OHEM", "ohem_1_3": "OHEM 1:3"}
STUDY = study.Study(
    "table_1d",
    "Table 1d: OHEM and focal loss",
    (
        *(
            study.Row(
                f"{NAMES[mining]}, batch {examples}, NMS {nms:g}",
                {
                    "mining": mining,
                    "mining_examples": examples,
                    "mining_nms": nms,
                    "classification": "cross_entropy",
                    "alpha": 0.5,
                },
                paper,
            )
            for (mining, examples, nms), paper in AP.items()
        ),
        study.Row("focal loss", {}, (36.0, 54.9, 38.7)),
    ),
    paper_base={"backbone": "resnet101"},
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
