"""Export: a detector as a SavedModel, or as an ONNX or LiteRT file that is shown to answer as the detector does."""

import dataclasses
import importlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.synthetic.scenes import draw_scene
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.source import Source, open_validation
from retinanet_tf.export import litert_file, onnx_file, parity, saved_model
from retinanet_tf.export.frozen_graph import Shape, file_shape
from retinanet_tf.export.quiet import quiet
from retinanet_tf.files import ended_by_sigterm, make_folder, output_folder, path_text, write_json
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.images import to_image
from retinanet_tf.inference.saved_model import SavedModelDetector
from retinanet_tf.provenance import provenance
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.metadata import write_metadata
from retinanet_tf.runtime.preprocess import fit

SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}
FORMATS = ("saved_model", *SUFFIXES)
PARITY_IMAGES = 16
"""Pictures on which a file is compared with the detector."""
CALIBRATION_IMAGES = 128
"""Pictures at most that INT8's scales are taken from."""
_PACKAGES = {"onnx": ("tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}
"""What a format is converted by and compared in."""


def export(
    detector: Detector,
    path: str | os.PathLike,
    *,
    format: str = "saved_model",
    precision: str = "float32",
    fixed_shapes: Sequence[Shape] = (),
    calibration: str | os.PathLike | None = None,
    validation: str | os.PathLike | Source | None = None,
    **options: Any,
) -> Path:
    """Writes a detector for serving: network, post-processing and NMS.

    An ONNX or LiteRT file takes `images` `(B, H, W, 3)` uint8 RGB canvases and `sizes` `(B, 2)` float32, height and
    width of the picture's part of each, and gives `boxes` `(B, D, 4)` float32 xyxy in pixels of the canvas, `scores`
    `(B, D)` float32, `labels` `(B, D)` int32 class indices (−1 where empty) and `num_detections` `(B,)` int32.
    `retinanet_tf.runtime.exported.ExportedDetector` runs it without TensorFlow. Labels, preprocessing and thresholds
    are in the file's metadata. Every export is run beside the detector before it gets its name (of a SavedModel the
    signature image_tensor), and PATH.parity.json, of a SavedModel its assets.extra/parity.json, tells the differences.

    Args:
        detector: a trained detector, without test-time augmentation.
        path: 'saved_model': folder of the versions; else the file, which must not exist yet.
        format: 'saved_model', 'onnx' or 'litert'.
        precision: of the network: 'float32'; 'float16' or 'bfloat16' for a SavedModel; 'float16' (weights alone) or
            'int8' (weights and activations) for LiteRT.
        fixed_shapes: (B, H, W), multiples of 32: further signatures of a SavedModel; of a file the one size of its
            canvases, by default 1 and a square; B may be None in ONNX, which then takes any number at once.
        calibration: pattern of shards, for 'int8': the scales are taken from their first 128 pictures. Give training
            data.
        validation: pattern of shards: the pictures to compare on, and the report tells the AP of both.
        options: of a SavedModel; see `saved_model.export`.

    Returns:
        The version's folder, or the file.

    Raises:
        InputError: a setting or path that can't be used, a package that is missing, or an export whose answers aren't
            the detector's (in int8: that finds less than half of what it finds); nothing is left of it then.
    """
    path = path_text(path, "path")
    if format not in FORMATS:
        raise InputError(f"format={format!r} is not one of {', '.join(FORMATS)}.")
    if format == "saved_model":
        if calibration is not None:
            raise InputError("calibration is for format='litert'.")
        settings = {"precision": precision, "fixed_shapes": fixed_shapes, **options}
        return export_saved_model(detector, path, validation, **settings)[0]
    if options:
        raise InputError(f"{next(iter(options))} is for format='saved_model'.")
    return export_file(detector, path, format, precision, fixed_shapes, calibration, validation)[0]


def export_saved_model(
    detector: Detector,
    path: str | os.PathLike,
    validation: str | os.PathLike | Source | None = None,
    **options: Any,
) -> tuple[Path, parity.Report]:
    """Writes a SavedModel, by `saved_model.export`, and compares it; see `export`."""
    source, reports = None if validation is None else open_validation(validation), []

    def check(folder: Path) -> None:
        reference = saved_model.with_precision(detector, "float32")
        precision = options.get("precision", "float32")
        with tempfile.TemporaryDirectory() as aside:
            probe = saved_model.export(parity.without_threshold(reference), Path(aside, "1"), precision=precision)
            files = SavedModelDetector(folder), SavedModelDetector(probe)
            pictures, origin = _pictures(source, None)
            report = parity.check(*files, reference, pictures, precision, origin, source)
        report.file = os.fspath(path)
        if report.fault:
            raise parity.DifferentAnswers(path, report)
        make_folder(folder / saved_model.EXTRA)
        write_json(folder / saved_model.EXTRA / "parity.json", report.to_json())
        reports.append(report)

    return saved_model.export(detector, path, check=check, **options), reports[0]


def export_file(
    detector: Detector,
    path: str | os.PathLike,
    format: str,
    precision: str = "float32",
    fixed_shapes: Sequence[Shape] = (),
    calibration: str | os.PathLike | None = None,
    validation: str | os.PathLike | Source | None = None,
) -> tuple[Path, parity.Report]:
    """Writes an ONNX or LiteRT file and compares it; see `export`."""
    path = Path(path)
    _check(detector, path, format, precision, calibration)
    shape = file_shape(detector, fixed_shapes, any_batch=format == "onnx")
    source = None if validation is None else open_validation(validation)
    detector = saved_model.with_precision(detector, "float32")
    ranges, pictures_used = None, 0
    if calibration is not None:
        padding, stretch = _padding(detector), detector.resize == "stretch"
        canvases = [fit(picture, *shape[1:], padding, stretch).canvas for picture in _calibration(calibration)]
        if not canvases:
            raise InputError(f"calibration={os.fspath(calibration)} has no pictures; the scales of INT8 need some.")
        pictures_used, ranges = len(canvases), litert_file.calibrate(detector, shape, canvases)

    def write(of: Detector, target: Path) -> None:
        if format == "onnx":
            content, facts = onnx_file.convert(of, shape)
        else:
            content, facts = litert_file.convert(of, shape, precision, ranges)
        if pictures_used:
            facts["calibration"] = pictures_used
        target.write_bytes(content)
        write_metadata(target, metadata(of, format, precision, shape, facts))

    try:
        with (
            ended_by_sigterm(),
            output_folder(path.parent),
            tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder,
        ):
            aside, probe = Path(folder, path.name), Path(folder, "probe", path.name)
            probe.parent.mkdir()
            write(detector, aside)
            write(parity.without_threshold(detector), probe)
            pictures, origin = _pictures(source, calibration)
            report = parity.check(
                ExportedDetector(aside), ExportedDetector(probe), detector, pictures, precision, origin, source
            )
            if report.fault:
                raise parity.DifferentAnswers(path, report)
            write_json(f"{path}.parity.json", report.to_json())
            os.replace(aside, path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from None
    return path, report


def _check(detector: Detector, path: Path, format: str, precision: str, calibration: str | os.PathLike | None) -> None:
    if not isinstance(detector, Detector):
        raise InputError(f"{type(detector).__name__} can't be exported; give the Detector, without augmentation.")
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"{path} must end in {SUFFIXES[format]}, as a file of format={format!r}.")
    if path.exists():
        raise InputError(f"{path} exists; choose another name or remove it.")
    mean = detector.model.config.pixel_mean
    if not 0 <= min(mean) <= max(mean) <= 255:
        shown = ",".join(f"{value:g}" for value in mean)
        raise InputError(f"pixel_mean={shown} can't be the colour of a canvas's padding in a file: 0 to 255.")
    if format == "onnx" and precision != "float32":
        raise InputError(
            f"precision={precision!r} is not for ONNX, where it would reach the boxes too; TensorRT and other runtimes "
            "choose their precision themselves: export float32."
        )
    if precision not in litert_file.PRECISIONS:
        raise InputError(f"precision={precision!r} is not one of {', '.join(litert_file.PRECISIONS)}.")
    if precision == "int8" and calibration is None:
        raise InputError("precision='int8' needs calibration, a pattern of shards, for the scales of its integers.")
    if precision != "int8" and calibration is not None:
        raise InputError("calibration is for precision='int8' alone.")
    packages = _PACKAGES[format] if precision == "float32" else (*_PACKAGES[format], "ai_edge_quantizer")
    for package in packages:
        try:
            with quiet():
                importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"format={format!r} needs a package that isn't installed ({error}); pip install "
                f"'retinanet_tf[{format}]' has it."
            ) from None


def _calibration(pattern: str | os.PathLike) -> Iterator[np.ndarray]:
    """The pictures of the first records."""
    for index, record in enumerate(itertools.islice(read_records(pattern), CALIBRATION_IMAGES)):
        yield _decoded(record.encoded, index)


def _pictures(source: Source | None, calibration: str | os.PathLike | None) -> tuple[list[np.ndarray], str]:
    """Pictures to compare on, and where they come from: those of a user's data, or generated ones."""
    if source is not None:
        pictures = itertools.islice(source.encoded(), PARITY_IMAGES)
        return [_decoded(one, index) for index, one in enumerate(pictures)], f" of {source.name}"
    if calibration is not None:
        return list(itertools.islice(_calibration(calibration), PARITY_IMAGES)), f" of {os.fspath(calibration)}"
    scenes = [draw_scene((28, number), 320, 12, (16, 160)).image for number in range(PARITY_IMAGES)]
    # Wide and tall ones.
    return [scene[:, 40:280] if number % 2 else scene[40:280] for number, scene in enumerate(scenes)], ", generated"


def _decoded(encoded: bytes, index: int) -> np.ndarray:
    return to_image(encoded, index).numpy()


def _padding(detector: Detector) -> list[int]:
    return [round(value) for value in detector.model.config.pixel_mean]


def metadata(detector: Detector, format: str, precision: str, shape: Shape, facts: dict[str, Any]) -> dict[str, Any]:
    """What a file says about itself."""
    batch, height, width = shape
    return {
        "format": format,
        "precision": precision,
        "made_by": provenance(),
        "labels": detector.label_map.to_json(),
        "input": {"batch": batch, "height": height, "width": width},
        "preprocessing": {
            "resize": "bilinear, half-pixel centres, no antialiasing",
            "proportions": "lost" if detector.resize == "stretch" else "kept",
            "position": "top left",
            "padding": _padding(detector),
            "channels": "RGB",
            "range": [0, 255],
            "upright": True,
        },
        "detect": dataclasses.asdict(detector.config),
        "model": detector.model.get_config(),
        **facts,
    }
