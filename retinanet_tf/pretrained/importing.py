"""Imports a published checkpoint into a folder that works as `--model` and as `--init_weights`.

The settings it was trained under go with it: pixel statistics, channel order, epsilon, stride placement, input of P6,
anchors, order of the classes, assignment, losses.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flag_lines
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.detection.anchors import cell_anchors
from retinanet_tf.errors import InputError
from retinanet_tf.inference import checkpoint
from retinanet_tf.models.network import variables
from retinanet_tf.models.resnet import VARIANTS
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.pretrained import reading
from retinanet_tf.pretrained.architecture import Architecture, identify, note_strange, without_prefix
from retinanet_tf.pretrained.loading import BACKBONE_LAYERS, PREDICTOR, Report, assign, settings_of
from retinanet_tf.pretrained.names import SOURCES
from retinanet_tf.provenance import provenance

COCO = LabelMap.load(Path(__file__).with_name("labels") / "coco.json")
"""COCO's 80 categories, whose ids run from 1 to 90 with gaps."""
COCO_COLUMNS = (80, 91)
"""Class outputs per anchor of detectors of COCO: its categories, or its ids with torchvision's background."""

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
        "normalizer": "global",  # of each device's positives, averaged over the last steps
        "box": "l1",
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
"""Fields in which each source's training program differs from the paper's text."""


def describe(architecture: Architecture, source: str, tensors: dict[str, np.ndarray]) -> Config:
    """The configuration a checkpoint was trained under, as far as source and tensors determine it.

    All of its class outputs count as classes.
    """
    changes: dict[str, Any] = {**_BASE[source], "backbone": architecture.backbone}
    is_resnext = VARIANTS[architecture.backbone].groups > 1
    if source.startswith("detectron") and is_resnext:
        # The ResNeXt models were trained with the stride in the grouped convolution.
        changes["stride_in"] = "3x3"
    if source == "detectron2":
        for field in ("pixel_mean", "pixel_std"):
            stored = tensors.get(field)
            if stored is None and field == "pixel_std" and is_resnext:
                stored = np.array([57.375, 57.12, 58.395])
            if stored is not None and stored.size == 3:
                # Stored in the network's order, blue first.
                changes[field] = tuple(round(float(value), 4) for value in stored.ravel()[::-1])
    if architecture.detects:
        changes |= {"num_classes": architecture.class_columns, **architecture.head_settings()}
        has_anchors = any(name.startswith("anchor_generator.cell_anchors") for name in tensors)
        of_coco = architecture.class_columns in COCO_COLUMNS
        if source == "detectron2" and not of_coco:
            architecture.notes.append(
                "channel_order, pixel_std and stride_in are detectron2's usual ones; if it was trained with others, "
                "give them."
            )
        if not of_coco and not has_anchors:
            architecture.notes.append(
                f"the anchors' sizes aren't in the file: {source}'s usual ones are taken; if it was trained with "
                "others, give anchor_multiplier, anchor_scales and anchor_ratios."
            )
        if source == "torchvision":
            first_version = changes["subnet_norm"] == "none"
            changes["box"] = "l1" if first_version else "giou"
            if first_version and architecture.backbone == "resnet50":
                if architecture.class_columns == 91:
                    changes["norm_epsilon"] = 0.0  # Its release was trained so.
                else:
                    architecture.notes.append(
                        "norm_epsilon is 1e-05; if it was fine-tuned from torchvision's COCO_V1, give norm_epsilon=0."
                    )
    return Config().replace(**changes)


def class_columns(columns: int, label_map: LabelMap) -> np.ndarray:
    """The indices, among a class layer's `columns` outputs per anchor, of the labels 0…K−1.

    As many outputs as categories: in the order of the ids. More of them: each category's id is its output, as in
    torchvision, whose output 0 is the background.

    Raises:
        InputError: the categories can't be those of the layer.
    """
    ids = label_map.ids
    if columns == len(ids):
        return np.arange(columns)
    if columns == len(ids) + 1 and ids[0] == 0:
        raise InputError(
            f"the class layer has {columns} outputs per anchor for {len(ids)} categories: if the first output is the "
            "background, number the categories from 1 in the label map (labels)."
        )
    if ids[0] >= 0 and ids[-1] < columns:
        return np.array(ids)
    raise InputError(
        f"the class layer has {columns} outputs per anchor, which fits neither the number of categories "
        f"({len(ids)}) nor their ids (up to {ids[-1]}); give the right label map (labels)."
    )


class Imported(NamedTuple):
    """A converted checkpoint."""

    model: RetinaNet
    config: Config
    label_map: LabelMap
    report: Report
    preset: str
    """How it was trained, if one of `presets` says so, or ''."""


def import_weights(
    source: str,
    file: str | os.PathLike,
    output: str | os.PathLike,
    *,
    label_map: LabelMap | None = None,
    adjust: Callable[[Config], Config] = lambda config: config,
) -> Report:
    """Imports a checkpoint: reads it and writes it in this project's format.

    Args:
        source: 'keras', 'detectron', 'detectron2' or 'torchvision'.
        file: the checkpoint.
        output: a folder, or a name ending in `.weights.h5` beside which `.run.json` and `.labels.json` are written.
        label_map: the checkpoint's categories; without it COCO's, whose number must fit. If the network has more
            outputs than categories, each category's id is its output: ids from 1 where output 0 is a background.
        adjust: changes the detected configuration where no tensor tells, e.g. `norm_epsilon`, or sizes of anchors.

    Returns:
        Which tensors were matched, unused and missing.

    Raises:
        InputError: the file is not what `source` says, is incomplete, or a tensor has the wrong shape.
    """
    imported = convert(source, reading.read_tensors(file), str(file), label_map, adjust)
    _write(imported, source=source, output=Path(files.local(output, "output")))
    return imported.report


def convert(
    source: str,
    tensors: dict[str, np.ndarray],
    name: str,
    label_map: LabelMap | None = None,
    adjust: Callable[[Config], Config] = lambda config: config,
) -> Imported:
    """The model of a source's tensors; `name` is the checkpoint's in errors. See `import_weights`."""
    if source not in SOURCES:
        raise InputError(f"source={source} is not known; choose one of {', '.join(SOURCES)}.")
    if not isinstance(label_map, LabelMap | None):
        raise InputError(f"label_map={label_map!r} must be a LabelMap, such as LabelMap([1, 2], ['cat', 'dog']).")
    tensors = without_prefix(tensors, source)
    architecture = identify(tensors, source, name)
    described = describe(architecture, source, tensors)
    config = _in_channel_order(adjust(described), described, tensors)
    if architecture.detects:
        _check_anchors(config, architecture, tensors, name)
        if label_map is None and architecture.class_columns not in COCO_COLUMNS:
            raise InputError(
                f"{name} has {architecture.class_columns} class outputs per anchor, but not their names: give labels, "
                'a labels.json such as [{"id": 1, "name": "cat"}], with ids from 1 and one category less than outputs '
                "if the first output is a background."
            )
    label_map = label_map or COCO
    folded = architecture.fold(source, config.model.norm_epsilon, name)
    arrays, per_cell = architecture.arrays, config.anchors.anchors_per_cell
    if architecture.detects:
        config = config.replace(num_classes=label_map.num_classes)
        width = architecture.class_columns
        columns = class_columns(width, label_map)
        left_out = set(range(0 if source.startswith("detectron") else 1, width)) - set(columns.tolist())
        if left_out and width not in COCO_COLUMNS:
            outputs = f"{len(left_out)} class outputs, e.g. {min(left_out)},"
            architecture.notes.append(f"{outputs} have no category in the label map and are left out.")
        for key in (f"{PREDICTOR}/kernel", f"{PREDICTOR}/bias"):
            array = arrays.get(key)
            # One of another width is refused below.
            if array is not None and array.shape[-1:] == (per_cell * width,):
                by_class = array.reshape(*array.shape[:-1], per_cell, width)
                arrays[key] = by_class[..., columns].reshape(*array.shape[:-1], -1)
    model = RetinaNet.from_config(config)
    names = variables(model)
    strange = [architecture.sources[key] for key in arrays if key not in names]
    if strange and architecture.detects and _layers(config) == _layers(described):
        raise InputError(
            f"{name} has {len(strange)} tensors, e.g. {strange[0]}, which subnets of {config.model.subnet_depth} "
            f"convolutions with subnet_norm={config.model.subnet_norm} don't have: it is incomplete, or its subnets "
            "are of another kind (with batch norm, or detectron2's with a norm), which can't be imported."
        )
    sources = {key: architecture.sources[key] for key in names if key in arrays}
    missing = assign(model, {key: arrays[key] for key in sources}, name, sources)
    lacking = [key for key in missing if architecture.detects or key.startswith(BACKBONE_LAYERS)]
    if lacking:
        kind = "detector" if architecture.detects else "backbone"
        raise InputError(f"{name} lacks {len(lacking)} tensors of the {kind}, e.g. for {', '.join(lacking[:3])}.")
    unused = sorted(set(tensors) - {*sources.values(), *folded})
    report = Report(name, sources, unused, missing, architecture.notes + note_strange(unused, source))
    is_modern = architecture.detects and source == "torchvision" and config.model.subnet_norm == "group"
    return Imported(model, config, label_map, report, "modern" if is_modern else "")


def _in_channel_order(config: Config, described: Config, tensors: dict[str, np.ndarray]) -> Config:
    """With the statistics that detectron2 stores in the network's order turned round again for a network of RGB."""
    changed = config.model.channel_order != described.model.channel_order
    stored = [field for field in ("pixel_mean", "pixel_std") if changed and field in tensors]
    values = {field: getattr(described.model, field) for field in stored}
    turned = {field: value[::-1] for field, value in values.items() if getattr(config.model, field) == value}
    return config.replace(**turned)


def _layers(config: Config) -> tuple:
    """What determines the layers of subnets and pyramid."""
    model = config.model
    return model.subnet_depth, model.subnet_norm, model.p6_from, config.anchors.levels


def _check_anchors(config: Config, architecture: Architecture, tensors: dict[str, np.ndarray], name: str) -> None:
    """Raises InputError if the anchors are of another number, or others than those that detectron2 may have stored."""
    found, wanted = architecture.anchors_per_cell, config.anchors.anchors_per_cell
    if found != wanted:
        raise InputError(
            f"{name} has {found} anchors per position, the configuration {wanted}; give anchor_scales and "
            "anchor_ratios."
        )
    width = architecture.arrays[f"{PREDICTOR}/kernel"].shape[3]
    if width % found:
        raise InputError(f"{name} has {width} class outputs per position, which is no multiple of its {found} anchors.")
    for number, level in enumerate(config.anchors.levels):
        stored = tensors.get(f"anchor_generator.cell_anchors.{number}")
        ours = cell_anchors(config.anchors, level)
        if stored is not None and (stored.shape != ours.shape or not np.allclose(stored, ours, rtol=1e-3)):
            raise InputError(
                f"{name} was trained with other anchors than the configuration's: at level {level} the first is "
                f"{stored.ravel()[:4].round(1).tolist()} around its position, not {ours[0].round(1).tolist()}; give "
                "anchor_multiplier, anchor_scales and anchor_ratios."
            )


def keep_backbone(run_dir: str | os.PathLike, output: str | os.PathLike) -> Report:
    """`by_name.keep_backbone` of a folder."""
    config, model = checkpoint.load_config(run_dir), checkpoint.load_model(run_dir)
    names = list(variables(model))
    kept = {name: name for name in names if name.startswith(BACKBONE_LAYERS)}
    report = Report(str(run_dir), kept, [], [name for name in names if name not in kept])
    label_map = LabelMap.load(checkpoint.file_of(run_dir, "labels.json"))
    _write(Imported(model, config, label_map, report, ""), source="run", output=Path(files.local(output, "output")))
    return report


def _write(imported: Imported, *, source: str, output: Path) -> None:
    model, config, label_map, report, preset = imported
    files.make_folder(output.parent if output.name.endswith(checkpoint.SUFFIX) else output, "output")
    record_path = checkpoint.file_of(output, "run.json")
    if record_path.exists() and '"imported"' not in files.read_text(record_path, "the run"):
        raise InputError(f"output={output} is the folder of a training run; choose another one.")
    report_path, labels_path = (checkpoint.file_of(output, name) for name in ("import.json", "labels.json"))
    if labels_path.exists() and not (record_path.exists() or report_path.exists()):
        raise InputError(f"output={output} has a labels.json of other data; choose another folder.")
    weights = checkpoint.file_of(output, checkpoint.WEIGHTS)
    checkpoint.check_space(model, weights)
    record_path.unlink(missing_ok=True)  # of an earlier import: half of this one isn't a model
    lines = flag_lines(({"preset": preset} if preset else {}) | settings_of(config, report.parts, preset))
    files.write_text(checkpoint.file_of(output, "flags.txt"), "".join(lines))
    files.write_json(report_path, report.to_json())
    label_map.save(labels_path)
    checkpoint.save_weights(model, weights)
    record = {
        "config": config.to_dict(),
        "imported": {"source": source, "file": report.source, "parts": report.parts, "preset": preset},
        "labels": label_map.to_json(),
        "made_by": {**provenance(), "command": " ".join(sys.argv)},
    }
    files.write_json(record_path, record)
