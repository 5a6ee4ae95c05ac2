"""Parameters and multiply-adds of each preset's network, and the picture of its architecture (Figure 3).

    retinanet summary --output=runs/summary

counts all presets; with --preset, or any setting of the network, that one.
"""

from pathlib import Path

from absl import flags

from retinanet_tf.cli import flags as config_flags
from retinanet_tf.config.presets import presets

OUTPUT = flags.DEFINE_string("output", "", "Folder for PRESET.png and counts.json; '' only prints.")
config_flags.define(only=("model", "anchors"))


def main() -> None:
    """Prints the tables and writes the pictures."""
    from retinanet_tf import files
    from retinanet_tf.detection.rounding import round_up
    from retinanet_tf.inference.detector import CANVAS_MULTIPLE
    from retinanet_tf.models.retinanet import RetinaNet
    from retinanet_tf.models.summary import count, draw, table

    configured = config_flags.read()
    changed = flags.FLAGS["preset"].present or configured != presets["paper"]
    chosen = {flags.FLAGS.preset: configured} if changed else presets
    counts = {}
    for name, config in chosen.items():
        model = RetinaNet.from_config(config)
        # The frame that an image of the usual 3:5 shape fills, to whole cells of C5.
        height, width = (round_up(side, CANVAS_MULTIPLE) for side in (config.model.image_size, config.model.max_size))
        rows = count(model, height, width)
        counts[name] = {"image": [height, width], "parts": [vars(row) for row in rows]}
        print(f"{name}: {config.model.backbone}, image {height}×{width}\n{table(rows)}\n")
        if OUTPUT.value:
            files.make_folder(OUTPUT.value, "--output")
            draw(model, height, width, Path(OUTPUT.value) / f"{name}.png")
    if OUTPUT.value:
        files.write_json(Path(OUTPUT.value) / "counts.json", counts)
