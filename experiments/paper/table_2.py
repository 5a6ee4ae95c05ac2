"""Table 2: RetinaNet beside the detectors of its time, COCO test-dev, 800 px.

    python -m experiments.paper.table_2 --scale=paper --data=… --validation=… --init_weights='imagenet/{backbone}'

About 45 (ResNet-101) and 75 hours (ResNeXt-101-32x8d) on 8 GPUs. The paper: AP 39.1 and 40.8 on test-dev, with scale
jitter and a schedule 1.5 times as long, which together give +1.3 AP. Its jitter's range isn't printed: 640 to 800 px is
taken (Detectron's models of the paper). test-dev's numbers come from the evaluation server: `retinanet evaluate
--submission=NAME --output=FOLDER` writes what it wants; on minival expect about as much. The other detectors' rows
stand in the table with the paper's numbers alone.
"""

from experiments.paper import study
from retinanet_tf.cli.main import run

OTHERS = {
    "Faster R-CNN+++, R101-C4": (34.9, 55.7, 37.4, 15.6, 38.7, 50.9),
    "Faster R-CNN w FPN, R101-FPN": (36.2, 59.1, 39.0, 18.2, 39.0, 48.2),
    "Faster R-CNN by G-RMI, Inception-ResNet-v2": (34.7, 55.5, 36.7, 13.5, 38.1, 52.0),
    "Faster R-CNN w TDM, Inception-ResNet-v2-TDM": (36.8, 57.7, 39.2, 16.2, 39.8, 52.1),
    "YOLOv2, DarkNet-19": (21.6, 44.0, 19.2, 5.0, 22.4, 35.5),
    "SSD513, R101-SSD": (31.2, 50.4, 33.3, 10.2, 34.5, 49.8),
    "DSSD513, R101-DSSD": (33.2, 53.3, 35.2, 13.0, 35.4, 51.1),
}
"""The paper's rows of other detectors: AP, AP50, AP75, S, M, L on test-dev."""

STUDY = study.Study(
    "table_2",
    "Table 2: against the field",
    (
        study.Row("RetinaNet, ResNet-101-FPN", {"backbone": "resnet101"}, (39.1, 59.1, 42.3, 21.8, 42.7, 50.2)),
        study.Row(
            "RetinaNet, ResNeXt-101-32x8d-FPN",
            {"backbone": "resnext101_32x8d", "stride_in": "3x3"},
            (40.8, 61.1, 44.1, 24.1, 44.2, 51.2),
        ),
    ),
    paper_base={
        "image_size": 800,
        "max_size": 1333,
        "scale_jitter": (0.8, 1.0),
        "steps": 135_000,
        "decay_steps": (90_000, 120_000),
    },
    small_rows=(study.Row("RetinaNet, the miniature's network", {}),),
    others=OTHERS,
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
