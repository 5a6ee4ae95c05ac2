"""From any dataset to batches: `prepare` writes shards, `load` feeds `model.fit`, `load_for_evaluation` and
`ground_truth` feed an evaluation."""

from retinanet_tf.data.annotations import Annotations, ImageAnnotations
from retinanet_tf.data.coco import coco_to_xyxy, read_coco, xyxy_to_coco
from retinanet_tf.data.evaluation_reader import ground_truth, load_for_evaluation
from retinanet_tf.data.labels import LabelMap
from retinanet_tf.data.pipeline import load
from retinanet_tf.data.prepare import prepare
from retinanet_tf.data.reader import read_records

__all__ = [
    "Annotations",
    "ImageAnnotations",
    "LabelMap",
    "coco_to_xyxy",
    "ground_truth",
    "load",
    "load_for_evaluation",
    "prepare",
    "read_coco",
    "read_records",
    "xyxy_to_coco",
]
