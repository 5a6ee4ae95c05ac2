"""Export of a trained detector as a SavedModel for TensorFlow Serving.

    retinanet export --model=runs/mine --output=export/retinanet

writes the next version, export/retinanet/1 at first. It loads with tensorflow alone; serving/ shows how to serve it.
"""

from absl import flags

from retinanet_tf.errors import InputError

_PRECISIONS = ("float32", "float16", "bfloat16")  # as in export/saved_model.py, which imports TensorFlow
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Name that `retinanet models` lists, run directory, imported weights, or a .keras file.",
    required=True,
)
flags.DEFINE_alias("checkpoint", "model")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the model's versions; ending in a number, that version itself.", required=True
)
_METRICS = flags.DEFINE_string("metrics", None, "metrics.json of an evaluation, kept with the model.")
_WARMUP = flags.DEFINE_string(
    "warmup", None, "Pattern of images for the warm-up requests; by default two generated ones."
)
_PRECISION = flags.DEFINE_enum("precision", "float32", _PRECISIONS, "Precision of the network; answers are float32.")
_NAME = flags.DEFINE_string("name", "retinanet", "The model's name at the server, for the warm-up requests.")
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", 50_000_000, "The server refuses larger images from their header.", lower_bound=1
)
_FIXED = flags.DEFINE_list(
    "fixed_shapes", [], "Further signatures for one batch, height and width each, such as 1x800x1344,8x800x1344."
)
_COMPILE = flags.DEFINE_boolean("compile", False, "Compile the signatures of --fixed_shapes with XLA.")


def main() -> None:
    """Exports and prints the folder."""
    from retinanet_tf.export.saved_model import export, fixed_name
    from retinanet_tf.files import read_bytes, read_json
    from retinanet_tf.patterns import matching
    from retinanet_tf.pretrained.by_name import load_detector

    paths = matching(_WARMUP.value) if _WARMUP.value else []
    if _WARMUP.value and not paths:
        raise InputError(f"--warmup={_WARMUP.value} matches no file.")
    shapes = []
    for text in _FIXED.value:
        sides = text.split("x")
        if len(sides) != 3 or not all(side.isdecimal() for side in sides):
            raise InputError(f"--fixed_shapes={text} must be batch x height x width, such as 8x800x1344.")
        shapes.append((int(sides[0]), int(sides[1]), int(sides[2])))
    metrics = read_json(_METRICS.value, "the metrics file") if _METRICS.value else None
    version = export(
        load_detector(_MODEL.value),
        _OUTPUT.value,
        metrics=metrics,
        warmup_images=[read_bytes(path, "the warm-up image") for path in paths],
        model_name=_NAME.value,
        max_pixels=_MAX_PIXELS.value,
        precision=_PRECISION.value,
        fixed_shapes=shapes,
        jit_compile=_COMPILE.value,
    )
    names = ["serving_default (encoded images)", "image_tensor", "tf_example", *map(fixed_name, shapes)]
    print(f"{version}: signatures {', '.join(names)}")
