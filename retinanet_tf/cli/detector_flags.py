"""Flags of the detector: the model and test-time augmentation."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from retinanet_tf.cli.model_flag import MODEL
from retinanet_tf.errors import InputError

if TYPE_CHECKING:
    from retinanet_tf.inference.detector import Detector, DetectorLike

# As in test_time_augmentation.py and tiles.py, which import TensorFlow.
_MERGES = ("nms", "fusion")
_SMALLEST_TILE = 32
TEST_SIZES = flags.DEFINE_list(
    "test_sizes", [], "Test-time augmentation: look at every image at these shorter sides, e.g. 400,600,800."
)
TEST_FLIP = flags.DEFINE_boolean("test_flip", False, "Test-time augmentation: also look at every mirror image.")
TEST_MERGE = flags.DEFINE_enum(
    "test_merge",
    "nms",
    _MERGES,
    "How the versions of an image are merged: by NMS over all of them, or by weighted box fusion, which averages boxes "
    "and scores.",
)
TILES = flags.DEFINE_integer(
    "tiles",
    None,
    "Large pictures: also look at overlapping square tiles of this side in pixels. Up to 1,000 detections per image "
    "remain then.",
    lower_bound=_SMALLEST_TILE,
)
TILE_OVERLAP = flags.DEFINE_float(
    "tile_overlap", 0.2, "Share of a tile that its neighbour shows too, at least.", lower_bound=0, upper_bound=0.9
)
FOR_TRAINED = (TEST_SIZES, TEST_FLIP, TEST_MERGE, TILES, TILE_OVERLAP)
"""Flags that an exported detector can't follow."""


def load(max_detections: int = 0) -> "DetectorLike":
    """The detector of --model, with test-time augmentation and tiles if they were asked for.

    Args:
        max_detections: that it finds this many per image at least, whatever its configuration says.
    """
    from retinanet_tf.inference.test_time_augmentation import AugmentedDetector
    from retinanet_tf.inference.tiles import MERGED_DETECTIONS, TiledDetector
    from retinanet_tf.pretrained.by_name import load_detector

    if MODEL.value is None:
        raise InputError("give --model: a name that `retinanet models` lists, or the run directory of a training job.")
    plain = load_detector(MODEL.value)
    most = max(max_detections, plain.config.max_detections)
    plain = plain.with_config(dataclasses.replace(plain.config, max_detections=most))
    detector: Detector | AugmentedDetector = plain
    if TEST_SIZES.value or TEST_FLIP.value:
        try:
            sizes = [int(size) for size in TEST_SIZES.value]
        except ValueError:
            raise InputError(f"--test_sizes={','.join(TEST_SIZES.value)} must be a list of whole numbers.") from None
        detector = AugmentedDetector(plain, sizes, TEST_FLIP.value, TEST_MERGE.value)
    elif TEST_MERGE.present:
        raise InputError("--test_merge is for --test_sizes or --test_flip.")
    if TILES.value is None:
        if TILE_OVERLAP.present:
            raise InputError("--tile_overlap is for --tiles.")
        return detector
    return TiledDetector(detector, TILES.value, TILE_OVERLAP.value, max(most, MERGED_DETECTIONS))
