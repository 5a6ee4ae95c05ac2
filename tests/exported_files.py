"""Small ONNX and LiteRT files with the interface of exported detectors, whose answers can be worked out by hand.

On each picture that isn't dark in red they find two objects: one of class 0 as large as the picture, whose score is the
canvas' mean red in 0–1, and one of class 2 in its upper left quarter, whose score is a quarter of the mean blue.
"""

import tempfile

from retinanet_tf.runtime.metadata import write_metadata

HEIGHT, WIDTH = 32, 48
LABELS = [{"id": 1, "name": "a,b"}, {"id": 18, "name": "żółw"}, {"id": 90, "name": '"x"'}]
METADATA = {
    "format": "onnx",
    "precision": "float32",
    "made_by": {"retinanet_tf": "test"},
    "labels": LABELS,
    "input": {"batch": None, "height": HEIGHT, "width": WIDTH},
    "preprocessing": {"padding": [0, 20, 30]},
    "detect": {"max_detections": 3},
}
_ONNX = """
<ir_version: 8, opset_import: ["": 17]>
detector (uint8[B, 32, 48, 3] images, float[B, 2] sizes)
  => (float[B, 3, 4] boxes, float[B, 3] scores, int32[B, 3] labels, int32[B] num_detections)
  <int64[1] first = {0}, int64[1] second = {1}, int64[1] last = {2}, int64[1] flat = {-1},
   float full = {255}, float quarter = {0.25}, float half = {0.5}, float dark = {0.05},
   float[1, 3] classes = {0, 2, -1}, float[1, 3] empty = {-1, -1, -1}, float[1] two = {2}>
{
  pixels = Cast <to = 1> (images)
  total = ReduceMean <axes = [1, 2], keepdims = 0> (pixels)
  mean = Div (total, full)
  red = Gather <axis = 1> (mean, first)
  all_blue = Gather <axis = 1> (mean, last)
  blue = Mul (all_blue, quarter)
  is_found = Greater (red, dark)
  found = Cast <to = 1> (is_found)
  none = Sub (found, found)
  all_scores = Concat <axis = 1> (red, blue, none)
  scores = Mul (all_scores, found)
  height = Gather <axis = 1> (sizes, first)
  width = Gather <axis = 1> (sizes, second)
  whole = Concat <axis = 1> (none, none, width, height)
  corner = Mul (whole, half)
  nowhere = Sub (whole, whole)
  whole_1 = Unsqueeze (whole, second)
  corner_1 = Unsqueeze (corner, second)
  nowhere_1 = Unsqueeze (nowhere, second)
  all_boxes = Concat <axis = 1> (whole_1, corner_1, nowhere_1)
  found_1 = Unsqueeze (found, second)
  boxes = Mul (all_boxes, found_1)
  float_labels = Where (is_found, classes, empty)
  labels = Cast <to = 6> (float_labels)
  twice = Mul (found, two)
  flat_count = Reshape (twice, flat)
  num_detections = Cast <to = 6> (flat_count)
}
"""


def write_onnx(path, batch=None, metadata=METADATA, **names):
    """The ONNX file; `names` renames inputs and outputs."""
    import onnx

    text = _ONNX if batch is None else _ONNX.replace("B,", f"{batch},").replace("[B]", f"[{batch}]")
    for old, new in names.items():
        text = text.replace(old, new)
    onnx.save(onnx.parser.parse_model(text), path)
    _write_metadata(path, metadata, batch)


def write_litert(path, batch=1, metadata=METADATA):
    """The LiteRT file."""
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([batch, HEIGHT, WIDTH, 3], tf.uint8, name="images"),
                tf.TensorSpec([batch, 2], tf.float32, name="sizes"),
            ]
        )
        def detect(self, images, sizes):
            mean = tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 2]) / 255.0
            red, blue = mean[:, :1], mean[:, 2:] / 4
            is_found = red > 0.05
            found = tf.cast(is_found, tf.float32)
            none = tf.zeros_like(found)
            whole = tf.concat([none, none, sizes[:, 1:], sizes[:, :1]], axis=1) * found
            return {
                "boxes": tf.stack([whole, whole / 2, tf.zeros_like(whole)], axis=1),
                "scores": tf.concat([red, blue, none], axis=1) * found,
                "labels": tf.where(is_found, [[0, 2, -1]], [[-1, -1, -1]]),
                "num_detections": tf.where(is_found[:, 0], 2, 0),
            }

    module = Module()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=module.detect)
        content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    with open(path, "wb") as file:
        file.write(content)
    _write_metadata(path, metadata, batch)


def _write_metadata(path, metadata, batch):
    if metadata is not None:
        write_metadata(path, {**metadata, "input": {**metadata["input"], "batch": batch}})
