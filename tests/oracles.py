"""Naive references, written from the definitions: loops over numpy, nothing shared with the code they test."""

import math

import numpy as np

# --- Detections -------------------------------------------------------------------------------------------------------


def detections(class_logits, box_deltas, anchors, scale, size, score=0.05, top_k=1000, nms_iou=0.5, limit=100):
    """One image's detections by loops in float64: the paper's §4.1 read aloud.

    class_logits, box_deltas, anchors: lists of (A_l, K), (A_l, 4), (A_l, 4), one a level. scale: (y, x) resized over
    original. size: (height, width) of the original. Returns a list of (score, label, [x1, y1, x2, y2]), best first.
    """
    pool = []
    for level, (logits, deltas, level_anchors) in enumerate(zip(class_logits, box_deltas, anchors, strict=True)):
        found = []
        for anchor, label in zip(*np.nonzero(logits > -40.0), strict=True):
            logit = float(logits[anchor, label])
            if 1.0 / (1.0 + math.exp(-logit)) > (score if isinstance(score, float) else score[level]):
                found.append((-logit, level, int(anchor), int(label)))
        for rank in sorted(found)[:top_k]:
            x1, y1, x2, y2 = (float(value) for value in level_anchors[rank[2]])
            dx, dy, dw, dh = (float(value) for value in deltas[rank[2]])
            width = (x2 - x1) * math.exp(min(dw, math.log(1000 / 16)))
            height = (y2 - y1) * math.exp(min(dh, math.log(1000 / 16)))
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            for side, limits in enumerate((size[1], size[0], size[1], size[0])):
                corners[side] = min(max(corners[side] / float(scale[1 - side % 2]), 0.0), float(limits))
            pool.append((rank, corners))
    kept = []
    for rank, corners in sorted(pool):
        if len(kept) == limit:
            break
        if all(label != rank[3] or box_iou(corners, other) <= nms_iou for _, label, other in kept):
            kept.append((1.0 / (1.0 + math.exp(rank[0])), rank[3], corners))
    return kept


def box_iou(a, b):
    """IoU of two xyxy boxes; 0 where either has no area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    if width <= 0 or height <= 0 or min(areas) <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)


def assignment(anchors, boxes, labels, positive=0.5, negative=0.4, promote="never"):
    """§4's assignment by loops: class targets (A,) (−1 background, −2 ignored) and the index of each anchor's box."""
    table = [[box_iou(anchor, box) for box in boxes] for anchor in anchors]
    usable = [j for j in range(len(boxes)) if labels[j] >= 0 and (boxes[j][2:] > boxes[j][:2]).all()]
    best_of_box = {j: max(row[j] for row in table) for j in usable}
    classes, owners = [], []
    for row in table:
        owner = max(usable, key=lambda j: row[j], default=None)
        best = row[owner] if owner is not None else -1.0
        champion = any(row[j] == best_of_box[j] > 0 for j in usable)
        if promote == "above_negative":
            champion = champion and best >= negative
        if best >= positive or (promote != "never" and champion):
            classes.append(int(labels[owner]))
        else:
            classes.append(-1 if best < negative else -2)
        owners.append(owner)
    return np.array(classes), owners


def deltas(box, anchor):
    """dx, dy, dw, dh of one box from one anchor, in float64."""
    box, anchor = np.asarray(box, np.float64), np.asarray(anchor, np.float64)
    size, anchor_size = box[2:] - box[:2], anchor[2:] - anchor[:2]
    shift = (box[:2] + box[2:]) / 2 - (anchor[:2] + anchor[2:]) / 2
    return np.concatenate([shift / anchor_size, np.log(size / anchor_size)])


def strided_conv(image, kernel, stride, margin):
    """Convolution (H, W, C) by (k, k, C, F) with zeros around, window by window."""
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    k = kernel.shape[0]
    rows = range(0, padded.shape[0] - k + 1, stride)
    columns = range(0, padded.shape[1] - k + 1, stride)
    return np.array([[np.tensordot(padded[y : y + k, x : x + k], kernel, 3) for x in columns] for y in rows])


# --- Pictures ---------------------------------------------------------------------------------------------------------


def bilinear(image, height, width):
    """(H, W, C) → (height, width, C) with half-pixel centres, edges repeated: two matrices of weights, in float64."""
    weights = []
    for old, new in zip(image.shape[:2], (height, width), strict=True):
        matrix = np.zeros((new, old))
        for row in range(new):
            position = (row + 0.5) * old / new - 0.5
            below = int(np.floor(position))
            for neighbour, share in ((below, below + 1 - position), (below + 1, position - below)):
                matrix[row, min(max(neighbour, 0), old - 1)] += share
        weights.append(matrix)
    return np.einsum("yh,xw,hwc->yxc", *weights, image.astype(float))


# --- Losses -----------------------------------------------------------------------------------------------------------


def focal_loss(class_targets, class_logits, gamma, alpha):
    """Eq. 5 by loops in float64: losses (B, A) and, by central differences, their gradient (B, A, K); −2 is ignored.

    alpha: one for all classes, or one for each.
    """
    losses, gradient = np.zeros(class_targets.shape), np.zeros(class_logits.shape)
    alphas = np.broadcast_to(alpha, class_logits.shape[-1:])

    def pair(logit, foreground, label):
        p, weight = 1 / (1 + math.exp(-logit)), alphas[label]
        p_t, alpha_t = (p, weight) if foreground else (1 - p, 1 - weight)
        return -alpha_t * (1 - p_t) ** gamma * math.log(p_t)

    for image, anchor, label in np.ndindex(*class_logits.shape):
        target = class_targets[image, anchor]
        if target != -2:
            logit, step = float(class_logits[image, anchor, label]), 1e-5
            losses[image, anchor] += pair(logit, target == label, label)
            difference = pair(logit + step, target == label, label) - pair(logit - step, target == label, label)
            gradient[image, anchor, label] = difference / (2 * step)
    return losses, gradient


def hard_examples(class_targets, losses, boxes, num_examples, nms_threshold, ratio=None):
    """One image's OHEM by loops (§5.1): class targets (A,) with −2 where not selected."""
    order = sorted((j for j in range(len(losses)) if class_targets[j] != -2), key=lambda j: (-losses[j], j))
    survivors = []
    for j in order:
        if all(box_iou(boxes[j], boxes[other]) <= nms_threshold for other in survivors):
            survivors.append(j)
    if ratio is None:
        chosen = survivors[:num_examples]
    else:
        positives = [j for j in survivors if class_targets[j] >= 0][: max(1, int(num_examples / (1 + ratio)))]
        negatives = [j for j in survivors if class_targets[j] == -1]
        chosen = positives + negatives[: min(int(ratio * max(1, len(positives))), num_examples - len(positives))]
    return np.array([class_targets[j] if j in chosen else -2 for j in range(len(losses))])
