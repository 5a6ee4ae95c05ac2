"""Named configurations, each by its differences from another one."""

from retinanet_tf.config.config import Config

_PAPER = Config()
_DETECTRON = _PAPER.replace(normalizer="replica", promote="above_negative", warmup_steps=500, bias_lr_factor=2.0)
# torchvision's retinanet_resnet50_fpn_v2, published with AP 41.5 on COCO val2017 (pytorch/vision, pull request 5756):
# train.py --model retinanet_resnet50_fpn_v2 --weights-backbone ResNet50_Weights.IMAGENET1K_V2 --opt adamw --lr 1e-4
# --epochs 26 --lr-steps 16 22 --weight-decay 0.05 --norm-weight-decay 0 --data-augmentation multiscale --sync-bn,
# 8 devices with 2 images each. References below are to that repository.
_EPOCH = 117_266 // 16  # steps: COCO train2017's images with objects (references/detection/coco_utils.py)
_MODERN = _PAPER.replace(
    # The network: models/resnet.py, models/detection/retinanet.py.
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(58.395, 57.12, 57.375),
    channel_order="rgb",
    stride_in="3x3",
    norm="batch",  # trained, over all devices (--sync-bn)
    freeze_stages=2,  # trainable_backbone_layers=3; there the statistics of frozen stages still follow the images
    subnet_norm="group",
    p6_from="c5",
    anchor_style="torchvision",
    # Assignment and losses: models/detection/retinanet.py.
    promote="always",  # allow_low_quality_matches=True
    box="giou",
    normalizer="image",
    # Images: references/detection/presets.py, "multiscale", has eleven shorter sides from 480 to 800, equally likely;
    # the factor here is continuous.
    image_size=800,
    max_size=1333,
    scale_jitter=(0.6, 1.0),
    # Optimization: references/detection/train.py and engine.py.
    optimizer="adamw",
    learning_rate=1e-4,
    adamw_decay=0.05,  # of kernels alone; there of the biases too, but not of norms (--norm-weight-decay 0)
    weight_decay=0.0,
    steps=26 * _EPOCH,
    decay_steps=(16 * _EPOCH, 22 * _EPOCH),
    warmup_steps=1_000,  # there from a thousandth of the rate, here from a third
    # Not torchvision's.
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
"""`paper` (the text), `detectron` (the authors' code), `modern` (the recipe of torchvision's v2, published with AP 41.5
on COCO from the ImageNet weights `torchvision/resnet50_v2`; not run here at that scale), `mini` (a small network for
small images: minutes on two CPU cores)."""
