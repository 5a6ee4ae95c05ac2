"""A published checkpoint → a folder that every command takes as --checkpoint or --init_weights.

The settings a checkpoint was trained under go with it: pixel statistics, channel order, epsilon, stride placement,
input of P6, anchors, order of the classes.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flag_lines
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference import checkpoint
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.pretrained import reading
from retinanet_tf.pretrained.coco_labels import COCO
from retinanet_tf.pretrained.contents import Contents, identify
from retinanet_tf.pretrained.loading import BACKBONE_LAYERS, PREDICTOR, Report, assign, variables
from retinanet_tf.provenance import provenance

_COCO_SIZES = {"image_size": 800, "max_size": 1333}
_BASE: dict[str, dict] = {
    "keras": {"norm_epsilon": 1.001e-5, "stride_in": "1x1"},
    "detectron": {
        "pixel_mean": (122.7717, 115.9465, 102.9801),
        "anchor_style": "detectron",
        "anchor_ratios": (1.0, 2.0, 0.5),
        "promote": "above_negative",
        "normalizer": "replica",
        **_COCO_SIZES,
    },
    "detectron2": {
        "pixel_mean": (123.675, 116.28, 103.53),
        "anchor_style": "detectron2",
        "promote": "always",
        "normalizer": "replica",
        **_COCO_SIZES,
    },
    "torchvision": {
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
        "channel_order": "rgb",
        "stride_in": "3x3",
        "anchor_style": "torchvision",
        "promote": "always",
        "max_detections": 300,
        **_COCO_SIZES,
    },
}
"""What each source's training program does differently from the paper's text, by field of `Config`."""


def describe(contents: Contents, source: str, label_map: LabelMap | None = None) -> Config:
    """The configuration a checkpoint was trained under, as far as source and tensors tell."""
    config = Config().replace(**_BASE[source], backbone=contents.backbone)
    if source.startswith("detectron") and contents.grouped:
        # The ResNeXt models were trained with the stride in the grouped convolution.
        config = config.replace(stride_in="3x3")
    changes: dict[str, Any] = {}
    if source == "detectron2":
        for field in ("pixel_mean", "pixel_std"):
            stored = contents.tensors.get(field)
            if stored is None and field == "pixel_std" and contents.grouped:
                stored = np.array([57.375, 57.12, 58.395])
            if stored is not None and stored.size == 3:
                # Stored in the network's order, blue first.
                changes[field] = tuple(round(float(value), 4) for value in stored.ravel()[::-1])
    if contents.detects:
        changes |= {
            "subnet_depth": contents.depth,
            "subnet_norm": "group" if contents.subnet_norm else "none",
            "fpn_channels": contents.fpn_channels,
            "subnet_channels": contents.subnet_channels,
            "p6_from": contents.p6_from,
        }
        if source == "torchvision":
            if contents.subnet_norm:
                changes["box"] = "giou"
            elif contents.class_columns == 91 and contents.backbone == "resnet50":
                changes["norm_epsilon"] = 0.0  # The release of the first version was trained so.
            else:
                changes["box"] = "l1"
    config = config.replace(**changes)
    if contents.detects:
        label_map = label_map or default_labels(contents.class_columns)
        config = config.replace(num_classes=label_map.num_classes)
    return config


def default_labels(columns: int) -> LabelMap:
    """COCO's categories where a class layer has 80 or 91 outputs an anchor, else the outputs' own numbers."""
    if columns in (80, 91):
        return COCO
    return LabelMap(range(columns), [str(number) for number in range(columns)])


def class_columns(columns: int, label_map: LabelMap) -> np.ndarray:
    """Which of a class layer's `columns` outputs an anchor belong to the labels 0…K−1.

    Raises:
      InputError: the categories can't be those of the layer.
    """
    if columns == label_map.num_classes:
        return np.arange(columns)
    if label_map.ids[0] >= 0 and label_map.ids[-1] < columns:
        return np.array(label_map.ids)
    raise InputError(
        f"the class layer has {columns} outputs an anchor, which fits neither the number of categories "
        f"({label_map.num_classes}) nor their ids (up to {label_map.ids[-1]}); give the right --labels."
    )


def import_weights(
    source: str,
    file: str | os.PathLike | None,
    output: str | os.PathLike,
    *,
    backbone: str = "resnet50",
    label_map: LabelMap | None = None,
    adjust: Callable[[Config], Config] = lambda config: config,
) -> Report:
    """Reads a checkpoint and writes it as this project's own.

    Args:
      source: 'keras', 'detectron', 'detectron2' or 'torchvision'.
      file: the checkpoint; None lets Keras download ImageNet weights (source 'keras' only).
      output: a folder, or a name ending in `.weights.h5` beside which `.run.json` and `.labels.json` are written.
      backbone: what to download; a file tells by itself.
      label_map: the checkpoint's categories; by default COCO's where their number fits.
      adjust: changes the detected configuration, e.g. a `norm_epsilon` that no tensor tells.

    Returns:
      What was matched, unused and missing.

    Raises:
      InputError: the file is not what `source` says, is incomplete, or a tensor has the wrong shape.
    """
    if file is None and source != "keras":
        raise InputError(f"--source={source} needs --file; only keras downloads by itself.")
    place = str(file) if file is not None else f"keras.applications {backbone}"
    tensors = reading.read_tensors(file) if file is not None else reading.download_keras(backbone)
    contents = identify(tensors, source, place)
    config = adjust(describe(contents, source, label_map))
    label_map = label_map or (default_labels(contents.class_columns) if contents.detects else COCO)
    model = RetinaNet.from_config(config)
    arrays, theirs = contents.arrays(config)
    if contents.detects:
        if contents.anchors_per_cell != config.anchors.anchors_per_cell:
            raise InputError(
                f"{place} has {contents.anchors_per_cell} anchors a position, the configuration "
                f"{config.anchors.anchors_per_cell}; give --anchor_scales and --anchor_ratios."
            )
        chosen = class_columns(contents.class_columns, label_map)
        for part in ("kernel", "bias"):
            array = arrays[f"{PREDICTOR}/{part}"]
            columns = array.reshape(*array.shape[:-1], contents.anchors_per_cell, contents.class_columns)
            arrays[f"{PREDICTOR}/{part}"] = columns[..., chosen].reshape(*array.shape[:-1], -1)
    missing = assign(model, arrays, place, theirs)
    if contents.detects and missing:
        raise InputError(f"{place} lacks {len(missing)} tensors of the detector, e.g. for {', '.join(missing[:3])}.")
    if any(not name.startswith(("fpn_", "class_subnet", "box_subnet")) for name in missing):
        lost = [name for name in missing if not name.startswith(("fpn_", "class_subnet", "box_subnet"))]
        raise InputError(f"{place} lacks {len(lost)} tensors of the backbone, e.g. for {', '.join(lost[:3])}.")
    report = Report(place, theirs, contents.unused, missing, contents.notes)
    _write(model, config, label_map, Path(output), report, source)
    return report


def keep_backbone(run_dir: str | os.PathLike, output: str | os.PathLike) -> Report:
    """Writes the backbone of a finished job as a start for others, whatever their pyramid, subnets and classes.

    Args:
      run_dir: the job's directory, or imported weights.
      output: as of `import_weights`; the result is to `init_weights` what an ImageNet backbone is.

    Raises:
      InputError: there is no finished run.
    """
    config, model = checkpoint.load_config(run_dir), checkpoint.load_model(run_dir)
    kept = {name: name for name in variables(model) if name.startswith(BACKBONE_LAYERS)}
    report = Report(str(run_dir), kept, [], [name for name in variables(model) if name not in kept])
    _write(model, config, LabelMap.load(checkpoint.part(run_dir, "labels.json")), Path(output), report, "run")
    return report


def _write(model, config: Config, label_map: LabelMap, output: Path, report: Report, source: str) -> None:
    files.make_folder(output.parent if output.name.endswith(checkpoint.SUFFIX) else output, "--output")
    record_path = checkpoint.part(output, "run.json")
    record = {
        "config": config.to_dict(),
        "imported": {"source": source, "file": report.source, "parts": report.parts},
        "labels": label_map.to_json(),
        "made_by": {**provenance(), "command": " ".join(sys.argv)},
    }
    if record_path.exists() and '"imported"' not in record_path.read_text():
        raise InputError(f"--output={output} is the folder of a training run; choose another one.")
    label_map.save(checkpoint.part(output, "labels.json"))
    settings = {"model": config.model, "anchors": config.anchors}
    flat = {name: value for section in settings.values() for name, value in dataclasses.asdict(section).items()}
    flat.pop("num_classes")
    files.write_text(checkpoint.part(output, "flags.txt"), "".join(flag_lines(flat)))
    files.write_json(checkpoint.part(output, "import.json"), report.to_json())
    checkpoint.save_weights(model, checkpoint.part(output, checkpoint.WEIGHTS))
    files.write_json(record_path, record)
