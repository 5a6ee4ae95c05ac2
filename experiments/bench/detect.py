"""Speed of detection: the network, what comes after it, and a served model from bytes to boxes.

    python -m experiments.bench.detect --json=detect.json

keras-hub (Keras 3) and torchvision are compared with where they are installed. Weights are random; the outputs that
post-processing gets are modelled on a trained detector's: logits of −7 ± 0.8, and on every anchor that overlaps one of
the image's objects a logit that rises with the overlap. "crowded" has 60 objects, ten times the usual.
"""

import io
import math
import tempfile

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from experiments.bench.peers import keras_hub_detector, torchvision_network
from experiments.bench.timing import Rows, in_turns
from retinanet_tf.cli.main import run
from retinanet_tf.config.config import AnchorConfig, DetectConfig
from retinanet_tf.detection.anchors import anchors_by_level
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.export.saved_model import export, freeze
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet

_ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed calls of everything, in turns.")
_SIDE = 512
_CANVAS = (608, 992)  # 113,121 anchors, a photo of 3:5 at the paper's 600 pixels
_SMALL_CANVAS = (256, 256)
_CLASSES = 80


def main() -> None:
    """Runs the three comparisons."""
    rows = Rows()
    peer = keras_hub_detector()
    model = RetinaNet(num_classes=_CLASSES, image_size=_SIDE, max_size=_SIDE)
    _spread_scores(model)
    detector = Detector(model)
    _network(rows, detector, peer)
    _postprocessing(rows, peer)
    _served(rows, detector)
    rows.write()


def _spread_scores(model: RetinaNet) -> None:
    """Gives an untrained class subnet a trained one's scores: a few hundred per image pass the threshold."""
    photo = tf.constant(_photo(_SIDE, _SIDE)[None], tf.float32)
    logits = model(photo, training=False)["class_logits"].numpy().ravel()
    bias = -math.log(99.0)
    factor = (math.log(0.05 / 0.95) - bias) / float(np.partition(logits, -300)[-300] - bias)
    kernel = model.get_layer("class_subnet").predictor.kernel
    kernel.assign(tf.convert_to_tensor(kernel) * factor)


def _network(rows: Rows, detector: Detector, peer) -> None:
    images = tf.constant(_photo(_SIDE, _SIDE)[None], tf.float32)
    called = tf.function(lambda x: detector.levels(x, training=False))
    served = tf.function(freeze(detector))
    functions = {"called": lambda: called(images), "served": lambda: served(images)}
    if peer is not None:
        theirs = tf.function(lambda x: peer(x, training=False))
        functions["theirs"] = lambda: theirs(images)
    if (torchvision := torchvision_network(_SIDE)) is not None:
        functions["torchvision"] = torchvision
    times = in_turns(functions, _ROUNDS.value)
    for how in ("called", "served"):
        name = f"network as {how}, ResNet-50, {_SIDE}x{_SIDE}"
        rows.add(name, times[how], "keras-hub as called", times.get("theirs"), 1.0)
        rows.add(name, times[how], "torchvision's network part", times.get("torchvision"), 0.9)


def _postprocessing(rows: Rows, peer) -> None:
    for name, objects in (("usual", 6), ("crowded", 60)):
        anchors, ours, _ = _decoders(_CANVAS, objects, None)
        times = in_turns({"ours": ours}, _ROUNDS.value)
        rows.add_absolute(_title(anchors, name), times["ours"], 15.0)
    # keras-hub's time grows with the square of the anchors: minutes for a photo. A small picture has to do.
    anchors, ours, theirs = _decoders(_SMALL_CANVAS, 20, peer)
    times = in_turns({"ours": ours, **({"theirs": theirs} if theirs else {})}, _ROUNDS.value)
    rows.add(
        _title(anchors, "a small picture"), times["ours"], "keras-hub (one class an anchor)", times.get("theirs"), 0.8
    )


def _title(anchors: list, name: str) -> str:
    return f"after the network, {sum(len(level) for level in anchors)} anchors x {_CLASSES} classes, {name}"


def _decoders(canvas: tuple[int, int], objects: int, peer):
    """Anchors by level, and the two functions from a network's outputs on such a picture to detections."""
    config = AnchorConfig()
    anchors = anchors_by_level(*canvas, config)
    size = tf.constant([canvas], tf.float32)
    logits, deltas = _outputs(anchors, objects, canvas)

    @tf.function
    def ours():
        return select_detections(logits, deltas, anchors, tf.ones([1, 2]), size, DetectConfig(), config)

    if peer is None:
        return anchors, ours, None
    together = {"cls_logits": tf.concat(logits, 1), "bbox_regression": tf.concat(deltas, 1)}
    theirs = tf.function(lambda outputs, images: peer.decode_predictions(outputs, images))
    images = tf.zeros([1, *canvas, 3])
    return anchors, ours, lambda: theirs(together, images)


def _served(rows: Rows, detector: Detector) -> None:
    file = io.BytesIO()
    Image.fromarray(_photo(_SIDE, _SIDE)).save(file, "JPEG", quality=90)
    encoded = tf.constant([file.getvalue()])
    canvas = tf.constant(_photo(_SIDE, _SIDE)[None], tf.float32)
    network = tf.function(freeze(detector))
    with tempfile.TemporaryDirectory() as folder:
        served = tf.saved_model.load(str(export(detector, f"{folder}/retinanet"))).signatures["serving_default"]
        found = int(served(input_tensor=encoded)["num_detections"][0])
        functions = {"ours": lambda: served(input_tensor=encoded), "network": lambda: network(canvas)}
        times = in_turns(functions, _ROUNDS.value)
    name = f"SavedModel, JPEG bytes to {found} boxes, {_SIDE}x{_SIDE}"
    rows.add(name, times["ours"], "the network alone", times["network"], 1.05)


def _photo(height: int, width: int) -> np.ndarray:
    """Something with the frequencies of a photograph, uint8."""
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((width, height), 3), np.float32)
        for n in (3, 9, 27, 81)
    ]
    mixed = sum(layer / 2**level for level, layer in enumerate(layers))
    return (mixed * 255 / mixed.max()).astype(np.uint8)


def _outputs(anchors: list, objects: int, canvas: tuple[int, int]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Logits (1, A_l, K) and deltas (1, A_l, 4) per level, as of a trained network on a picture with `objects`."""
    rng = np.random.default_rng(objects)
    corner = rng.uniform(0, np.array(canvas[::-1]) - 40, (objects, 2))
    sides = np.exp(rng.uniform(math.log(24), math.log(400), (objects, 2)))
    boxes = np.concatenate([corner, np.minimum(corner + sides, canvas[::-1])], 1)
    classes = rng.integers(0, _CLASSES, objects)
    logits, deltas = [], []
    for level in anchors:
        level = level.numpy()
        values = rng.normal(-7.0, 0.8, (len(level), _CLASSES)).astype(np.float32)
        for box, label in zip(boxes, classes, strict=True):
            sides = np.minimum(level[:, 2:], box[2:]) - np.maximum(level[:, :2], box[:2])
            shared = np.prod(np.clip(sides, 0, None), 1)
            union = np.prod(level[:, 2:] - level[:, :2], 1) + np.prod(box[2:] - box[:2]) - shared
            hit = -8.0 + 10.0 * shared / union + rng.normal(0, 0.5, len(level))
            values[:, label] = np.maximum(values[:, label], hit)
        logits.append(tf.constant(values[None]))
        deltas.append(tf.constant(rng.normal(0, 0.2, (1, len(level), 4)).astype(np.float32)))
    return logits, deltas


if __name__ == "__main__":
    run(main)
