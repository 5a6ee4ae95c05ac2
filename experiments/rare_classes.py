"""Repeat-factor sampling and an α for the rare class, with and without, on blood cells made imbalanced.

    python -m experiments.rare_classes --data=FOLDER --output=runs/rare --seeds=0,1,2

FOLDER has images, instances_train.json and instances_val.json of BCCD. Of the 205 training pictures stay the 88 without
platelets and 10 of the 117 with them, a tenth; the 87 validation pictures are as they are. Reduced: 98 pictures, 800
steps of 4 at 240 to 320 pixels, about five minutes a run on two CPU cores. Not in the paper. OUTPUT/rare_classes.json
has AP, AP50 and every class' AP by row and seed, with mean and standard deviation.
"""

import statistics
from pathlib import Path

import numpy as np
from absl import flags

import retinanet_tf as rn
from experiments.blood_cells import REDUCED
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.evaluation.evaluator import analyse
from retinanet_tf.evaluation.source import read_source
from retinanet_tf.inference.checkpoint import load_detector
from retinanet_tf.provenance import provenance

RARE, SHARE = "Platelets", 0.1
_ROWS: dict[str, dict] = {
    "plain": {},
    "repeat_threshold=auto": {"repeat_threshold": "auto"},
    "class_alpha=Platelets=0.5": {"class_alpha": "Platelets=0.5"},
    "both": {"repeat_threshold": "auto", "class_alpha": "Platelets=0.5"},
}

DATA = flags.DEFINE_string("data", None, "BCCD: images, instances_train.json, instances_val.json.", required=True)
OUTPUT = flags.DEFINE_string("output", "runs/rare", "Folder for shards, runs and numbers.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the trainings.")
ROWS = flags.DEFINE_multi_enum("row", list(_ROWS), list(_ROWS), "Rows to train; several times for several.")
STEPS = flags.DEFINE_integer("steps", 800, "Training steps.")


def imbalanced(annotations: rn.data.Annotations, name: str, share: float) -> rn.data.Annotations:
    """All pictures without the category, and as many with it as make `share` of the result, drawn at random."""
    category = annotations.label_map.ids[annotations.label_map.names.index(name)]
    has = np.array([category in image.present for image in annotations.images])
    kept = round((~has).sum() * share / (1 - share))
    chosen = np.random.default_rng(0).choice(np.flatnonzero(has), kept, replace=False)
    images = [image for i, image in enumerate(annotations.images) if not has[i] or i in chosen]
    return rn.data.Annotations(annotations.source, images, annotations.label_map, annotations.warnings)


def main() -> None:
    """Prepares, trains every row with every seed, and writes the numbers so far after each."""
    data, output = Path(DATA.value), Path(OUTPUT.value)
    train = imbalanced(rn.data.read_coco(data / "instances_train.json"), RARE, SHARE)
    rn.data.prepare(train, data / "images", output / "shards", "train")
    rn.data.prepare(data / "instances_val.json", data / "images", output / "shards", "val")
    source = read_source(str(output / "shards/val-*.tfrecord"))
    found: dict[str, dict[str, dict[str, float | None]]] = {row: {} for row in ROWS.value}
    for seed in SEEDS.value:
        for row in ROWS.value:
            config = REDUCED.replace(**_ROWS[row], steps=STEPS.value, seed=int(seed))
            run_dir = output / row.replace("=", "_") / seed
            rn.train(config, data=str(output / "shards/train-*.tfrecord"), run_dir=run_dir)
            analysis = analyse(load_detector(run_dir), source)
            numbers = {name: analysis.metrics[name] for name in ("AP", "AP50")}
            found[row][seed] = numbers | dict(zip(analysis.names, analysis.ap, strict=True))
            files.write_json(output / "rare_classes.json", table(found, len(train.images)))
            print(row, f"seed {seed}:", {name: round(value, 3) for name, value in found[row][seed].items()})


def table(found: dict, images: int) -> dict:
    """The numbers by row, with mean and standard deviation over the seeds."""
    rows = []
    for row, seeds in found.items():
        values = {name: [numbers[name] for numbers in seeds.values()] for name in next(iter(seeds.values()), {})}
        mean = {name: round(statistics.mean(of), 4) for name, of in values.items()}
        spread = {name: round(statistics.stdev(of), 4) for name, of in values.items() if len(of) > 1}
        rows.append({"row": row, "mean": mean, "standard_deviation": spread, "seeds": seeds})
    return {
        "name": "rare_classes",
        "scale": f"reduced: {images} training pictures, {STEPS.value} steps of 4 at 240 to 320 pixels",
        "rows": rows,
        "made_by": provenance(),
    }


if __name__ == "__main__":
    run(main)
