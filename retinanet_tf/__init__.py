"""RetinaNet for TensorFlow and Keras: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017)."""

from retinanet_tf.config import Config, presets
from retinanet_tf.errors import InputError
from retinanet_tf.version import __version__

__all__ = ["Config", "InputError", "__version__", "presets"]
