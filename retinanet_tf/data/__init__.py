"""Data sets: `prepare` writes TFRecord shards, `load` reads batches of them for `model.fit`."""

from typing import TYPE_CHECKING

from retinanet_tf.lazy import attach

if TYPE_CHECKING:
    from retinanet_tf.data.pipeline import load, load_for_training
    from retinanet_tf.data.records.damage import DamageLog
    from retinanet_tf.data.records.prepare import prepare, prepare_splits
    from retinanet_tf.data.records.reader import read_records
    from retinanet_tf.data.sources import read_source
    from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
    from retinanet_tf.data.sources.coco import coco_to_xyxy, read_coco, xyxy_to_coco
    from retinanet_tf.data.sources.csv import read_csv
    from retinanet_tf.data.sources.labels import LabelMap
    from retinanet_tf.data.sources.random_split import random_split
    from retinanet_tf.data.sources.splits import paper_split
    from retinanet_tf.data.sources.voc import read_voc
    from retinanet_tf.data.sources.yolo import read_yolo

_MODULES = {
    "Annotations": "sources.annotations",
    "DamageLog": "records.damage",
    "ImageAnnotations": "sources.annotations",
    "LabelMap": "sources.labels",
    "coco_to_xyxy": "sources.coco",
    "load": "pipeline",
    "load_for_training": "pipeline",
    "paper_split": "sources.splits",
    "prepare": "records.prepare",
    "prepare_splits": "records.prepare",
    "random_split": "sources.random_split",
    "read_coco": "sources.coco",
    "read_csv": "sources.csv",
    "read_records": "records.reader",
    "read_source": "sources",
    "read_voc": "sources.voc",
    "read_yolo": "sources.yolo",
    "xyxy_to_coco": "sources.coco",
}
__getattr__, __dir__ = attach(__name__, _MODULES)
__all__ = [*_MODULES]
