"""From any dataset to batches: `prepare` writes shards, `load` feeds `model.fit`, `load_for_evaluation` and
`ground_truth` feed an evaluation."""

from retinanet_tf.data.pipeline import load
from retinanet_tf.data.records.damage import DamageLog
from retinanet_tf.data.records.evaluation_reader import ground_truth, load_for_evaluation
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import read_records
from retinanet_tf.data.sources.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.sources.coco import coco_to_xyxy, read_coco, xyxy_to_coco
from retinanet_tf.data.sources.csv import read_csv
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.data.sources.reading import read_source
from retinanet_tf.data.sources.splits import paper_split
from retinanet_tf.data.sources.voc import read_voc

__all__ = [
    "Annotations",
    "DamageLog",
    "ImageAnnotations",
    "LabelMap",
    "coco_to_xyxy",
    "ground_truth",
    "load",
    "load_for_evaluation",
    "paper_split",
    "prepare",
    "read_coco",
    "read_csv",
    "read_records",
    "read_source",
    "read_voc",
    "xyxy_to_coco",
]
