"""RetinaNet for TensorFlow and Keras: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017)."""

import retinanet_tf.before_tensorflow  # isort: split  # noqa: F401
from retinanet_tf import data
from retinanet_tf.augmented import AugmentedDetector
from retinanet_tf.box_losses import GIoULoss, L1Loss, SmoothL1Loss
from retinanet_tf.config import Config
from retinanet_tf.config_presets import presets
from retinanet_tf.detector import Detector
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation import CocoEvaluation, evaluate
from retinanet_tf.export import export
from retinanet_tf.losses import CrossEntropyLoss, FocalLoss, FocalStarLoss, HingeLoss, retinanet_losses
from retinanet_tf.model import RetinaNet
from retinanet_tf.runs import load_detector
from retinanet_tf.training import train
from retinanet_tf.version import __version__

__all__ = [
    "AugmentedDetector",
    "CocoEvaluation",
    "Config",
    "CrossEntropyLoss",
    "Detector",
    "FocalLoss",
    "FocalStarLoss",
    "GIoULoss",
    "HingeLoss",
    "InputError",
    "L1Loss",
    "RetinaNet",
    "SmoothL1Loss",
    "__version__",
    "data",
    "evaluate",
    "export",
    "load_detector",
    "presets",
    "retinanet_losses",
    "train",
]
