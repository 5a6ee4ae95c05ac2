"""What `compile` takes: the losses of `retinanet_losses`, subclasses of theirs and their weights, nothing else."""

import keras
import numpy as np
import pytest
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.config.config import AnchorConfig

OURS = rn.retinanet_losses()
FOREIGN = {
    "none": {},
    "a name": {"loss": "mse"},
    "names": {"loss": {"class_logits": "binary_crossentropy", "box_deltas": "huber"}},
    "Keras' own": {"loss": {**OURS, "box_deltas": keras.losses.Huber()}},
    "one of two": {"loss": {"class_logits": OURS["class_logits"]}},
    "exchanged": {"loss": {"class_logits": OURS["box_deltas"], "box_deltas": OURS["class_logits"]}},
    "without names": {"loss": list(OURS.values())},
    "a metric": {"loss": OURS, "metrics": ["accuracy"]},
    "a metric of one output": {"loss": OURS, "metrics": {"box_deltas": "mae"}},
    "a weighted metric": {"loss": OURS, "weighted_metrics": [keras.metrics.MeanIoU(2)]},
}


@pytest.fixture(scope="module")
def other():
    """A model to compile."""
    return rn.RetinaNet(num_classes=3, **TINY_NETWORK, anchors=AnchorConfig(max_level=5))


@pytest.mark.parametrize("case", FOREIGN)
def test_losses_and_metrics_of_others_are_refused(other, case):
    with pytest.raises(rn.InputError, match="retinanet_losses|evaluate"):
        other.compile(optimizer="sgd", **FOREIGN[case])


class Doubled(type(OURS["class_logits"])):
    def binary(self, margin):
        value, slope = super().binary(margin)
        return 2 * value, 2 * slope


@pytest.mark.slow
def test_a_loss_of_ones_own_trains(other):
    """A subclass by its `binary`, and the same by `loss_weights`."""
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    boxes = np.array([[[4, 4, 40, 40], [20, 10, 60, 44]], [[1, 2, 30, 32], [0, 0, 0, 0]]], np.float32)
    truth = {"boxes": boxes, "labels": np.array([[0, 2], [1, -1]])}

    def losses(**options):
        other.compile("sgd", **options)
        return other.evaluate(images, truth, batch_size=2, verbose=0, return_dict=True)

    plain = losses(loss=OURS)
    doubled = {"loss": {**OURS, "class_logits": Doubled()}}
    for options in (doubled, {"loss": OURS, "loss_weights": {"class_logits": 2.0, "box_deltas": 1.0}}):
        assert losses(**options)["loss"] == pytest.approx(plain["loss"] + plain["class_logits_loss"], rel=1e-5)
