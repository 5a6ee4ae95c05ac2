"""Exports of a small detector, ONNX and LiteRT, and pictures to run them on; the fixtures are in export/conftest.py."""

import json
import types

import numpy as np
import pytest

from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.export import formats, parity
from retinanet_tf.export.formats import export_file
from retinanet_tf.inference.detector import Detector
from tests.small_detectors import clutter, encode, small_detector

LABELS = LabelMap([1, 18, 90], ["a,b", "żółw", '"x"'])
HEIGHT, WIDTH = 96, 160
PICTURES = [clutter(seed, *size) for seed, size in enumerate([(120, 200), (90, 60), (48, 80), (200, 130), (96, 160)])]


def spread_out_detector() -> Detector:
    """One whose scores lie between 0 and 1 and whose boxes differ from the anchors."""
    detector = small_detector(LABELS, spread=0.06)
    rng = np.random.default_rng(5)
    for variable in detector.model.weights:
        name = getattr(variable, "path", variable.name)
        if "box_subnet" in name and len(variable.shape) == 4:
            variable.assign(rng.normal(0, 0.03, variable.shape).astype(np.float32))
        if "class_subnet" in name and "predictor" in name and "bias" in name:
            variable.assign(np.full(variable.shape, -1, np.float32))
    return detector


def exported(detector, path, *settings):
    """An export with what it compared: the file and its probe, which stay usable, and the report."""
    kept = {}

    def check(file, probe, *others):
        kept.update(file=file, probe=probe, report=real(file, probe, *others))
        return kept["report"]

    real = parity.check
    kept["detector"] = detector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "check", check)
        patch.setattr(formats, "PARITY_IMAGES", 6)
        export_file(detector, path, *settings)
    return types.SimpleNamespace(path=path, **kept)


def write_shards(folder, pictures):
    """Shards of pictures with one object each; returns their pattern."""
    folder.mkdir()
    size = {"height": pictures[0].shape[0], "width": pictures[0].shape[1]}
    images = [{"id": number, "file_name": f"{number}.png", **size} for number in range(len(pictures))]
    box = {"bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}
    objects = [{"id": number, "image_id": number, "category_id": 18, **box} for number in range(len(pictures))]
    for number, picture in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(encode(picture))
    content = {"images": images, "annotations": objects, "categories": LABELS.to_json()}
    (folder / "instances.json").write_text(json.dumps(content))
    prepare(folder / "instances.json", folder, folder / "shards", "some", shards=1, progress=False)
    return folder / "shards" / "some-*.tfrecord"
