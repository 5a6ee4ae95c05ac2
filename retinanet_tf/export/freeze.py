"""The network of a detector as it is served: its precision chosen, its weights constants of the graph.

Constants let TensorFlow prepare the kernels of convolutions once instead of in every call (oneDNN keeps them in its
own order). Folding the fixed batch normalisations into the convolutions as well was tried and changed nothing: the
graph optimiser fuses them already.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf

from retinanet_tf.errors import InputError
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.retinanet import RetinaNet

PRECISIONS = ("float32", "float16", "bfloat16")
_OUTPUTS = ("class_logits", "box_deltas")


def with_precision(detector: Detector, precision: str) -> Detector:
    """A detector that computes its network in `precision`; weights, decoding, NMS and answers stay float32.

    Raises:
      InputError: a precision that isn't one of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}.")
    if precision == "float32":
        return detector
    with precision_policy(precision):
        model = RetinaNet.from_config(detector.model.get_config())
    model.set_weights(detector.model.get_weights())
    return Detector(model, detector.label_map, detector.config, detector.image_size, detector.max_size)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without TensorFlow's many lines on what replaces its first version, which nothing does here."""
    logger = tf.get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def freeze(detector: Detector) -> Callable[[tf.Tensor], dict[str, list[tf.Tensor]]]:
    """The detector's network with constants for weights: canvases `(B, h, w, 3)` → what `detector.levels` returns.

    Only interfaces that TensorFlow documents: the network goes through a SavedModel into a session of the first
    version, whose tool turns variables into constants, and comes back as a function.
    """
    module = tf.Module(name="network")
    levels = len(detector.model.anchors.config.levels)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="canvases")])
    def network(canvases):
        outputs = detector.levels(canvases, training=False)
        return {f"{name}_{level}": outputs[name][level] for name in _OUTPUTS for level in range(levels)}

    concrete = network.get_concrete_function()
    module.state = list(concrete.variables)
    v1 = tf.compat.v1
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        tf.saved_model.save(module, folder, signatures=concrete)
        with tf.Graph().as_default() as graph, v1.Session() as session:
            meta = v1.saved_model.load(session, ["serve"], folder)
            signature = meta.signature_def["serving_default"]
            names = sorted({tensor.name.split(":")[0] for tensor in signature.outputs.values()})
            constant = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
    wrapped = v1.wrap_function(lambda: tf.import_graph_def(constant, name=""), [])
    find = wrapped.graph.get_tensor_by_name
    outputs = {key: find(tensor.name) for key, tensor in signature.outputs.items()}
    pruned = wrapped.prune([find(signature.inputs["canvases"].name)], outputs)

    def frozen(canvases: tf.Tensor) -> dict[str, list[tf.Tensor]]:
        flat = pruned(canvases)
        result = {name: [flat[f"{name}_{level}"] for level in range(levels)] for name in _OUTPUTS}
        for level in result["class_logits"]:
            level.set_shape([None, None, detector.model.config.num_classes])
        return result

    return frozen
