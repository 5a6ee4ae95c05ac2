"""What each kind of stronger augmentation does to a small data set in a short training, one row after the other.

    python -m experiments.augmentation --train=ANNOTATIONS --val=ANNOTATIONS --images=FOLDER --steps=800

comparison.py has the arguments of the blood cells and of the playing cards. Every row is recipes/bccd.flags with its
flips and jitter, reduced: 800 steps of 4 instead of 2,500, at 240 to 320 pixels, two to five minutes a run on two CPU
cores. Strong augmentation is made for long trainings, so this says what it costs at first rather than what it gains at
last. Not in the paper.
"""

from experiments import comparison

ROWS = {
    "recipe": {},
    "mosaic": {"mosaic": 0.5},
    "overlap_crop": {"overlap_crop": 0.5},
    "mixup": {"mixup": 0.3},
    "cutout": {"cutout": 0.3},
}

if __name__ == "__main__":
    comparison.main("augmentation", ROWS, comparison.REDUCED)
