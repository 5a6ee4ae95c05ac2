"""torchvision's RetinaNet v2 and a step of its training, written in float64 from its published description.

Weights are a dictionary by the names that `retinanet_tf.models.retinanet.variables` gives; nothing else of the package
is used. Stem and stage 2 are frozen with their statistics.
"""

import math

import numpy as np
import oracles
import tensorflow as tf

EPSILON = 1e-5


class Reference:
    """The network of one configuration on images `(B, S, S, 3)`, S a multiple of 32.

    Args:
        weights: {"layer/weight": array}.
        blocks: residual blocks in stages 2 to 5.
        classes: K.
        depth: convolutions of a subnet before its last one.
    """

    def __init__(self, weights, blocks, classes, depth):
        self.weights = {name: tf.Variable(np.float64(value)) for name, value in weights.items()}
        self.blocks, self.classes, self.depth = blocks, classes, depth
        self.statistics = {}
        """New running mean and variance by layer, the latter with divisor N, and N."""

    def convolve(self, x, name, stride=1):
        kernel = self.weights[f"{name}/kernel"]
        margin = kernel.shape[0] // 2
        x = tf.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        x = tf.nn.conv2d(x, kernel, stride, "VALID")
        bias = self.weights.get(f"{name}/bias")
        return x if bias is None else x + bias

    def normalize(self, x, name, trained):
        mean, variance, gamma, beta = (
            self.weights[f"{name}/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        if trained:
            count = tf.size(x) // x.shape[-1]
            old = mean, variance
            mean = tf.reduce_mean(x, axis=(0, 1, 2))
            variance = tf.reduce_mean((x - mean) ** 2, axis=(0, 1, 2))
            self.statistics[name] = *(0.9 * a + 0.1 * b for a, b in zip(old, (mean, variance), strict=True)), int(count)
        return (x - mean) / tf.sqrt(variance + EPSILON) * gamma + beta

    def unit(self, x, name, stage, stride=1):
        return self.normalize(self.convolve(x, f"{name}_conv", stride), f"{name}_norm", stage > 2)

    def stages(self, x):
        x = tf.nn.relu(self.unit(x, "stem", 1, 2))
        x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
        result = []
        for stage, count in enumerate(self.blocks, start=2):
            for block in range(count):
                name, stride = f"stage{stage}_block{block}", 2 if stage > 2 and block == 0 else 1
                y = tf.nn.relu(self.unit(x, f"{name}_1", stage))
                y = tf.nn.relu(self.unit(y, f"{name}_2", stage, stride))
                short = self.unit(x, f"{name}_shortcut", stage, stride) if block == 0 else x
                x = tf.nn.relu(self.unit(y, f"{name}_3", stage) + short)
            result.append(x)
        return result[1:]

    def pyramid(self, c3, c4, c5):
        levels, inner = [], None
        for level, features in ((5, c5), (4, c4), (3, c3)):
            lateral = self.convolve(features, f"fpn_lateral{level}")
            inner = lateral if inner is None else lateral + tf.repeat(tf.repeat(inner, 2, axis=1), 2, axis=2)
            levels.insert(0, self.convolve(inner, f"fpn_output{level}"))
        p6 = self.convolve(c5, "fpn_p6", 2)
        return [*levels, p6, self.convolve(tf.nn.relu(p6), "fpn_p7", 2)]

    def subnet(self, x, name, outputs):
        for number in range(self.depth):
            x = self.convolve(x, f"{name}/conv{number}")
            grouped = tf.reshape(x, (*x.shape[:3], 32, -1))
            mean = tf.reduce_mean(grouped, axis=(1, 2, 4), keepdims=True)
            variance = tf.reduce_mean((grouped - mean) ** 2, axis=(1, 2, 4), keepdims=True)
            x = tf.reshape((grouped - mean) / tf.sqrt(variance + EPSILON), x.shape)
            norm = f"{name}/norm{number}_0"
            x = tf.nn.relu(x * self.weights[f"{norm}/gamma"] + self.weights[f"{norm}/beta"])
        x = self.convolve(x, f"{name}/predictor")
        return tf.reshape(x, (x.shape[0], -1, outputs))

    def outputs(self, images):
        """Class logits `(B, A, K)` and box deltas `(B, A, 4)` of RGB in 0–255, with batch statistics."""
        x = (tf.constant(images, tf.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        levels = self.pyramid(*self.stages(x))
        subnets = (("class_subnet", self.classes), ("box_subnet", 4))
        return [tf.concat([self.subnet(level, name, n) for level in levels], axis=1) for name, n in subnets]

    def loss(self, images, boxes, labels):
        """Focal loss and GIoU loss, each image's sum over its positives, then the mean over images."""
        logits, deltas = self.outputs(images)
        anchors, total = anchors_of(images.shape[1]), 0.0
        for row in range(len(images)):
            targets, owners = oracles.assignment(anchors, boxes[row], labels[row], promote="always")
            positive = np.flatnonzero(targets >= 0)
            counted = np.flatnonzero(targets != -2)
            wanted = np.zeros((len(anchors), self.classes))
            wanted[positive, targets[positive]] = 1
            own = np.array([boxes[row][owners[index]] for index in positive]).reshape(-1, 4)
            focal = focal_loss(tf.gather(logits[row], counted), wanted[counted])
            found = decoded(tf.gather(deltas[row], positive), anchors[positive])
            total += (focal + tf.reduce_sum(1 - giou(found, own))) / max(1, len(positive))
        return total / len(images)


def anchors_of(side):
    """torchvision's: whole sides, ratio after ratio, at multiples of `side` // cells, centred on the cells' corners."""
    result = []
    for level in range(3, 8):
        cells = -(-side // 2**level)
        sizes = [int(4 * 2**level * 2 ** (third / 3)) for third in range(3)]
        cell = []
        for ratio in (0.5, 1.0, 2.0):
            for size in sizes:
                height, width = size * math.sqrt(ratio), size / math.sqrt(ratio)
                # Rounded in single precision, as there: halves would come out otherwise.
                cell.append(np.round(np.float32([-width, -height, width, height]) / 2))
        for y in range(cells):
            for x in range(cells):
                result += [anchor + np.array([x, y, x, y]) * (side // cells) for anchor in cell]
    return np.array(result, np.float64)


def focal_loss(logits, wanted):
    """α = 0.25, γ = 2, summed."""
    p = tf.sigmoid(logits)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits)
    missing = 1 - (p * wanted + (1 - p) * (1 - wanted))
    return tf.reduce_sum((0.25 * wanted + 0.75 * (1 - wanted)) * missing**2 * cross_entropy)


def decoded(deltas, anchors):
    """Boxes `(n, 4)` xyxy."""
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    x = anchors[:, 0] + width / 2 + deltas[:, 0] * width
    y = anchors[:, 1] + height / 2 + deltas[:, 1] * height
    w = tf.exp(tf.minimum(deltas[:, 2], math.log(1000 / 16))) * width
    h = tf.exp(tf.minimum(deltas[:, 3], math.log(1000 / 16))) * height
    return tf.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)


def giou(a, b):
    def area(low, high):
        sides = tf.maximum(high - low, 0)
        return sides[:, 0] * sides[:, 1]

    common = area(tf.maximum(a[:, :2], b[:, :2]), tf.minimum(a[:, 2:], b[:, 2:]))
    union = area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - common
    hull = area(tf.minimum(a[:, :2], b[:, :2]), tf.maximum(a[:, 2:], b[:, 2:]))
    return common / union - (hull - union) / hull


def adamw_change(value, gradient, rate, decay):
    """What the first step of torch.optim.AdamW adds (Loshchilov & Hutter 2019; Kingma & Ba 2015, algorithm 1)."""
    first, second = 0.1 * gradient / (1 - 0.9), 0.001 * gradient**2 / (1 - 0.999)
    return -rate * decay * value - rate * first / (np.sqrt(second) + 1e-8)
