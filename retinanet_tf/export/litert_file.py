"""LiteRT (TensorFlow Lite): a detector as a .tflite file of builtin operators, in float32, float16 or INT8."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tf.errors import InputError, first_line
from retinanet_tf.export.frozen_graph import NETWORK, Shape, detection_graph, network_graph
from retinanet_tf.export.quiet import quiet
from retinanet_tf.export.temporary import temporary_saved_model
from retinanet_tf.inference.detector import Detector

PRECISIONS = ("float32", "float16", "int8")
SMALLEST_RANGE = 1e-3
"""Of the values of a tensor of the network in 'int8'."""
LARGEST_BIAS = 2**30
"""Of a convolution's biases in 'int8', 32-bit integers in steps of the input's step times the kernel's."""
_SIGNATURE = "serving_default"

Calibration = dict[str, Any]
"""The range of each tensor of the network, as ai-edge-quantizer has it."""


def convert(
    detector: Detector, shape: Shape, precision: str = "float32", calibration: Calibration | None = None
) -> tuple[bytes, dict[str, Any]]:
    """The detector as a LiteRT model, serialised, with one signature of named inputs and outputs.

    Args:
        detector: computes in float32.
        shape: of the canvases.
        precision: one of PRECISIONS; see `quantize`.
        calibration: what `calibrate` returned, for 'int8'.

    Returns:
        The file's content and what its metadata say about it.
    """
    content = _converted(detection_graph(detector, shape))
    if precision != "float32":
        content = quantize(content, precision, calibration)
    return content, {"oldest_runtime": _oldest_runtime(content)}


def quantize(content: bytes, precision: str, calibration: Calibration | None = None) -> bytes:
    """A model in float32 with its network in 'float16' or 'int8'; from logits and deltas on all stays float32.

    In 'float16' the weights of convolutions are stored in half; the runtime computes in float32 (on a GPU it may not).
    In 'int8' weights and activations are 8-bit integers, and each head has its own scale on each level.

    Raises:
        InputError: the quantizer refuses the network.
    """
    quantizer = _quantizer(content, _float16 if precision == "float16" else _int8)
    if calibration is not None:
        calibration = _with_room_for_biases(content, calibration)
    try:
        with quiet():
            return bytes(quantizer.quantize(calibration, enable_progress_bar=False).quantized_model)
    except ValueError as error:  # of kernels that are all 0, for one
        raise InputError(f"this network can't be converted to {precision}: {first_line(error)}.") from None


def calibrate(detector: Detector, shape: Shape, canvases: Iterable[np.ndarray]) -> Calibration:
    """The range of each tensor of the network over some canvases `(H, W, 3)` uint8, which INT8 needs.

    The network is run alone: the calibration can't follow the loop of NMS, which stays float32 anyhow. Its batch is the
    file's, with which the converter's names change; the last one begins again with the first canvases.
    """
    content, size = _converted(network_graph(detector, shape)), shape[0] or 1
    canvases = list(canvases)
    batches = [
        np.stack([canvases[(start + row) % len(canvases)] for row in range(size)])
        for start in range(0, len(canvases), size)
    ]
    recipe = _quantizer(content, _int8).get_quantization_recipe()
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe)
    # Of all pictures, not a moving average over them, which would cut off the scores of the surest detections.
    with quiet():
        collector = calibrator.Calibrator(content, os.cpu_count() or 1, qsv_update_func=qsv_utils.min_max_update)
        collector.calibrate({_SIGNATURE: [{"images": batch} for batch in batches]}, manager)
    ranges = collector.get_model_qsvs()
    for one in ranges.values():
        # Where all values are 0, integers have no scale, and the runtime would end the process.
        if np.all(one["max"] - one["min"] < SMALLEST_RANGE):
            one["max"] = one["min"] + np.float32(SMALLEST_RANGE)
    return ranges


def _with_room_for_biases(content: bytes, calibration: Calibration) -> Calibration:
    """Ranges in which every bias is a 32-bit integer; the quantizer would cut off larger ones without a word.

    A bias overflows where the inputs or the kernel are next to nothing, and then their steps may be longer: a kernel's
    channel reaches at least a thousandth of the others', and the input as far as it takes.
    """
    from ai_edge_litert import schema_py_generated as schema

    model, ranges = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content)), dict(calibration)
    graph, codes = model.subgraphs[0], [code.builtinCode for code in model.operatorCodes]
    makers = {output: op for op in graph.operators for output in op.outputs}
    same_step = {schema.BuiltinOperator.PAD, schema.BuiltinOperator.PADV2, schema.BuiltinOperator.MAX_POOL_2D}

    def name(tensor: int) -> str:
        return graph.tensors[tensor].name.decode()

    def values(tensor: int) -> np.ndarray:
        data = model.buffers[graph.tensors[tensor].buffer].data
        return np.frombuffer(bytes(data), np.float32).reshape(graph.tensors[tensor].shape)

    for op in graph.operators:
        if codes[op.opcodeIndex] != schema.BuiltinOperator.CONV_2D or name(op.inputs[0]) not in ranges:
            continue
        source, kernel, bias = op.inputs
        low, high = (float(ranges[name(source)][end].min()) for end in ("min", "max"))
        low, high = min(low, 0.0), max(high, 0.0)
        reach, least = np.abs(values(kernel)).max((1, 2, 3)), np.abs(values(bias)) / LARGEST_BIAS
        overflows = least > reach / 127 * (high - low) / 255
        if not overflows.any():
            continue
        reach = np.where(overflows, np.maximum(reach, max(reach.max() / 1024, 1e-6)), reach)
        limits = ranges.get(name(kernel), {"max": np.zeros(1)})["max"]
        limits = np.maximum(limits, reach[:, None, None, None]).astype(np.float32)
        ranges[name(kernel)] = {"min": -limits, "max": limits}
        high = max(high, low + 255 * float((least[overflows] / (reach[overflows] / 127)).max()))
        while True:
            found = ranges[name(source)]
            ranges[name(source)] = {**found, "max": np.maximum(found["max"], np.float32(high))}
            maker = makers.get(source)
            if maker is None or codes[maker.opcodeIndex] not in same_step:
                break
            source = maker.inputs[0]
    return ranges


def _converted(function: tf.types.experimental.GenericFunction) -> bytes:
    """A function with variables as a LiteRT model; by a SavedModel, which is how the converter finds the variables."""
    with quiet(), temporary_saved_model(function.get_concrete_function(), _SIGNATURE) as folder:
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return converter.convert()


def _quantizer(content: bytes, recipe: Callable[[Any], None]) -> Any:
    from ai_edge_quantizer import quantizer

    result = quantizer.Quantizer(_with_unique_names(content))
    recipe(result)
    return result


def _with_unique_names(content: bytes) -> bytearray:
    """The model with tensors of loops renamed, whose names TensorFlow 2.15's converter repeats."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    for index, graph in enumerate(model.subgraphs[1:], 1):
        for tensor in graph.tensors:
            tensor.name = f"postprocessing/{index}/".encode() + tensor.name
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytearray(builder.Output())


def _float16(quantizer: Any) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping

    quantizer.add_weight_only_config(
        f"^{NETWORK}/",
        qtyping.TFLOperationName.CONV_2D,
        num_bits=16,
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )


def _int8(quantizer: Any) -> None:
    from ai_edge_quantizer import qtyping

    # These do nearly all of the work; group normalisation's squares, for one, are better off in float32. An operator
    # whose name begins with a later scope, such as the reshaping that continues a head's, isn't meant.
    names = qtyping.TFLOperationName
    for name in (names.CONV_2D, names.ADD, names.MAX_POOL_2D, names.PAD):
        quantizer.add_static_config(f"^{NETWORK}/", name, activation_num_bits=8, weight_num_bits=8)


def _oldest_runtime(content: bytes) -> str:
    """The runtime that a file asks for, as the converter wrote into it."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == b"min_runtime_version":
            text = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
            return f"LiteRT {text.rstrip(bytes(1)).decode()}"
    return "LiteRT"
