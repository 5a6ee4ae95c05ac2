"""Figure 3: the architecture, drawn from the model itself: backbone, pyramid, the two subnets of every level.

    python -m experiments.paper.figure_3

Exact at any scale: the shapes and parameters are those of the network of --preset=paper, ResNet-50-FPN at 600 px.
"""

from pathlib import Path

from experiments.paper import curves
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.config.presets import presets
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.models.summary import count, draw

HEIGHT, WIDTH = 608, 1024
"""A 600 × 1000 image, to whole cells of C5."""


def main() -> None:
    """Draws the figure and writes the counts."""
    files.make_folder(curves.OUTPUT.value, "--output")
    folder = Path(curves.OUTPUT.value)
    model = RetinaNet.from_config(presets["paper"])
    draw(model, HEIGHT, WIDTH, folder / "figure_3.png")
    rows = [vars(row) for row in count(model, HEIGHT, WIDTH)]
    files.write_json(folder / "figure_3.json", {"image": [HEIGHT, WIDTH], "parts": rows})
    print(folder / "figure_3.png")


if __name__ == "__main__":
    run(main)
