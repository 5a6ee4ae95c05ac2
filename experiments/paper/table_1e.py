"""Table 1e: accuracy and speed by depth and image scale, COCO test-dev.

    python -m experiments.paper.table_1e --scale=paper --data=… --validation=… --init_weights='imagenet/{backbone}'

About 7 (R-50, 400 px) to 30 hours (R-101, 800 px) per row on 8 GPUs. The paper: AP 30.5 in 64 ms (R-50, 400 px) to 37.8
in 198 ms (R-101, 800 px) on an M40. On minival expect about as much. A row's time is that of the whole detector, from
pixels to boxes, one image at a time on this machine; it is taken once, when the table is collected: collect on a quiet
machine. The other scales have two small depths at 192, 256 and 320 px.
"""

import statistics
import time
from pathlib import Path

import numpy as np

from experiments.paper import study
from retinanet_tf.cli.main import run
from retinanet_tf.inference import checkpoint

AP = {
    ("resnet50", 400): (30.5, 47.8, 32.7),
    ("resnet50", 500): (32.5, 50.9, 34.8),
    ("resnet50", 600): (34.3, 53.2, 36.9),
    ("resnet50", 700): (35.1, 54.2, 37.7),
    ("resnet50", 800): (35.7, 55.0, 38.5),
    ("resnet101", 400): (31.9, 49.5, 34.1),
    ("resnet101", 500): (34.4, 53.1, 36.8),
    ("resnet101", 600): (36.0, 55.2, 38.7),
    ("resnet101", 700): (37.1, 56.6, 39.8),
    ("resnet101", 800): (37.8, 57.5, 40.8),
}
MILLISECONDS = dict(zip(AP, (64, 72, 98, 121, 153, 81, 90, 122, 154, 198), strict=True))
"""The paper's times on an Nvidia M40."""


def milliseconds(run_dir: Path, repetitions: int = 30) -> dict[str, float]:
    """{"ms_an_image": median time of a finished job's detector, one square picture of its size at a time}."""
    detector = checkpoint.load_detector(run_dir)
    side = detector.image_size
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    times = []
    for _ in range(repetitions + 3):
        start = time.perf_counter()
        detector([picture])
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms_an_image": round(statistics.median(times[3:]), 2)}


def row(backbone: str, size: int, paper: tuple[float, ...] = ()) -> study.Row:
    """One depth at one scale; the longer side goes to 1.667 times the shorter."""
    longer = round(size * 5 / 3) if paper else size
    return study.Row(f"{backbone}, {size} px", {"backbone": backbone, "image_size": size, "max_size": longer}, paper)


STUDY = study.Study(
    "table_1e",
    "Table 1e: speed and accuracy",
    tuple(row(backbone, size, paper) for (backbone, size), paper in AP.items()),
    small_rows=tuple(row(backbone, size) for backbone in ("resnet10_w16", "resnet14_w24") for size in (192, 256, 320)),
    measure=milliseconds,
)

if __name__ == "__main__":
    run(lambda: study.main(STUDY))
