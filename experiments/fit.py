"""Plain `model.fit` on a data set of your own, without the training job's run directory and resume.

python -m experiments.fit --train=train.json --val=val.json --images=photos --output=runs/fit
"""

import keras
from absl import flags

import retinanet_tf as rn
from retinanet_tf.cli.main import run

TRAIN = flags.DEFINE_string("train", None, "COCO instances JSON to train on.", required=True)
VAL = flags.DEFINE_string("val", None, "COCO instances JSON to evaluate on.", required=True)
IMAGES = flags.DEFINE_string("images", None, "Folder of the images of both.", required=True)
OUTPUT = flags.DEFINE_string("output", "runs/fit", "Folder for shards, weights and SavedModel.")
BACKBONE = flags.DEFINE_string("backbone", "resnet50", "The backbone's name.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 600, "Shorter side of the images in pixels.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step.")
EPOCHS = flags.DEFINE_integer("epochs", 12, "Evaluations on the way.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps_per_epoch", 1000, "Steps between evaluations.", lower_bound=1)


def main() -> None:
    """Prepares, trains, evaluates and exports."""
    output, sizes = OUTPUT.value, {"image_size": IMAGE_SIZE.value, "max_size": IMAGE_SIZE.value * 5 // 3}
    for name, annotations in (("train", TRAIN.value), ("val", VAL.value)):
        rn.data.prepare(annotations, IMAGES.value, f"{output}/shards", name)
    label_map = rn.data.LabelMap.load(f"{output}/shards/labels.json")

    model = rn.RetinaNet(label_map.num_classes, BACKBONE.value, **sizes)
    steps = EPOCHS.value * STEPS.value
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, 0.0, warmup_target=0.01, warmup_steps=steps // 20)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, global_clipnorm=10.0)
    model.compile(optimizer, loss=rn.retinanet_losses())

    detector = rn.Detector(model, label_map)
    batches = rn.data.load(f"{output}/shards/train-*", batch_size=BATCH_SIZE.value, **sizes)
    evaluation = rn.CocoEvaluation(detector, f"{output}/shards/val-*")
    model.fit(batches, epochs=EPOCHS.value, steps_per_epoch=STEPS.value, callbacks=[evaluation])

    model.save_weights(f"{output}/model.weights.h5")
    rn.export(detector, f"{output}/export")


if __name__ == "__main__":
    run(main)
