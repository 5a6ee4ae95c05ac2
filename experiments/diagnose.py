"""Where a trained model's loss lies (Figure 4): `experiments.diagnose --checkpoint=runs/mine --data=… --output=…`.

Writes loss_distribution.png and loss_distribution.json: the cumulative loss of foreground and background examples.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from retinanet_tf import runs
from retinanet_tf.data import files, pipeline
from retinanet_tf.diagnosis import loss_distribution
from retinanet_tf.diagnosis_plot import figure_4
from retinanet_tf.errors import InputError

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A training job's run_dir, or what import_weights wrote.", required=True
)
DATA = flags.DEFINE_string("data", None, "Pattern of shards; labels.json is beside them.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the two files.", required=True)
GAMMAS = flags.DEFINE_list("gammas", ["0", "0.5", "1", "2"], "Values of γ (Figure 4's by default).")
LIMIT = flags.DEFINE_integer("limit", None, "Look at this many images at most.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images that go through the network together.", lower_bound=1)


def main() -> None:
    """Runs the model over the data and draws."""
    try:
        gammas = [float(value) for value in GAMMAS.value]
    except ValueError:
        raise InputError(f"--gammas={','.join(GAMMAS.value)} must be a list of numbers.") from None
    files.make_folder(OUTPUT.value, "--output")
    output = Path(OUTPUT.value)
    config = runs.load_config(CHECKPOINT.value)
    model = runs.load_model(CHECKPOINT.value)
    batches = pipeline.load(
        DATA.value,
        training=False,
        image_size=config.model.image_size,
        max_size=config.model.max_size,
        pixel_mean=config.model.pixel_mean,
        size_multiple=2**config.anchors.max_level,
        batch_size=BATCH_SIZE.value,
    )
    distribution = loss_distribution(model, batches, LIMIT.value)
    figure_4(distribution, output / "loss_distribution.png", gammas)
    files.write_json(output / "loss_distribution.json", distribution.summary(gammas))
    for kind in ("foreground", "background"):
        shares = [distribution.share_of_hardest(kind, gamma, 0.2) for gamma in gammas]
        text = ", ".join(f"γ = {gamma:g}: {share:.0%}" for gamma, share in zip(gammas, shares, strict=True))
        print(f"The hardest fifth of the {kind} examples carries of their loss: {text}.")
    print(f"{output / 'loss_distribution.png'}, {output / 'loss_distribution.json'}")


if __name__ == "__main__":
    cli.run(main)
