"""RetinaNet for TensorFlow and Keras: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017)."""

import sys
import types
from typing import TYPE_CHECKING, Any

from retinanet_tf.lazy import attach
from retinanet_tf.version import __version__

if TYPE_CHECKING:
    from retinanet_tf import data, pretrained
    from retinanet_tf.config.config import Config
    from retinanet_tf.config.presets import presets
    from retinanet_tf.errors import InputError
    from retinanet_tf.evaluation.evaluator import CocoEvaluation, evaluate
    from retinanet_tf.export.formats import export
    from retinanet_tf.inference.detector import Detector
    from retinanet_tf.inference.test_time_augmentation import AugmentedDetector
    from retinanet_tf.inference.tiles import TiledDetector
    from retinanet_tf.losses.box import GIoULoss, L1Loss, SmoothL1Loss
    from retinanet_tf.losses.classification import (
        CrossEntropyLoss,
        FocalLoss,
        FocalStarLoss,
        HingeLoss,
        retinanet_losses,
    )
    from retinanet_tf.models.retinanet import RetinaNet
    from retinanet_tf.pretrained.by_name import load_detector
    from retinanet_tf.training.train import train

_MODULES = {
    "AugmentedDetector": "inference.test_time_augmentation",
    "CocoEvaluation": "evaluation.evaluator",
    "Config": "config.config",
    "CrossEntropyLoss": "losses.classification",
    "Detector": "inference.detector",
    "FocalLoss": "losses.classification",
    "FocalStarLoss": "losses.classification",
    "GIoULoss": "losses.box",
    "HingeLoss": "losses.classification",
    "InputError": "errors",
    "L1Loss": "losses.box",
    "RetinaNet": "models.retinanet",
    "SmoothL1Loss": "losses.box",
    "TiledDetector": "inference.tiles",
    "data": "data",
    "evaluate": "evaluation.evaluator",
    "export": "export.formats",
    "load_detector": "pretrained.by_name",
    "pretrained": "pretrained",
    "presets": "config.presets",
    "retinanet_losses": "losses.classification",
    "train": "training.train",
}
__getattr__, __dir__ = attach(__name__, _MODULES)
__all__ = ["__version__", *_MODULES]


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the folder `export` would hide the function `export`.
        if not (name == "export" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
