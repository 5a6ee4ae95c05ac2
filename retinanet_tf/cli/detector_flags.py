"""Flags of the detector: the model and test-time augmentation."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from retinanet_tf.cli.model_flag import MODEL
from retinanet_tf.errors import InputError

if TYPE_CHECKING:
    from retinanet_tf.inference.detector import DetectorLike

TEST_SIZES = flags.DEFINE_list(
    "test_sizes", [], "Test-time augmentation: look at every image at these shorter sides, e.g. 400,600,800."
)
TEST_FLIP = flags.DEFINE_boolean("test_flip", False, "Test-time augmentation: also look at every mirror image.")


def load(max_detections: int = 0) -> "DetectorLike":
    """The detector of --model, with test-time augmentation if it was asked for.

    Args:
        max_detections: that it finds this many per image at least, whatever its configuration says.
    """
    from retinanet_tf.inference.test_time_augmentation import AugmentedDetector
    from retinanet_tf.pretrained.by_name import load_detector

    if MODEL.value is None:
        raise InputError("give --model: a name that `retinanet models` lists, or the run directory of a training job.")
    detector = load_detector(MODEL.value)
    most = max(max_detections, detector.config.max_detections)
    detector.config = dataclasses.replace(detector.config, max_detections=most)
    if not (TEST_SIZES.value or TEST_FLIP.value):
        return detector
    try:
        sizes = [int(size) for size in TEST_SIZES.value]
    except ValueError:
        raise InputError(f"--test_sizes={','.join(TEST_SIZES.value)} must be a list of whole numbers.") from None
    return AugmentedDetector(detector, sizes, TEST_FLIP.value)
