"""Import of weights of Detectron, detectron2, torchvision or keras.applications as a checkpoint of this project.

    retinanet import-weights --source=torchvision --file=retinanet_resnet50_fpn_coco.pth --output=weights/tv

The settings the weights were trained under go with them: `--model=weights/tv` evaluates, predicts and exports,
`train --flagfile=weights/tv/flags.txt --init_weights=weights/tv` fine-tunes. Every setting that the tensors don't
determine can be given as a flag, e.g. --norm_epsilon=1e-5, or --anchor_scales=... for anchors of other sizes.

    retinanet import-weights --source=torchvision --file=last.ckpt --labels=labels.json --output=weights/mine

imports your own network: saved by PyTorch, Lightning, DeepForest or detectron2, as .pth, .ckpt, .safetensors or .pkl.
If it has more class outputs than labels.json has categories, each category's id is the number of its output: ids from
1 where output 0 is the background, as in torchvision.

    retinanet import-weights --source=run --file=runs/mine --output=weights/mine

keeps the backbone of a finished job, or of a published detector by its name, as a start for detectors with another
pyramid, other subnets or classes.
"""

from absl import flags

from retinanet_tf.cli import flags as config_flags
from retinanet_tf.config.presets import presets
from retinanet_tf.errors import InputError
from retinanet_tf.pretrained.names import SOURCES

SOURCE = flags.DEFINE_enum("source", None, [*SOURCES, "run"], "Project that the checkpoint comes from.", required=True)
FILE = flags.DEFINE_string("file", None, "The checkpoint; for --source=run a run_dir or published name.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write, or a name ending in .weights.h5.", required=True)
LABELS = flags.DEFINE_string("labels", None, "labels.json of the checkpoint's categories, if they aren't COCO's.")
config_flags.define(only=("model", "anchors", "assign", "loss", "detect"), preset=False)


def main() -> None:
    """Imports the weights and prints the report."""
    from retinanet_tf.data.sources.labels import LabelMap
    from retinanet_tf.pretrained import import_weights, keep_backbone

    if SOURCE.value == "run":
        for name in ("labels", *presets["paper"].flat()):
            if name in flags.FLAGS and flags.FLAGS[name].present:
                raise InputError(f"--{name} is for other sources; a run's backbone is kept as it is.")
        report = keep_backbone(FILE.value, OUTPUT.value)
    else:
        report = import_weights(
            SOURCE.value,
            FILE.value,
            OUTPUT.value,
            label_map=LabelMap.load(LABELS.value) if LABELS.value else None,
            adjust=config_flags.read,
        )
    print(report)
    print(f"{OUTPUT.value}: a {report.parts}; all tensors are listed in import.json.")
