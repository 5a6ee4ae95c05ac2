"""Asks a served detector: pictures to TensorFlow Serving, what is on them back.

python -m experiments.client --image=photo.jpg --server=localhost:8500
python -m experiments.client --image=a.jpg,b.png --server=localhost:8501 --rest --output=detections.json
"""

from absl import flags

from experiments import cli
from retinanet_tf.cli.client import detect
from retinanet_tf.files import read_bytes, write_json

_IMAGE = flags.DEFINE_list("image", None, "JPEG, PNG or BMP files, separated by commas; one request.", required=True)
_SERVER = flags.DEFINE_string("server", "localhost:8500", "HOST:PORT of the server (gRPC 8500, REST 8501).")
_REST = flags.DEFINE_boolean("rest", False, "Ask over REST instead of gRPC.")
_MODEL = flags.DEFINE_string("model", "retinanet", "The model's name at the server.")
_VERSION = flags.DEFINE_integer("version", None, "The model's version; the newest by default.")
_TIMEOUT = flags.DEFINE_float("timeout", 60.0, "Seconds to wait for the answer.")
_MIN_SCORE = flags.DEFINE_float("min_score", 0.3, "Detections below aren't printed (--output gets them all).")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the answer.")


def main() -> None:
    """Asks, prints a line a detection."""
    images = [read_bytes(path, "the image") for path in _IMAGE.value]
    options = {"rest": _REST.value, "model": _MODEL.value, "version": _VERSION.value, "timeout": _TIMEOUT.value}
    answer = detect(images, _SERVER.value, **options)
    for path, found in zip(_IMAGE.value, answer, strict=True):
        print(f"{path}: {len(found)} detections")
        for one in found:
            if one["score"] >= _MIN_SCORE.value:
                x1, y1, x2, y2 = one["box"]
                print(f"  {one['category']:>16} {one['score']:.3f}  ({x1:.1f}, {y1:.1f}) to ({x2:.1f}, {y2:.1f})")
    if _OUTPUT.value:
        files = zip(_IMAGE.value, answer, strict=True)
        write_json(_OUTPUT.value, [{"file": path, "detections": found} for path, found in files])


if __name__ == "__main__":
    cli.run(main)
