"""Demo on generated data: the whole chain from COCO files to a SavedModel that runs without this package.

Each step is one call of the library and reuses what an earlier, perhaps interrupted, demo has finished.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from retinanet_tf.cli.before_tensorflow import print_relevant
from retinanet_tf.config.presets import presets
from retinanet_tf.files import read_json

OUTPUT = flags.DEFINE_string("output", "runs/demo", "Folder for everything.")
SHORT = flags.DEFINE_boolean("short", False, "Little data and training: proves the chain, not the accuracy.")
PICTURES = 12


def main() -> None:
    """Generates, prepares, trains, evaluates, exports, and detects in a process without this package."""
    from retinanet_tf.data.records.prepare import prepare
    from retinanet_tf.data.synthetic import shapes
    from retinanet_tf.export.formats import export
    from retinanet_tf.inference.checkpoint import load_detector
    from retinanet_tf.training.train import train

    start, output = time.time(), Path(OUTPUT.value)
    config = presets["mini"]
    counts: dict[str, Any] = {"num_train": 3000, "num_val": 200}
    if SHORT.value:
        config = config.replace(steps=60, checkpoint_steps=30, warmup_steps=10)
        counts = {"num_train": 100, "num_val": 20}

    _say("1/6 Generating photo-like scenes of five shapes as a COCO dataset")
    splits = shapes.generate(
        output / "coco",
        image_size=config.model.image_size,
        seed=config.train.seed,
        min_visible=0.6,
        processes=os.cpu_count() or 1,
        **counts,
    )

    _say("2/6 Writing TFRecord shards")
    for name, split in splits.items():
        prepare(split.annotations, split.images, output / "shards", name, shards=2)

    _say(f"3/6 Training the mini preset for {config.train.steps} steps, and 4/6 evaluating it with pycocotools")
    train(
        config,
        data=str(output / "shards" / "train-*.tfrecord"),
        validation=str(output / "shards" / "val-*.tfrecord"),
        run_dir=str(output),
    )

    _say("5/6 Exporting the SavedModel")
    exported = output / "export" / "1"
    if exported.exists():
        print(f"{exported} is there already and is reused.")
    else:
        export(load_detector(output), exported)

    _say("6/6 Detecting with the SavedModel in a process that imports tensorflow alone")
    pictures = output / "detections.png"
    _detect_elsewhere(exported, splits["val"].images, output / "detections.json", pictures)

    metrics = read_json(output / "metrics.json", "the metrics")
    print(
        f"\nDone in {time.time() - start:.0f} s: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on "
        f"{counts['num_val']} validation images (seed {config.train.seed}).\n"
        f"  pictures    {pictures}\n"
        f"  metrics     {output / 'metrics.json'}\n"
        f"  curves      {output / 'training.png'}\n"
        f"  SavedModel  {exported}\n"
        "A detector of COCO's 80 classes:\n"
        "  retinanet predict --model=torchvision/retinanet_resnet50_fpn_v2 --images=photo.jpg --output=found\n"
        "Your own data (README.md has every step):\n"
        "  retinanet prepare --annotations=train.json --images=photos --output=data --name=train\n"
        "  retinanet train --init_weights=torchvision/retinanet_resnet50_fpn_v2 --num_classes=N "
        "--data='data/train-*.tfrecord' --run_dir=runs/mine"
    )


def _say(text: str) -> None:
    print(f"\n--- {text}", flush=True)


def _detect_elsewhere(model: Path, images: Path, output: Path, picture: Path) -> None:
    """Runs run_saved_model.py and draws its detections, with nothing but the images beside them."""
    from retinanet_tf.visualize import contact_sheet, draw_detections, save_image

    # As text: Python would put the script's folder on the path, where inspect.py hides the standard library's.
    script = Path(__file__).with_name("run_saved_model.py").read_text(encoding="utf-8")
    options = [f"--model={model}", f"--images={images}/*.jpg", f"--limit={PICTURES}", f"--output={output}"]
    done = subprocess.run([sys.executable, "-c", script, *options], stderr=subprocess.PIPE, text=True, check=False)
    print_relevant(done.stderr)
    done.check_returncode()
    rows = read_json(output, "the detections")
    names = {row["category_id"]: row["category"] for row in rows}
    pictures = []
    for path in sorted(images.glob("*.jpg"))[:PICTURES]:
        own = [row for row in rows if row["image_id"] == str(path)]
        boxes = np.array([row["bbox"] for row in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores, ids = np.array([row["score"] for row in own]), np.array([row["category_id"] for row in own], int)
        pictures.append(draw_detections(np.asarray(Image.open(path).convert("RGB")), boxes, ids, scores, names=names))
    save_image(contact_sheet(pictures), picture)
