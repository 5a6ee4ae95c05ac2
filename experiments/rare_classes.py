"""Repeat-factor sampling and an α for the rare class, with and without, on blood cells made imbalanced.

    python -m experiments.rare_classes --train=ANNOTATIONS --val=ANNOTATIONS --images=FOLDER --seeds=0,1,2

comparison.py has the blood cells' arguments. Of the 205 training pictures stay the 88 without platelets and 10 of the
117 with them, a tenth; the 87 validation pictures are as they are. Reduced: 98 pictures, 800 steps of 4 at 240 to 320
pixels, two to five minutes a run on two CPU cores. Not in the paper.
"""

import numpy as np

import retinanet_tf as rn
from experiments import comparison
from retinanet_tf.errors import InputError

RARE, SHARE = "Platelets", 0.1
ROWS = {
    "plain": {},
    "repeat_threshold": {"repeat_threshold": "auto"},
    "class_alpha": {"class_alpha": "Platelets=0.5"},
    "both": {"repeat_threshold": "auto", "class_alpha": "Platelets=0.5"},
}


def imbalanced(annotations: rn.data.Annotations, name: str, share: float) -> rn.data.Annotations:
    """All pictures without the category, and as many with it as make `share` of the result, drawn at random."""
    ids = dict(zip(annotations.label_map.names, annotations.label_map.ids, strict=True))
    has = np.array([ids.get(name) in image.present for image in annotations.images])
    if not has.any():
        raise InputError(f"{annotations.source} has no object of {name}, the class that is made rare.")
    kept = round((~has).sum() * share / (1 - share))
    chosen = np.random.default_rng(0).choice(np.flatnonzero(has), kept, replace=False)
    images = [image for i, image in enumerate(annotations.images) if not has[i] or i in chosen]
    return rn.data.Annotations(annotations.source, images, annotations.label_map, annotations.warnings)


if __name__ == "__main__":
    comparison.main("rare_classes", ROWS, comparison.REDUCED, lambda train: imbalanced(train, RARE, SHARE))
