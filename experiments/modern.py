"""What each part of the preset `modern` gives on the blood cells: all of them, and all but one.

    python -m experiments.modern --train=ANNOTATIONS --val=ANNOTATIONS --images=FOLDER --seeds=0,1,2

comparison.py has the blood cells' arguments. The preset's settings with the small network of recipes/bccd.flags, from
scratch, and so with that recipe's rate: 800 steps of 4 at 240 to 320 pixels, two to five minutes a run on two CPU
cores. SGD has the rate of the paper. Not in the paper.
"""

from experiments import comparison
from retinanet_tf.config.presets import presets

NETWORK = ("num_classes", "backbone", "fpn_channels", "subnet_channels", "subnet_depth", "max_level", "freeze_stages")
PIXELS = ("image_size", "max_size", "pixel_mean", "pixel_std")
OPTIMIZATION = (
    *("batch_size", "learning_rate", "schedule", "warmup_steps", "decay_steps"),
    *("checkpoint_steps", "ema_decay"),
)
OTHERS = ("anchor_multiplier", "vertical_flip", "translate_jitter", "colour_jitter", "scale_jitter")
_RECIPE = comparison.REDUCED.flat()
BASE = presets["modern"].replace(**{name: _RECIPE[name] for name in (*NETWORK, *PIXELS, *OPTIMIZATION, *OTHERS)})

ROWS = {
    "modern": {},
    "group norm in the backbone": {"norm": "group"},
    "no norm in the subnets": {"subnet_norm": "none"},
    "smooth L1 for GIoU": {"box": "smooth_l1"},
    "SGD for AdamW": {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4, "adamw_decay": 0.0},
    "one scale": {"scale_jitter": (1.0, 1.0)},
    "P6 from P5": {"p6_from": "p5"},
    "no match promoted": {"promote": "never"},
    "positives of all images together": {"normalizer": "global"},
    "no averages": {"ema_decay": 0.0},
    "drops at 16 and 22 of 26 for the cosine": {"schedule": "step", "decay_steps": (492, 677)},
    "no weight decay": {"adamw_decay": 0.0},
}

if __name__ == "__main__":
    comparison.main("modern", ROWS, BASE)
