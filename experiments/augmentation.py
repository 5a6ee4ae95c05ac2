"""What each kind of stronger augmentation does to the blood cells in a short training, one row after the other.

    python -m experiments.augmentation --data=FOLDER --output=runs/augmentation --seeds=0

FOLDER has images, instances_train.json and instances_val.json of BCCD. Every row is recipes/bccd.flags with its flips
and jitter, reduced: 600 steps of 4 instead of 2500, at 240 to 320 pixels, three to five minutes a run on two CPU cores.
Strong augmentation is made for long trainings, so this says what it costs at first rather than what it gains at last.
Not in the paper. OUTPUT/augmentation.json has AP and AP50 by row and seed.
"""

import time
from pathlib import Path

from absl import flags

import retinanet_tf as rn
from experiments.blood_cells import REDUCED
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.provenance import provenance

DATA = flags.DEFINE_string("data", None, "BCCD: images, instances_train.json, instances_val.json.", required=True)
OUTPUT = flags.DEFINE_string("output", "runs/augmentation", "Folder for shards, runs and numbers.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the trainings.")
STEPS = flags.DEFINE_integer("steps", 600, "Training steps.")

ROWS = {
    "recipe": {},
    "mosaic=0.5": {"mosaic": 0.5},
    "overlap_crop=0.5": {"overlap_crop": 0.5},
    "mixup=0.3": {"mixup": 0.3},
    "cutout=0.3": {"cutout": 0.3},
}


def main() -> None:
    """Prepares, trains every row with every seed, and writes the numbers so far after each."""
    data, output = Path(DATA.value), Path(OUTPUT.value)
    shards = {}
    for split in ("train", "val"):
        rn.data.prepare(data / f"instances_{split}.json", data / "images", output / "shards", split, progress=False)
        shards[split] = str(output / "shards" / f"{split}-*.tfrecord")
    rows: dict[str, dict] = {}
    for seed in map(int, SEEDS.value):
        for name, changes in ROWS.items():
            config = REDUCED.replace(**changes, steps=STEPS.value, seed=seed)
            start, folder = time.perf_counter(), output / name.replace("=", "_") / str(seed)
            rn.train(config, data=shards["train"], run_dir=folder)
            metrics = rn.evaluate(rn.load_detector(folder), shards["val"])
            minutes = round((time.perf_counter() - start) / 60, 1)
            rows.setdefault(name, {})[str(seed)] = {
                **{key: round(metrics[key], 4) for key in ("AP", "AP50", "APs", "APm", "APl")},
                "minutes": minutes,
            }
            result = {
                "name": "augmentation of blood cells",
                "scale": "reduced",
                "recipe": "experiments/augmentation.py",
                "steps": STEPS.value,
                "rows": rows,
                "made_by": provenance(),
            }
            files.write_json(output / "augmentation.json", result)


if __name__ == "__main__":
    run(main)
