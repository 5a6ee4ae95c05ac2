"""Client of TensorFlow Serving: images to a served detector, detections back.

retinanet client --image=photo.jpg --server=localhost:8500
retinanet client --image=a.jpg,b.png --server=localhost:8501 --rest --output=detections.json
"""

from typing import Any

from absl import flags

from retinanet_tf.cli.serving_client import detect
from retinanet_tf.files import read_bytes, write_json
from retinanet_tf.inference.results import MIN_SCORE
from retinanet_tf.text import printable

_IMAGE = flags.DEFINE_list("image", None, "JPEG or PNG files, separated by commas; one request.", required=True)
_SERVER = flags.DEFINE_string("server", "localhost:8500", "HOST:PORT of the server (gRPC 8500, REST 8501).")
_REST = flags.DEFINE_boolean("rest", False, "Ask over REST instead of gRPC.")
_MODEL = flags.DEFINE_string("model", "retinanet", "The model's name at the server.")
_VERSION = flags.DEFINE_integer(
    "version", None, "The model's version; the newest by default.", lower_bound=0, upper_bound=2**63 - 1
)
_TIMEOUT = flags.DEFINE_float(
    "timeout",
    60.0,
    "Seconds to wait for the answer; over REST, for each part of it.",
    lower_bound=0.001,
    upper_bound=86400.0,
)
_MIN_SCORE = flags.DEFINE_float(
    "min_score",
    MIN_SCORE,
    "Detections below aren't printed (--output gets them all).",
    lower_bound=0.0,
    upper_bound=1.0,
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the detections, in COCO's results format.")


def main() -> None:
    """Sends the images and prints a line per detection."""
    images = [read_bytes(path, "the image") for path in _IMAGE.value]
    model: dict[str, Any] = {"model": _MODEL.value, "version": _VERSION.value}
    answer = detect(images, _SERVER.value, rest=_REST.value, timeout=_TIMEOUT.value, names=_IMAGE.value, **model)
    for path, rows in zip(_IMAGE.value, answer, strict=True):
        print(printable(f"{path}: {len(rows)} detections"))
        for row in rows:
            if row["score"] >= _MIN_SCORE.value:
                x, y, width, height = row["bbox"]
                box = f"({x:.1f}, {y:.1f}) to ({x + width:.1f}, {y + height:.1f})"
                print(f"  {printable(row['category']):>16} {row['score']:.3f}  {box}")
    if _OUTPUT.value:
        pairs = zip(_IMAGE.value, answer, strict=True)
        write_json(_OUTPUT.value, [{"image_id": path, **row} for path, rows in pairs for row in rows])
