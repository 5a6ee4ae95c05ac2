"""Published weights, read safely and matched by name, with the settings they were trained under."""

from typing import TYPE_CHECKING

from retinanet_tf.lazy import attach

if TYPE_CHECKING:
    from retinanet_tf.pretrained.by_name import starting_config
    from retinanet_tf.pretrained.importing import import_weights, keep_backbone
    from retinanet_tf.pretrained.loading import Report, initialize

__all__ = ["Report", "import_weights", "initialize", "keep_backbone", "starting_config"]
__getattr__, __dir__ = attach(
    __name__,
    {
        **{"Report": "loading", "import_weights": "importing", "initialize": "loading", "keep_backbone": "importing"},
        "starting_config": "by_name",
    },
)
