"""Published weights, read safely and matched by name, with the settings they were trained under."""

from typing import TYPE_CHECKING

from retinanet_tf.lazy import attach

if TYPE_CHECKING:
    from retinanet_tf.pretrained.by_name import initialize, keep_backbone, starting_config
    from retinanet_tf.pretrained.importing import import_weights
    from retinanet_tf.pretrained.loading import Report

__all__ = ["Report", "import_weights", "initialize", "keep_backbone", "starting_config"]
__getattr__, __dir__ = attach(
    __name__,
    {
        **{"Report": "loading", "import_weights": "importing"},
        **dict.fromkeys(("initialize", "keep_backbone", "starting_config"), "by_name"),
    },
)
