"""Export of a detector as a SavedModel for TensorFlow Serving: signatures, label map, provenance, warm-up requests."""

import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from retinanet_tf.errors import InputError
from retinanet_tf.export import image_decoding as decoding
from retinanet_tf.export.frozen_graph import Shape, check_shape, shape_name
from retinanet_tf.export.quiet import quiet
from retinanet_tf.export.signatures import SIGNATURES, ServedDetector
from retinanet_tf.export.temporary import temporary_saved_model
from retinanet_tf.files import ended_by_sigterm, output_folder, write_json
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.saved_model import check_loadable
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.provenance import provenance

PRECISIONS = ("float32", "float16", "bfloat16")
EXTRA = "assets.extra"
"""The folder of a SavedModel that servers, not TensorFlow, look into."""
_LARGEST_ID = 2**24  # float32, the type of detection_classes, holds every whole number up to here


def export(
    detector: Detector,
    directory: str | os.PathLike,
    *,
    metrics: dict | None = None,
    warmup_images: Sequence[bytes] = (),
    model_name: str = "retinanet",
    max_pixels: int = decoding.MAX_PIXELS,
    precision: str = "float32",
    fixed_shapes: Sequence[Shape] = (),
    jit_compile: bool = False,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Writes a SavedModel that needs tensorflow alone; see `ServedDetector` for its signatures.

    assets/ has labels.json and export.json (model, preprocessing, thresholds, versions, metrics);
    assets.extra/tf_serving_warmup_requests what the server replays before its first answer.

    Args:
        detector: a trained detector, without test-time augmentation.
        directory: of the versions; the model becomes its next one (1, 2, …). If the last component of the path is a
            number, that is the version.
        metrics: numbers to keep with the model, as `evaluate` returned them.
        warmup_images: encoded images for the warm-up requests, one request each; by default generated ones in the
            model's own size, wide and tall.
        model_name: the name that the warm-up requests ask for.
        max_pixels: larger encoded images are refused from their header.
        precision: what the network computes in: 'float32', 'float16' or 'bfloat16'. Answers are always float32.
        fixed_shapes: (B, H, W) of further signatures "fixed_BxHxW", for B RGB images of H×W pixels at once that aren't
            resized: pad them at the right and bottom. H and W are multiples of 32. Each gets a warm-up request.
        jit_compile: compile those signatures with XLA, for servers that have it.
        check: is called with the folder before it gets its name; if it raises, nothing is left.

    Returns:
        The version's folder. It is written aside and renamed: a server that watches it never sees half of it, and an
        interrupted export (Ctrl-C, SIGTERM) leaves nothing. What `kill -9` left the next export removes.

    Raises:
        InputError: the version exists, the folder can't be written, a category id is too large for the outputs, a
            shape can't be used, or the detector isn't a `Detector`.
    """
    if not isinstance(detector, Detector):
        raise InputError(f"{type(detector).__name__} can't be exported; give the Detector, without augmentation.")
    if jit_compile and not fixed_shapes:
        raise InputError("jit_compile needs fixed_shapes: XLA compiles a graph for one batch and one size of images.")
    for shape in fixed_shapes:
        check_shape(shape)
    if Path(directory).suffix in (".onnx", ".tflite"):
        raise InputError(f"{directory} is a file's name; a SavedModel is a folder. For a file give format.")
    directory = _version_folder(Path(directory))
    too_large = [category for category in detector.label_map.ids if abs(category) > _LARGEST_ID]
    if too_large:
        raise InputError(
            f"category id {too_large[0]} can't be served: detection_classes holds ids up to {_LARGEST_ID}."
        )
    check_loadable(directory)
    try:
        json.dumps(metrics, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"metrics can't be kept as JSON ({error}); give a dict of plain numbers.") from None
    if not isinstance(metrics, dict | None):
        raise InputError(f"metrics must be a dict of names and numbers, not {type(metrics).__name__}.")
    images = list(warmup_images) or _generated_images(detector, max_pixels)
    _check_images(images, max_pixels)
    exported = with_precision(detector, precision)
    try:
        with ended_by_sigterm(), output_folder(directory.parent), _written_aside(directory) as aside:
            frozen = freeze(exported)
            served = ServedDetector(detector, frozen, max_pixels)
            signatures = {name: getattr(served, name).get_concrete_function() for name in SIGNATURES}
            # A module with nothing but the graph, which holds the weights: Keras' objects would need their classes.
            module = tf.Module(name="served_detector")
            # XLA takes weights as variables: as constants they would be compiled.
            network = (lambda canvases: exported.levels(canvases, training=False)) if jit_compile else frozen
            for shape in fixed_shapes:
                fixed = served.fixed(shape, network, jit_compile).get_concrete_function()
                signatures[fixed_name(shape)] = fixed
                module.state = list(fixed.variables)
            with tempfile.TemporaryDirectory() as folder:
                detector.label_map.save(os.path.join(folder, "labels.json"))
                write_json(
                    os.path.join(folder, "export.json"),
                    _description(detector, metrics, max_pixels, precision, signatures),
                )
                module.assets = [tf.saved_model.Asset(str(path)) for path in sorted(Path(folder).iterdir())]
                tf.saved_model.save(module, str(aside), signatures=signatures)
            requests: list[tuple[str, Any]] = [("serving_default", [image]) for image in images]
            requests += [(fixed_name(shape), np.full((*shape, 3), 114, np.uint8)) for shape in fixed_shapes]
            _write_warmup(aside / EXTRA, requests, model_name)
            if check is not None:
                check(aside)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"{directory} can't be written: {getattr(error, 'strerror', None) or error}.") from None
    return directory


def fixed_name(shape: Shape) -> str:
    """The name of the signature for images of one batch and size (B, H, W)."""
    return f"fixed_{shape_name(shape)}"


@contextmanager
def _written_aside(directory: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `directory`, which it becomes if the block ends without an error or a signal."""
    for entry in directory.parent.iterdir():
        if re.fullmatch(r"\.\d+\.\w{8}", entry.name) and (lock := _lock(entry)) is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(lock)
    # Its name isn't a number, so a server doesn't take it for a version.
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    lock = _lock(aside)
    try:
        yield aside
        os.chmod(aside, 0o755)
        os.replace(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Holds a folder until the descriptor is closed or the process ends; None if another one does, or on Windows."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def with_precision(detector: Detector, precision: str) -> Detector:
    """A detector that computes its network in `precision`; weights, decoding, NMS and answers stay float32.

    Raises:
        InputError: a precision that isn't one of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}.")
    if {layer.compute_dtype for layer in detector.model.layers if layer.weights} == {precision}:
        return detector
    model = RetinaNet.from_config({**detector.model.get_config(), "precision": precision})
    model.set_weights([np.asarray(weights, np.float32) for weights in detector.model.get_weights()])
    return Detector(model, detector.label_map, detector.config, detector.image_size, detector.max_size)


def freeze(detector: Detector) -> Callable[[tf.Tensor], dict[str, list[tf.Tensor]]]:
    """The detector's network with constants for weights: canvases `(B, h, w, 3)` → what `detector.levels` returns.

    Constants let TensorFlow prepare the kernels of convolutions once instead of in every call. Only documented
    interfaces are used: the network goes through a SavedModel into a session of TensorFlow 1, whose tool turns
    variables into constants, and comes back as a function.
    """
    keys = [(name, level) for name, levels in detector.levels.output.items() for level in range(len(levels))]

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="canvases")], autograph=False)
    def network(canvases):
        outputs = detector.levels(canvases, training=False)
        return {f"{name}_{level}": outputs[name][level] for name, level in keys}

    v1, name = tf.compat.v1, "serving_default"
    with (
        quiet(),  # no advice on how to replace TensorFlow 1
        temporary_saved_model(network.get_concrete_function(), name) as folder,
        tf.Graph().as_default() as graph,
        v1.Session() as session,
    ):
        signature = v1.saved_model.load(session, ["serve"], folder).signature_def[name]
        names = sorted({tensor.name.split(":")[0] for tensor in signature.outputs.values()})
        constant = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
    wrapped = v1.wrap_function(lambda: tf.import_graph_def(constant, name=""), [])
    tensor_of = wrapped.graph.get_tensor_by_name
    outputs = {key: tensor_of(tensor.name) for key, tensor in signature.outputs.items()}
    pruned = wrapped.prune([tensor_of(signature.inputs["canvases"].name)], outputs)

    def frozen(canvases: tf.Tensor) -> dict[str, list[tf.Tensor]]:
        flat = pruned(canvases)
        result = {kind: [flat[f"{name}_{level}"] for name, level in keys if name == kind] for kind in dict(keys)}
        for logits in result["class_logits"]:
            logits.set_shape([None, None, detector.model.config.num_classes])
        return result

    return frozen


def _version_folder(directory: Path) -> Path:
    if not directory.name.isdecimal():
        versions = [int(entry.name) for entry in directory.glob("*") if entry.name.isdecimal()]
        return directory / str(max(versions, default=0) + 1)
    if directory.exists():
        raise InputError(f"{directory} exists; a served version never changes, export to another number.")
    return directory


def _description(
    detector: Detector, metrics: dict | None, max_pixels: int, precision: str, signatures: Iterable[str]
) -> dict:
    inputs = {
        "serving_default": f"input_tensor: [B] encoded {decoding.FORMATS}, at most {max_pixels} pixels each",
        "image_tensor": "input_tensor: [B, H, W, 3] uint8 RGB",
        "tf_example": "tf_example: [B] serialised tf.Example with image/encoded",
    }
    for name in signatures:
        inputs.setdefault(name, "input_tensor: uint8 RGB of that batch, height and width, not resized")
    if detector.resize == "stretch":
        sizes = f"to {detector.image_size}x{detector.image_size} pixels, proportions lost"
    else:
        sizes = (
            f"so that the shorter side is {detector.image_size} or the longer one {detector.max_size} pixels, "
            "whichever is smaller"
        )
    return {
        "model": detector.model.get_config(),
        "detector": detector.describe(),
        "precision": precision,
        "preprocessing": (
            f"RGB 0-255; bilinear resize (half-pixel centres, no antialiasing) {sizes}; normalisation is part of the "
            "model."
        ),
        "inputs": inputs,
        "outputs": "detection_boxes are ymin, xmin, ymax, xmax in 0-1; detection_classes are the ids of labels.json",
        "metrics": metrics,
        "made_by": provenance(),
    }


def _check_images(images: Sequence[bytes], max_pixels: int) -> None:
    """Refuses warm-up images that the model would refuse, since a server then doesn't load it."""
    try:
        sizes = decoding.check_sizes(decoding.image_sizes(tf.constant(images)), max_pixels)
        for index, image in enumerate(images):
            decoding.check_decoded(decoding.decode(tf.constant(image)), sizes[index], tf.constant(index))
    except tf.errors.InvalidArgumentError as error:
        reason = re.search(r"images\[\d+\] [^.]*", error.message)
        raise InputError(f"warmup_{reason[0] if reason else error.message}.") from None


def _generated_images(detector: Detector, max_pixels: int) -> list[bytes]:
    """A wide and a tall grey JPEG, 4:3, that come out at the detector's own size, unless that is too large."""
    short = detector.image_size
    long = min(short * 4 // 3, detector.max_size)
    scale = min(1.0, math.sqrt(max_pixels / (short * long)))
    short, long = (max(1, int(scale * side)) for side in (short, long))
    images = []
    for size in ((long, short), (short, long)):
        file = io.BytesIO()
        Image.fromarray(np.full((*size, 3), 114, np.uint8)).save(file, "JPEG")
        images.append(file.getvalue())
    return images


def _write_warmup(folder: Path, requests: Sequence[tuple[str, Any]], model_name: str) -> None:
    """Writes assets.extra/tf_serving_warmup_requests, a TFRecord of PredictionLog (TensorFlow Serving's docs)."""
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        logging.warning("no warm-up requests are exported: they need tensorflow-serving-api.")
        return
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for signature, images in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            request.inputs["input_tensor"].CopyFrom(tf.make_tensor_proto(images))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
