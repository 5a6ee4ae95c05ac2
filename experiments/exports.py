"""Parity of a detector's exports: every format and precision beside the detector, as JSON and a page of tables.

    python -m experiments.exports --name=bccd --model=runs/bccd --validation='data/val-*' --calibration='data/train-*' \
        --canvas=320,448
    python -m experiments.exports --name=resnet50 --validation='coco/val-*' --calibration='coco/train-*'

Without --model it is a ResNet-50 of 640x640 pixels and COCO's 80 classes with random weights, imported from a file in
torchvision's layout; its AP says nothing. Leaves OUTPUT/NAME_vXYZ.json and renews
OUTPUT/parity.md from all of the folder's.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.bench.timing import hardware, stack
from experiments.random_resnet50 import random_resnet50
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.export.formats import SUFFIXES, export_file, export_saved_model
from retinanet_tf.export.parity import DifferentAnswers
from retinanet_tf.export.saved_model import EXTRA
from retinanet_tf.inference.detector import Detector
from retinanet_tf.pretrained.by_name import load_detector

EXPORTS = (
    ("saved_model", "float32"),
    ("onnx", "float32"),
    ("litert", "float32"),
    ("litert", "float16"),
    ("litert", "int8"),
)
_NAME = flags.DEFINE_string("name", None, "Of the JSON file.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Run directory; by default a ResNet-50 with random weights.")
_VALIDATION = flags.DEFINE_string("validation", None, "Pattern of shards to compare on.", required=True)
_CALIBRATION = flags.DEFINE_string("calibration", None, "Pattern of shards for int8.", required=True)
_CANVAS = flags.DEFINE_list("canvas", [], "Height and width of the files' pictures; by default a square.")
_OUTPUT = flags.DEFINE_string("output", "experiments/results/export", "Folder for JSON and page.")
_FILES = flags.DEFINE_string("files", None, "Folder to keep the exports in; what it has isn't exported again.")


def main() -> None:
    """Exports, compares and writes."""
    detector = load_detector(_MODEL.value) if _MODEL.value else random_resnet50(640)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(_FILES.value or folder)
        files.make_folder(kept)
        rows = [_exported(detector, kept, *kind) for kind in EXPORTS]
    packages = ("tensorflow", "keras", "onnx", "onnxruntime", "tf2onnx", "ai-edge-litert", "ai-edge-quantizer")
    settings = {flag.name: flag.value for flag in (_NAME, _MODEL, _VALIDATION, _CALIBRATION) if flag.value}
    if _CANVAS.value:
        settings["canvas"] = ",".join(_CANVAS.value)
    command = " ".join(["python -m experiments.exports", *(f"--{name}={value}" for name, value in settings.items())])
    result = {"command": command, "stack": stack(*packages), "hardware": hardware(), "exports": rows}
    output = Path(_OUTPUT.value)
    files.make_folder(output, "--output")
    files.write_json(output / f"{_NAME.value}_v{sys.version_info.major}{sys.version_info.minor}.json", result)
    paths = sorted(output.glob("*_v3*.json"))
    files.write_text(output / "parity.md", page({path.stem: json.loads(path.read_text()) for path in paths}))


def _exported(detector: Detector, folder: Path, format: str, precision: str) -> dict[str, Any]:
    path = folder / f"{_NAME.value}_{precision}{SUFFIXES.get(format, '')}"
    kept = path / "1" / EXTRA / "parity.json" if format == "saved_model" else Path(f"{path}.parity.json")
    try:
        if kept.exists():
            pass
        elif format == "saved_model":
            export_saved_model(detector, path, _VALIDATION.value)
        else:
            calibration = _CALIBRATION.value if precision == "int8" else None
            shapes = [(1, *map(int, _CANVAS.value))] if _CANVAS.value else []
            export_file(detector, path, format, precision, shapes, calibration, _VALIDATION.value)
        report = json.loads(kept.read_text())
    except DifferentAnswers as error:
        report = error.report.to_json()
    print(json.dumps(report), flush=True)
    size = round(_size(path) / 1e6, 2) if path.exists() else None
    return {"format": format, "precision": precision, "megabytes": size, "report": {**report, "file": path.name}}


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file())


def page(results: dict[str, dict]) -> str:
    """Markdown with a table for each result, by name."""
    lines = [
        "# Exports beside the detector",
        "",
        "Written by `experiments/exports.py`; the JSON files have every number. Boxes and scores: the largest",
        "differences over all compared pairs of detections, in pixels and in 0–1. Off: pairs beyond 0.5 pixels or",
        "0.001 (float16: 2 pixels or 0.02; INT8 has no such limit, its cost is AP). No threshold: each level's best",
        "100 pairs, whatever their score. Tied: of two overlapping boxes of one score, each side kept another.",
    ]
    for name, result in results.items():
        lines += ["", f"## {name}", "", f"    {result['command']}", "", f"{result['stack']}; {result['hardware']}.", ""]
        lines += _table(result["exports"])
    return "\n".join(lines) + "\n"


def _table(exports: Sequence[dict]) -> list[str]:
    head = (
        "format",
        "precision",
        "MB",
        "compared",
        "unmatched",
        "off",
        "boxes",
        "scores",
        "no threshold",
        "AP",
        "costs",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in exports:
        report = row["report"]
        same, probed = report["comparisons"][:2]
        ap = [100 * report["ap"][side] for side in ("detector", "file")]
        cells = [row["format"], row["precision"], row["megabytes"] or f"**not written**: {report['fault']}"]
        tied = f", {same['tied']} tied" if same.get("tied") else ""
        cells += [same["compared"], f"{same['missing']} + {same['extra']}", f"{same['off']}{tied}"]
        cells += [f"{same['box']:.2g}", f"{same['score']:.2g}"]
        cells += [f"{probed['compared']}: {probed['missing']} + {probed['extra']}, {probed['off']} off"]
        cells += [f"{ap[1]:.1f}", f"{ap[0] - ap[1]:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    run(main)
