"""Blood cells in a few minutes: recipes/bccd.flags, reduced, for experiments that compare settings on them."""

from retinanet_tf.config.presets import presets

REDUCED = presets["mini"].replace(
    **{"num_classes": 3, "image_size": 240, "max_size": 320, "batch_size": 4, "learning_rate": 5e-3},
    **{"adamw_decay": 0.05, "ema_decay": 0.99, "warmup_steps": 100, "vertical_flip": 0.5},
    **{"scale_jitter": (0.8, 1.25), "translate_jitter": 0.2, "colour_jitter": 0.3, "checkpoint_steps": 400},
)
"""At 240 to 320 pixels; the caller says for how many steps."""
