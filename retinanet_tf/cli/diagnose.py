"""Loss distribution of a trained model (Figure 4): `retinanet diagnose --model=runs/mine --data=… --output=…`.

Writes loss_distribution.png and loss_distribution.json: the cumulative loss of foreground and background examples.
"""

from absl import flags

from retinanet_tf.cli.model_flag import MODEL
from retinanet_tf.errors import InputError

flags.mark_flag_as_required("model")
DATA = flags.DEFINE_string("data", None, "Pattern of shards; labels.json is beside them.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the two files.", required=True)
GAMMAS = flags.DEFINE_list("gammas", ["0", "0.5", "1", "2"], "Values of γ (Figure 4's by default).")
LIMIT = flags.DEFINE_integer("limit", None, "Look at this many images at most.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images that go through the network together.", lower_bound=1)


def main() -> None:
    """Runs the diagnosis."""
    from retinanet_tf.evaluation.loss_distribution import diagnose
    from retinanet_tf.pretrained.by_name import resolve

    try:
        gammas = [float(value) for value in GAMMAS.value]
    except ValueError:
        raise InputError(f"--gammas={','.join(GAMMAS.value)} must be a list of numbers.") from None
    paths = (resolve(MODEL.value or ""), DATA.value, OUTPUT.value)
    diagnose(*paths, gammas, limit=LIMIT.value, batch_size=BATCH_SIZE.value)
