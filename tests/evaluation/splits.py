"""Random splits with detections, and naive references of matching, confusion and F1."""

import numpy as np

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.evaluation.analysis import Analysis
from retinanet_tf.evaluation.coco import coco_scores
from retinanet_tf.evaluation.source import GroundTruth
from tests.oracles import box_iou

IDS = (3, 7, 90)


def split(objects, detections, images, ids=IDS):
    """A split and results from rows: (image, class, box xywh[, crowd]) and (image, class, box xywh, score)."""
    truth = {
        "images": [{"id": one, "file_name": f"{one}.jpg", "width": 100, "height": 100} for one in images],
        "categories": [{"id": one, "name": f"class {one}"} for one in ids],
        "annotations": [
            {"id": number, "image_id": image, "category_id": ids[label], "bbox": list(box), "area": box[2] * box[3]}
            | {"iscrowd": int(any(crowd))}
            for number, (image, label, box, *crowd) in enumerate(objects, 1)
        ],
    }
    results = [
        {"image_id": image, "category_id": ids[label], "bbox": list(box), "score": score}
        for image, label, box, score in detections
    ]
    return truth, results


def analysed(truth, results, max_detections=100, name="val"):
    label_map = LabelMap.from_json(truth["categories"])
    scores = coco_scores(truth, results, max_detections)
    return Analysis(GroundTruth(truth, label_map, name), results, scores, max_detections)


def random_split(seed, images=(5, "b", 2, "a")):
    """A few crowded pictures: clusters of boxes, crowds, equal scores, pictures without objects or detections."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in images:
        for _ in range(rng.integers(0, 7)):
            box = (*rng.uniform(0, 40, 2), *rng.uniform(15, 40, 2))
            objects.append((image, int(rng.integers(3)), box, rng.random() < 0.15))
        near = [row[1:3] for row in objects if row[0] == image]
        for _ in range(rng.integers(0, 16)):
            label, box = int(rng.integers(3)), np.array([*rng.uniform(0, 60, 2), *rng.uniform(5, 40, 2)])
            if near and rng.random() < 0.85:
                same, box = near[rng.integers(len(near))]
                label = same if rng.random() < 0.5 else label
                box = np.array(box) + rng.normal(0, 3, 4)
            box[2:] = np.maximum(box[2:], 1)
            detections.append((image, label, tuple(box), float(rng.integers(0, 40) / 40)))
    return split(objects, detections, images)


def xyxy(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def share_inside(box, crowd):
    """Of a detection's area, how much lies in a crowd."""
    a, b = xyxy(box), xyxy(crowd)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / (box[2] * box[3])


def naive_match(truth, results):
    """({detection: object} of the same class at IoU .5, {detections in crowds}), by falling score."""
    numbers = {
        one: n for n, one in enumerate(sorted((i["id"] for i in truth["images"]), key=lambda i: (str(i) == i, i)))
    }
    found, ignored = {}, set()
    for d in sorted(range(len(results)), key=lambda d: (-results[d]["score"], numbers[results[d]["image_id"]], d)):
        row, best, share, in_crowd = results[d], None, 0.5, False
        for o, thing in enumerate(truth["annotations"]):
            if (thing["image_id"], thing["category_id"]) != (row["image_id"], row["category_id"]):
                continue
            if thing["iscrowd"]:
                in_crowd = in_crowd or share_inside(row["bbox"], thing["bbox"]) >= 0.5
            elif o not in found.values():
                overlap = box_iou(xyxy(row["bbox"]), xyxy(thing["bbox"]))
                if overlap >= share:
                    best, share = o, overlap
        if best is not None:
            found[d] = best
        elif in_crowd:
            ignored.add(d)
    return found, ignored


def naive_confusion(truth, results, least):
    """The matrix of the detections with at least a score, matched anew: own class, then others by falling IoU."""
    ids = sorted(one["id"] for one in truth["categories"])
    results = [row for row in results if row["score"] >= least]
    found, ignored = naive_match(truth, results)
    pairs = []
    for d, row in enumerate(results):
        for o, thing in enumerate(truth["annotations"]):
            if row["image_id"] == thing["image_id"] and row["category_id"] != thing["category_id"]:
                overlap = box_iou(xyxy(row["bbox"]), xyxy(thing["bbox"]))
                if overlap >= 0.5 and d not in found and d not in ignored and not thing["iscrowd"]:
                    pairs.append((-overlap, d, o))
    for _, d, o in sorted(pairs):
        if d not in found and o not in found.values():
            found[d] = o
    counts = np.zeros((len(ids) + 1, len(ids) + 1), int)
    for d, row in enumerate(results):
        if d not in ignored:
            true = ids.index(truth["annotations"][found[d]]["category_id"]) if d in found else len(ids)
            counts[true, ids.index(row["category_id"])] += 1
    for o, thing in enumerate(truth["annotations"]):
        if not thing["iscrowd"] and o not in found.values():
            counts[ids.index(thing["category_id"]), len(ids)] += 1
    return counts
