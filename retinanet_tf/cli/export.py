"""Export of a trained detector as a SavedModel for TensorFlow Serving, or as an ONNX or LiteRT file.

    retinanet export --model=runs/mine --output=export/retinanet
    retinanet export --model=runs/mine --format=onnx --fixed_shapes=1x640x640 --output=mine.onnx
    retinanet export --model=runs/mine --format=litert --precision=int8 --calibration='data/train-*' --output=m.tflite

The first writes the next version, export/retinanet/1 at first, which loads with tensorflow alone; serving/ shows how
to serve it. The others write a file, NMS included, that runs without TensorFlow. Before an export gets its name it is
run beside the detector, and a table tells how their answers differ; it is kept in OUTPUT.parity.json, a SavedModel's in
assets.extra/parity.json. An export whose answers aren't the detector's isn't left, and the status is 1.
"""

import tempfile

from absl import flags

from retinanet_tf.cli.model_flag import MODEL
from retinanet_tf.errors import InputError

# As in export/formats.py, saved_model.py and litert_file.py, which import TensorFlow.
_FORMATS = ("saved_model", "onnx", "litert")
_PRECISIONS = ("float32", "float16", "bfloat16", "int8")
flags.mark_flag_as_required("model")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The .onnx or .tflite file, or the folder of a SavedModel's versions; ending in a number, that version itself.",
    required=True,
)
_FORMAT = flags.DEFINE_enum("format", "saved_model", _FORMATS, "What to write.")
_METRICS = flags.DEFINE_string("metrics", None, "metrics.json of an evaluation, kept with the model.")
_WARMUP = flags.DEFINE_string(
    "warmup", None, "Pattern of images for the warm-up requests; by default two generated ones."
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    _PRECISIONS,
    "Precision of the network; answers are float32. A SavedModel has no int8, LiteRT no bfloat16, ONNX float32 alone.",
)
_NAME = flags.DEFINE_string("name", "retinanet", "The model's name at the server, for the warm-up requests.")
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", 50_000_000, "The server refuses larger images from their header.", lower_bound=1
)
_FIXED = flags.DEFINE_list(
    "fixed_shapes",
    [],
    "Further signatures for one batch, height and width each, such as 1x800x1344,8x800x1344. An ONNX or LiteRT file "
    "has one such shape, by default of one square image; Nx640x640 makes an ONNX file take any number of images.",
)
_COMPILE = flags.DEFINE_boolean("compile", False, "Compile the signatures of --fixed_shapes with XLA.")
_CALIBRATION = flags.DEFINE_string(
    "calibration", None, "Pattern of shards that int8 takes the scales of its integers from: training data."
)
_VALIDATION = flags.DEFINE_string(
    "validation", None, "Pattern of shards that the export is compared with the detector on, AP included."
)
_PAGE = flags.DEFINE_boolean(
    "page",
    False,
    "Beside an ONNX file, also write an HTML page that runs it in the browser, offline. npm downloads onnxruntime-web.",
)
_SAVED_MODEL_ONLY = ("metrics", "warmup", "name", "max_pixels", "compile")


def main() -> None:
    """Exports and prints the folder, or how the file's answers compare."""
    from retinanet_tf.export.formats import export_file, export_saved_model
    from retinanet_tf.export.parity import DifferentAnswers
    from retinanet_tf.export.saved_model import fixed_name
    from retinanet_tf.files import read_bytes, read_json
    from retinanet_tf.patterns import matching
    from retinanet_tf.pretrained.by_name import load_detector
    from retinanet_tf.runtime.page import download_runtime, new_page, write_page

    paths = matching(_WARMUP.value) if _WARMUP.value else []
    if _WARMUP.value and not paths:
        raise InputError(f"--warmup={_WARMUP.value} matches no file.")
    shapes = []
    for text in _FIXED.value:
        sides = text.split("x")
        if len(sides) != 3 or not all(side.isdecimal() for side in sides[sides[0] == "N" :]):
            raise InputError(f"--fixed_shapes={text} must be batch x height x width, such as 8x800x1344.")
        shapes.append((None if sides[0] == "N" else int(sides[0]), int(sides[1]), int(sides[2])))
    if _COMPILE.value and not shapes:
        raise InputError("--compile needs --fixed_shapes: XLA compiles a graph for one batch and one size of images.")
    if _PAGE.value and _FORMAT.value != "onnx":
        raise InputError("--page is for --format=onnx.")
    saved_model = _FORMAT.value == "saved_model"
    if not saved_model:
        for name in _SAVED_MODEL_ONLY:
            if flags.FLAGS[name].present:
                raise InputError(f"--{name} is for --format=saved_model.")
    elif _CALIBRATION.value:
        raise InputError("--calibration is for --format=litert.")
    detector, output, precision = load_detector(MODEL.value or ""), _OUTPUT.value, _PRECISION.value
    runtime = tempfile.TemporaryDirectory() if _PAGE.value else None
    if runtime:  # What a page needs, before the export.
        new_page(output)
        download_runtime(runtime.name)
    try:
        if saved_model:
            path, report = export_saved_model(
                detector,
                output,
                _VALIDATION.value,
                metrics=read_json(_METRICS.value, "the metrics file") if _METRICS.value else None,
                warmup_images=[read_bytes(path, "the warm-up image") for path in paths],
                model_name=_NAME.value,
                max_pixels=_MAX_PIXELS.value,
                precision=precision,
                fixed_shapes=shapes,
                jit_compile=_COMPILE.value,
            )
        else:
            _, report = export_file(
                detector, output, _FORMAT.value, precision, shapes, _CALIBRATION.value, _VALIDATION.value
            )
    except DifferentAnswers as error:
        print(error.report.table())
        raise
    print(report.table())
    if saved_model:
        names = ["serving_default (encoded images)", "image_tensor", "tf_example", *map(fixed_name, shapes)]
        print(f"{path}: signatures {', '.join(names)}")
    elif runtime:
        print(write_page(output, runtime.name))
