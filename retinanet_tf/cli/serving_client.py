"""A client of TensorFlow Serving: encoded images to a served detector, over gRPC or REST, detections back.

Boxes are in pixels of the image as it is stored, whose size is read from the file's header.
"""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from retinanet_tf.errors import InputError

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "detection_class_names", "num_detections")


def detect(
    images: Sequence[bytes],
    server: str,
    *,
    rest: bool = False,
    model: str = "retinanet",
    version: int | None = None,
    timeout: float = 60.0,
) -> list[list[dict[str, Any]]]:
    """Sends encoded images in one request.

    Args:
      images: JPEG or PNG files as bytes.
      server: HOST:PORT (TensorFlow Serving's ports are 8500 for gRPC and 8501 for REST).
      rest: REST instead of gRPC.
      model: the model's name at the server.
      version: its version; None asks for the newest.
      timeout: seconds to wait for the answer.

    Returns:
      Per image its detections, best first, as rows of COCO's results format without "image_id": {"category_id",
      "bbox": [x, y, width, height] in pixels, "score"}, and "category", the name.

    Raises:
      InputError: the server isn't reached, doesn't have the model, or refuses an image (its index is named).
    """
    sizes = [_size(image, index) for index, image in enumerate(images)]
    ask = _ask_rest if rest else _ask_grpc
    answer = ask(list(images), server, model, version, timeout)
    return [_detections(answer, row, *size) for row, size in enumerate(sizes)]


def _size(image: bytes, index: int) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"images[{index}] can't be read as an image; nothing is sent.") from error


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
                "category": name.decode() if isinstance(name, bytes) else name,
            }
        )
    return rows


def _ask_grpc(images: list[bytes], server: str, model: str, version: int | None, timeout: float) -> dict[str, Any]:
    import grpc

    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server, options=unlimited) as channel:
        try:
            # Without serializers the messages are bytes: TensorFlow Serving's Python protocol imports TensorFlow.
            predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            response = predict(_request(images, model, version), timeout=timeout)
        except grpc.RpcError as error:
            raise InputError(f"{server} answers {error.code().name}: {_last_line(error.details())}") from error
    outputs = (_fields(entry) for entry in _fields(response)[1])
    return {entry[1][0].decode(): _array(_fields(entry[2][0])) for entry in outputs}


def _request(images: list[bytes], model: str, version: int | None) -> bytes:
    """PredictRequest of tensorflow_serving/apis/predict.proto: model_spec 1, inputs 2 (a map to TensorProto)."""
    spec = _field(1, model.encode()) + _field(3, b"serving_default")
    if version is not None:
        spec += _field(2, _field(1, version))
    shape = _field(2, _field(1, len(images)))
    tensor = _field(1, 7) + _field(2, shape) + b"".join(_field(8, image) for image in images)  # 7: DT_STRING
    return _field(1, spec) + _field(2, _field(1, b"input_tensor") + _field(2, tensor))


def _array(tensor: dict[int, list]) -> np.ndarray:
    """A TensorProto of strings (string_val 8) or floats (tensor_content 4 or float_val 5), whose shape is field 2."""
    shape = [_fields(dim).get(1, [0])[0] for dim in _fields(tensor[2][0]).get(2, [])]
    if 8 in tensor:
        return np.array(tensor[8], object).reshape(shape)
    return np.frombuffer(b"".join(tensor.get(4, []) + tensor.get(5, [])), "<f4").reshape(shape)


def _field(number: int, value: bytes | int) -> bytes:
    """A field as protocol buffers encode it: an integer, or bytes after their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


def _fields(message: bytes) -> dict[int, list]:
    """Field number → its values, integers or bytes, of an encoded message."""
    fields: dict[int, list] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while position < len(message):
        number, kind = divmod(varint(), 8)
        size = varint() if kind in (0, 2) else {1: 8, 5: 4}[kind]
        values = fields.setdefault(number, [])
        if kind == 0:
            values.append(size)
        else:
            values.append(message[position : position + size])
            position += size
    return fields


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
    except urllib.error.HTTPError as error:
        raise InputError(f"{server} answers {error.code}: {_last_line(error.read().decode())}") from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{server} doesn't answer as TensorFlow Serving does: {error}.") from error
    return {name: [row[name] for row in predictions] for name in OUTPUTS}


def _last_line(message: str | None) -> str:
    """The server's message without the graph's nodes around an assertion."""
    text = (message or "").strip() or "no reason given"
    if "images[" in text:
        return text[text.index("images[") :].split("\n")[0].split(".]")[0].split("\\n")[0].rstrip("]. ") + "."
    return text.splitlines()[-1]
