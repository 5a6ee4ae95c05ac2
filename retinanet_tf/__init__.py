"""RetinaNet for TensorFlow and Keras: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017)."""

import retinanet_tf.cli.before_tensorflow  # isort: split  # noqa: F401
from retinanet_tf import data
from retinanet_tf.config.config import Config
from retinanet_tf.config.presets import presets
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.evaluator import CocoEvaluation, evaluate
from retinanet_tf.export.saved_model import export
from retinanet_tf.inference.checkpoint import load_detector
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector
from retinanet_tf.losses.box import GIoULoss, L1Loss, SmoothL1Loss
from retinanet_tf.losses.classification import CrossEntropyLoss, FocalLoss, FocalStarLoss, HingeLoss, retinanet_losses
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.training.train import train
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
