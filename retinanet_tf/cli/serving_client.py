"""A client of TensorFlow Serving: encoded images to a served detector, over gRPC or REST, detections back.

Boxes are in pixels of the image as it is stored, whose size is read from the file's header.
"""

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from retinanet_tf.data.sources.image_headers import quiet_pillow
from retinanet_tf.errors import InputError, first_line

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "detection_class_names", "num_detections")


def detect(
    images: Sequence[bytes],
    server: str,
    *,
    rest: bool = False,
    model: str = "retinanet",
    version: int | None = None,
    timeout: float = 60.0,
    names: Sequence[str] | None = None,
) -> list[list[dict[str, Any]]]:
    """Sends encoded images in one request.

    Args:
      images: JPEG or PNG files as bytes.
      server: HOST:PORT (TensorFlow Serving's ports are 8500 for gRPC and 8501 for REST).
      rest: REST instead of gRPC.
      model: the model's name at the server.
      version: its version; None asks for the newest.
      timeout: seconds to wait for the answer.
      names: of the images in errors, by default "images[0]" and so on.

    Returns:
      Per image its detections, best first, as rows of COCO's results format without "image_id": {"category_id",
      "bbox": [x, y, width, height] in pixels, "score"}, and "category", the name.

    Raises:
      InputError: the server isn't reached, doesn't have the model, or refuses an image (its index is named).
    """
    if not images:
        raise InputError("no image is given; name JPEG or PNG files.")
    names = names or [f"images[{index}]" for index in range(len(images))]
    sizes = list(map(_size, images, names))
    ask = _ask_rest if rest else _ask_grpc
    answer = ask(list(images), server, model, version, timeout)
    try:
        detections = [_detections(answer, row, *size) for row, size in enumerate(sizes)]
    except (KeyError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{server} doesn't answer as TensorFlow Serving does: {first_line(error)}.") from error
    if len(answer["num_detections"]) > len(images):
        raise InputError(f"{server} answers for more images than the {len(images)} that were sent.")
    return detections


def _size(image: bytes, name: str) -> tuple[int, int]:
    try:
        with quiet_pillow(), Image.open(io.BytesIO(image)) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{name} can't be read as an image; nothing is sent.") from error


def _detections(answer: dict[str, Any], index: int, width: int, height: int) -> list[dict[str, Any]]:
    rows = []
    for rank in range(int(answer["num_detections"][index])):
        y1, x1, y2, x2 = (float(side) for side in answer["detection_boxes"][index][rank])
        name = answer["detection_class_names"][index][rank]
        rows.append(
            {
                "category_id": int(answer["detection_classes"][index][rank]),
                "bbox": [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height],
                "score": float(answer["detection_scores"][index][rank]),
                "category": name.decode() if isinstance(name, bytes) else str(name),
            }
        )
    return rows


_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Dim": {"size": (1, "int64")},
    "Shape": {"dim": (2, "repeated Dim")},
    "Tensor": {
        "dtype": (1, "int64"),
        "tensor_shape": (2, "Shape"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "repeated float"),
        "string_val": (8, "repeated bytes"),
    },
    "Version": {"value": (1, "int64")},
    "Spec": {"name": (1, "bytes"), "version": (2, "Version"), "signature_name": (3, "bytes")},
    "Named": {"key": (1, "bytes"), "value": (2, "Tensor")},
    "Request": {"model_spec": (1, "Spec"), "inputs": (2, "repeated Named")},
    "Response": {"outputs": (1, "repeated Named")},
}
"""The parts of tensorflow_serving/apis/predict.proto that are used here: field → number and type."""
_DT_STRING = 7


def _message(name: str) -> Any:
    """A class of _MESSAGES. TensorFlow Serving's own Python modules of them import TensorFlow."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="predict.proto")
    for message, fields in _MESSAGES.items():
        entries = file.message_type.add(name=message).field
        for field, (number, text) in fields.items():
            *repeated, kind = text.split()
            entry = entries.add(name=field, number=number, label=3 if repeated else 1)
            if kind in _MESSAGES:
                entry.type_name = kind
            else:
                entry.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _ask_grpc(images: list[bytes], server: str, model: str, version: int | None, timeout: float) -> dict[str, Any]:
    try:
        import grpc
    except ImportError as error:
        raise InputError(
            f"gRPC isn't installed ({error}): pip install 'retinanet_tf[serving]', or use --rest."
        ) from None
    request = _message("Request")()
    request.model_spec.name, request.model_spec.signature_name = model.encode(), b"serving_default"
    if version is not None:
        request.model_spec.version.value = version
    tensor = request.inputs.add(key=b"input_tensor").value
    tensor.dtype = _DT_STRING
    tensor.tensor_shape.dim.add(size=len(images))
    tensor.string_val.extend(images)
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server, options=unlimited) as channel:
        try:
            predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            response = _message("Response").FromString(predict(request.SerializeToString(), timeout=timeout))
        except grpc.RpcError as error:
            raise InputError(f"{server} answers {error.code().name}: {_last_line(error.details())}") from error
    answer = {entry.key.decode(): _array(entry.value) for entry in response.outputs}
    if missing := [name for name in OUTPUTS if name not in answer]:
        raise InputError(f"{server}'s model {model} isn't a detector of this package: it has no {missing[0]!r}.")
    return answer


def _array(tensor: Any) -> np.ndarray:
    content = np.frombuffer(tensor.tensor_content, "<f4") if tensor.tensor_content else np.array(tensor.float_val)
    values = np.array(list(tensor.string_val), object) if tensor.dtype == _DT_STRING else content
    return values.reshape([dim.size for dim in tensor.tensor_shape.dim])


def _ask_rest(images: list[bytes], server: str, model: str, version: int | None, timeout: float) -> dict[str, Any]:
    path = f"/versions/{version}" if version is not None else ""
    body = {
        "signature_name": "serving_default",
        "instances": [{"b64": base64.b64encode(image).decode()} for image in images],
    }
    request = urllib.request.Request(
        f"http://{server}/v1/models/{model}{path}:predict",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            predictions = json.loads(response.read())["predictions"]
            return {name: [row[name] for row in predictions] for name in OUTPUTS}
    except urllib.error.HTTPError as error:
        raise InputError(f"{server} answers {error.code}: {_last_line(_message_of(error))}") from error
    except KeyError as error:
        raise InputError(f"{server}'s model {model} isn't a detector of this package: it has no {error}.") from error
    except (OSError, ValueError, TypeError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{server} doesn't answer as TensorFlow Serving does: {reason}.") from error


def _message_of(error: urllib.error.HTTPError) -> str:
    """What TensorFlow Serving says of an error; the status' name if it isn't that, or the body breaks off."""
    try:
        return str(json.loads(error.read())["error"])
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
        return str(error.reason)


def _last_line(message: str | None) -> str:
    """The server's message without the graph's nodes around an assertion."""
    text = (message or "").strip() or "no reason given"
    if "images[" in text:
        return text[text.index("images[") :].split("\n")[0].split(".]")[0].split("\\n")[0].rstrip("]. ") + "."
    return text.splitlines()[-1]
