"""The miniature: the paper's protocol on generated pictures that stay hard.

From the paper: SGD with momentum at 0.01, dropped tenfold twice, weight decay 1e-4, subnets without norm, a
backbone trained on something else with its norms frozen and its first two stages kept. From its authors' code: a
warm-up, and the loss of a batch over all its positives; without both, cross entropy diverges at small α (an image with
two positives has hundreds of times the gradient of COCO's). From neither:

- The pictures, 256 px, 12,240 anchors of which about one in a thousand is positive. One to four shapes of 14 to 64 px,
  in 20 classes of which many differ in their surface alone, of low contrast, blurred, hidden in part, among two to
  eight others that resemble them and have no label (`styles.STYLES`).
- The network: fourteen layers of 24 to 192 channels; its subnets of 32 channels begin with the gain of the paper's 256,
  kernels of 0.03 in place of 0.01. In place of ImageNet's weights the backbone of a detector trained on other generated
  pictures, of the same classes but plain to see.
- 6,000 steps of 8 images, the rate dropped after half and two thirds of them (the paper: two thirds and eight
  ninths): the last third shows whether training has come to its end.
"""

from pathlib import Path

from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.config.presets import presets
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.pretrained import keep_backbone
from retinanet_tf.training.run_directory import exclusive
from retinanet_tf.training.train import train

BASE = presets["mini"].replace(
    num_classes=20,
    backbone="resnet14_w24",
    norm="frozen",
    freeze_stages=2,
    fpn_channels=32,
    subnet_channels=32,
    subnet_norm="none",
    subnet_init_std=0.03,
    image_size=256,
    max_size=256,
    batch_size=8,
    normalizer="replica",
    promote="never",
    optimizer="sgd",
    adamw_decay=0.0,
    learning_rate=0.01,
    schedule="step",
    steps=6_000,
    decay_steps=(3_000, 4_000),
    warmup_steps=200,
    weight_decay=1e-4,
    checkpoint_steps=1_000,
    eval_steps=1_000,
)
"""The configuration that rows change."""

PICTURES = {
    **{"num_train": 8000, "num_val": 500, "image_size": 256, "objects": (1, 4), "sizes": (14, 64)},
    **{"min_visible": 0.3, "style": "lookalikes", "processes": 2},
}
"""The pictures of training and validation."""

_BEFORE = presets["mini"].replace(num_classes=20, steps=4_000, checkpoint_steps=1_000)
"""Pretraining of the backbones: the demo's recipe, on pictures whose shapes are of all sizes and plain to see."""


def make(folder: Path, backbones: set[str]) -> None:
    """Makes, once, what the jobs start from: shards, and weights for each backbone."""
    files.make_folder(folder, "--runs")
    made = [*(folder / "weights" / name / "run.json" for name in backbones), folder / "data" / "val.summary.json"]
    if not all(path.exists() for path in made):
        with exclusive(folder):
            _pictures(folder / "data", **PICTURES)
            for name in sorted(backbones):
                _backbone(folder, name)


def places(folder: Path) -> dict[str, str]:
    """{flag: value} for `train`; `init_weights` holds `{backbone}` where the backbone's name belongs."""
    data = folder / "data"
    return {
        "data": str(data / "train-*.tfrecord"),
        "validation": str(data / "val-*.tfrecord"),
        "init_weights": str(folder / "weights" / "{backbone}"),
    }


def _pictures(folder: Path, **settings) -> None:
    for name, split in shapes.generate(folder / "coco", **settings).items():
        prepare(split.annotations, split.images, folder, name, shards=2)


def _backbone(folder: Path, name: str) -> None:
    if (folder / "weights" / name / "run.json").exists():
        return
    other = folder / "data_before"
    _pictures(other, num_train=4000, num_val=250, image_size=128, seed=77, style="patterns", processes=2)
    run_dir = folder / "before" / name
    config: Config = _BEFORE.replace(backbone=name)
    train(
        config,
        data=str(other / "train-*.tfrecord"),
        validation=str(other / "val-*.tfrecord"),
        run_dir=str(run_dir),
    )
    keep_backbone(run_dir, folder / "weights" / name)
