"""Metadata of exported files: one JSON object, in an ONNX file's metadata_props or in a zip at a LiteRT file's end."""

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

from retinanet_tf.errors import InputError

KEY = "retinanet_tf"
"""The entry of ONNX's metadata_props; LiteRT's zip has the file KEY.json."""
NEEDED = ("format", "precision", "made_by", "labels", "input", "preprocessing", "detect")
"""What every export says about itself."""


def write_metadata(path: str | os.PathLike, metadata: Mapping[str, Any]) -> None:
    """Writes the metadata into an exported file: `.onnx` (needs the package onnx) or `.tflite` (once in a file)."""
    text = json.dumps(metadata, ensure_ascii=False)
    if is_onnx(path):
        import onnx

        model = onnx.load(os.fspath(path))
        entries = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**entries, KEY: text})
        onnx.save(model, os.fspath(path))
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{KEY}.json", text)


def read_litert(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a LiteRT file; raises InputError if it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            text: str | bytes | None = archive.read(f"{KEY}.json")
    except (zipfile.BadZipFile, KeyError, OSError):
        text = None
    return parse_metadata(text, path)


def parse_metadata(text: str | bytes | None, path: str | os.PathLike) -> dict[str, Any]:
    """The metadata from its JSON; None is a file without any.

    Raises:
        InputError: naming the file, if there is none or a part of it is missing.
    """
    if text is None:
        raise InputError(
            f"{os.fspath(path)} has no metadata of retinanet_tf, so its labels and preprocessing are unknown; is it "
            "complete? If it is another tool's, export the detector again with `retinanet export`."
        )
    try:
        metadata = json.loads(text)
        for name in NEEDED:
            metadata[name]
        padding = metadata["preprocessing"]["padding"]
        if len(padding) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in padding):
            raise ValueError
    except KeyError as error:
        raise InputError(f"{os.fspath(path)}: its metadata lacks {error}; export the detector again.") from None
    except (ValueError, TypeError):
        raise InputError(f"{os.fspath(path)}: its metadata are damaged; export the detector again.") from None
    return metadata


def is_onnx(path: str | os.PathLike) -> bool:
    """Whether a path is an ONNX file's, `.onnx`, rather than a LiteRT file's, `.tflite`; InputError if neither."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in (".onnx", ".tflite"):
        raise InputError(f"{os.fspath(path)} is neither an ONNX file (.onnx) nor a LiteRT file (.tflite).")
    return suffix == ".onnx"
