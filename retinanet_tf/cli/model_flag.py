"""The flag --model: a trained detector, by its published name or its path."""

from absl import flags

MODEL = flags.DEFINE_string(
    "model",
    None,
    "Name that `retinanet models` lists, run directory, imported weights, or a .keras file; for predict also what "
    "export wrote: a SavedModel's folder, a .onnx or .tflite file.",
)
flags.DEFINE_alias("checkpoint", "model")
