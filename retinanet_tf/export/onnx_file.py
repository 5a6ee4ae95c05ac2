"""ONNX: a detector as a file for onnxruntime, of standard operators alone."""

import os
from collections import Counter
from typing import Any
from unittest import mock

from retinanet_tf.export.frozen_graph import Shape, detection_graph
from retinanet_tf.export.quiet import quiet
from retinanet_tf.inference.detector import Detector

OPSET = 18
OLDEST_RUNTIME = "onnxruntime 1.14"
"""The first with opset 18 and IR version 8, which the files have."""


def convert(detector: Detector, shape: Shape) -> tuple[bytes, dict[str, Any]]:
    """The detector as an ONNX model, serialised.

    Args:
        detector: computes in float32.
        shape: of the canvases; with None for the batch the file takes any number of them.

    Returns:
        The file's content and what its metadata say about it.
    """
    with quiet():
        import tf2onnx
    function = detection_graph(detector, shape)
    # Without the copies of the graph by which tf2onnx would go on after an error in one of its optimizers, silently.
    with quiet(), mock.patch.dict(os.environ, TF2ONNX_CATCH_ERRORS="FALSE"):
        model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.shape.dim[0].dim_param:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    bodies = [node.attribute[0].g for node in model.graph.node if node.op_type == "Loop"]
    for body in bodies:
        _name_unchanged_values(body)
    operators = Counter(node.op_type for graph in (model.graph, *bodies) for node in graph.node)
    return model.SerializeToString(), {
        "opset": OPSET,
        "ir_version": model.ir_version,
        "oldest_runtime": OLDEST_RUNTIME,
        "operators": dict(sorted(operators.items())),
    }


def _name_unchanged_values(body: Any) -> None:
    """Gives values that a loop's body hands on unchanged a name of their own, without which OpenVINO refuses it."""
    from onnx import helper

    names = {value.name for value in body.input}
    for value in body.output:
        if value.name in names:
            body.node.append(helper.make_node("Identity", [value.name], [f"{value.name}_unchanged"]))
            value.name = f"{value.name}_unchanged"
