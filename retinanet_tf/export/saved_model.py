"""A detector as a SavedModel for TensorFlow Serving: signatures, label map, provenance, warm-up requests."""

import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from retinanet_tf.errors import InputError
from retinanet_tf.export import image_decoding as decoding
from retinanet_tf.export.signatures import SIGNATURES, ServedDetector
from retinanet_tf.files import make_folder, write_json
from retinanet_tf.inference.detector import Detector, settings
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector
from retinanet_tf.provenance import provenance

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
) -> Path:
    """Writes a SavedModel that needs tensorflow alone; see `ServedDetector` for its signatures.

    assets/ has labels.json and export.json (model, preprocessing, thresholds, versions, metrics);
    assets.extra/tf_serving_warmup_requests what the server replays before it answers anyone.

    Args:
      detector: a trained detector.
      directory: where versions live; the model goes into its next version (1, 2, …). If the last part of the path is
        a number, that is the version.
      metrics: numbers to keep with the model, as `evaluate` returned them.
      warmup_images: encoded images for the warm-up requests, one request each; by default a generated one in the
        model's own size, wide and tall.
      model_name: the name that the warm-up requests ask for.
      max_pixels: larger encoded images are refused from their header.
      precision: what the network computes in: 'float32', 'float16' or 'bfloat16'. Answers are float32 always.

    Returns:
      The version's folder. It is written aside and renamed: a server that watches sees it whole.

    Raises:
      InputError: the version exists, the place can't be written, a category id is too large for the outputs, or the
        detector augments its images.
    """
    if isinstance(detector, AugmentedDetector):
        raise InputError("a detector with test-time augmentation can't be exported; export the plain one.")
    directory = _version_folder(Path(directory))
    labels = detector.label_map
    unfit = [category for category in labels.ids if abs(category) > _LARGEST_ID]
    if unfit:
        raise InputError(f"category id {unfit[0]} can't be served: detection_classes holds ids up to {_LARGEST_ID}.")
    make_folder(directory.parent)
    warmup_images = list(warmup_images) or _generated_images(detector)
    # A temporary folder's name isn't a number, so a server doesn't take it for a version.
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        served = ServedDetector(detector, max_pixels, precision)
        signatures = {name: getattr(served, name).get_concrete_function() for name in SIGNATURES}
        # Nothing but the graph, which holds the weights: Keras' objects would want their classes back.
        module = tf.Module(name="served_detector")
        with tempfile.TemporaryDirectory() as folder:
            labels.save(os.path.join(folder, "labels.json"))
            write_json(os.path.join(folder, "export.json"), _description(detector, metrics, max_pixels, precision))
            module.assets = [tf.saved_model.Asset(str(path)) for path in sorted(Path(folder).iterdir())]
            tf.saved_model.save(module, str(aside), signatures=signatures)
        _write_warmup(aside / "assets.extra", warmup_images, model_name)
        os.chmod(aside, 0o755)
        os.replace(aside, directory)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"{directory} can't be written: {getattr(error, 'strerror', None) or error}.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def _version_folder(directory: Path) -> Path:
    if not directory.name.isdecimal():
        present = [int(entry.name) for entry in directory.glob("*") if entry.name.isdecimal()]
        return directory / str(max(present, default=0) + 1)
    if directory.exists():
        raise InputError(f"{directory} exists; a served version never changes, export to another number.")
    return directory


def _description(detector: Detector, metrics: dict | None, max_pixels: int, precision: str) -> dict:
    low, high = detector.image_size, detector.max_size
    return {
        "model": detector.model.get_config(),
        "detector": settings(detector),
        "precision": precision,
        "preprocessing": (
            f"RGB 0-255; bilinear resize (half-pixel centres, no antialiasing) so that the shorter side is {low} or "
            f"the longer one {high} pixels, whichever is smaller; normalisation is part of the model."
        ),
        "inputs": {
            "serving_default": f"input_tensor: [B] encoded {decoding.FORMATS}, at most {max_pixels} pixels each",
            "image_tensor": "input_tensor: [B, H, W, 3] uint8 RGB",
            "tf_example": "tf_example: [B] serialised tf.Example with image/encoded",
        },
        "outputs": "detection_boxes are ymin, xmin, ymax, xmax in 0-1; detection_classes are the ids of labels.json",
        "metrics": metrics,
        "made_by": provenance(),
    }


def _generated_images(detector: Detector) -> list[bytes]:
    """A wide and a tall grey JPEG, 4:3, that come out at the detector's own size."""
    short = detector.image_size
    long = min(short * 4 // 3, detector.max_size)
    images = []
    for size in ((long, short), (short, long)):
        file = io.BytesIO()
        Image.fromarray(np.full((*size, 3), 114, np.uint8)).save(file, "JPEG")
        images.append(file.getvalue())
    return images


def _write_warmup(folder: Path, images: Sequence[bytes], model_name: str) -> None:
    """assets.extra/tf_serving_warmup_requests: a TFRecord of PredictionLog, as TensorFlow Serving's docs say."""
    # Imported here: whoever only trains and evaluates needn't have it.
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for batch in ([image] for image in images):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = "serving_default"
            request.inputs["input_tensor"].CopyFrom(tf.make_tensor_proto(batch, tf.string))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
