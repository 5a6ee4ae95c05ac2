"""What each kind of stronger augmentation does to the blood cells in a short training, one row after the other.

    python -m experiments.augmentation --data=FOLDER --seeds=0

FOLDER has images, instances_train.json and instances_val.json of BCCD. Every row is recipes/bccd.flags with its flips
and jitter, reduced: 800 steps of 4 instead of 2,500, at 240 to 320 pixels, two to five minutes a run on two CPU cores.
Strong augmentation is made for long trainings, so this says what it costs at first rather than what it gains at last.
Not in the paper.
"""

from experiments import blood_cells

ROWS = {
    "recipe": {},
    "mosaic": {"mosaic": 0.5},
    "overlap_crop": {"overlap_crop": 0.5},
    "mixup": {"mixup": 0.3},
    "cutout": {"cutout": 0.3},
}

if __name__ == "__main__":
    blood_cells.main("augmentation", ROWS, blood_cells.REDUCED)
