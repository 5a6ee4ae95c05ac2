"""Named configurations, each by its differences from another one."""

from retinanet_tf.config.config import Config

_PAPER = Config()
_DETECTRON = _PAPER.replace(normalizer="replica", promote="above_negative", warmup_steps=500, bias_lr_factor=2.0)
_MODERN = _PAPER.replace(
    normalizer="global",
    box="giou",
    image_size=800,
    max_size=1333,
    scale_jitter=(0.8, 1.0),
    steps=270_000,
    decay_steps=(210_000, 250_000),
    warmup_steps=1_000,
    promote="always",
    ema_decay=0.9998,
)
_MINI = _PAPER.replace(
    num_classes=5,
    backbone="resnet14_w24",
    norm="batch",
    freeze_stages=0,
    pixel_mean=(127.5, 127.5, 127.5),
    pixel_std=(64.0, 64.0, 64.0),
    channel_order="rgb",
    max_level=6,
    anchor_multiplier=2.0,
    fpn_channels=48,
    subnet_channels=48,
    subnet_depth=2,
    subnet_norm="batch",
    image_size=128,
    max_size=128,
    batch_size=8,
    normalizer="global",
    promote="always",
    optimizer="adamw",
    adamw_decay=1e-4,
    weight_decay=0.0,
    learning_rate=7e-3,
    schedule="cosine",
    warmup_steps=100,
    steps=3_200,
    checkpoint_steps=320,
)

presets: dict[str, Config] = {"paper": _PAPER, "detectron": _DETECTRON, "modern": _MODERN, "mini": _MINI}
"""`paper` (the text), `detectron` (the authors' code), `modern` (torchvision's v2 recipe), `mini` (a small network for
small images: minutes on two CPU cores)."""
