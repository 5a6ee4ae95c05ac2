"""Online hard example mining (OHEM) for a dense detector (§5.1), which the focal loss is compared with.

An example is an anchor. Each image's examples are scored by their loss, non-maximum suppression thins out those that
overlap an example of higher loss, and the examples of highest loss that are left make the minibatch: all others count
as ignored, in classification and box regression alike.

The paper leaves these open. Our reading, and the other one:

- The minibatch of 128 is one image's (OHEM's own code, Shrivastava et al. 2016: 128 of all images of the device).
- An example's score is its classification loss (OHEM's own code: with its box loss).
- One NMS runs over positives and background together (OHEM's own code: one per label).
- Boxes compared are the anchors, as OHEM suppresses on proposals before their regression (the other: decoded boxes).
- The normaliser divides by the examples that were selected, as a minibatch's mean does, not by the positives alone.

The losses then see the minibatch alone: logits and targets of the chosen anchors, gathered.
"""

from typing import NamedTuple

import tensorflow as tf

from retinanet_tf.detection.assignment import IGNORED
from retinanet_tf.losses.classification import ClassificationLoss

_NEVER = -1.0
"""Score of ignored anchors, below every loss."""


class Minibatch(NamedTuple):
    """An image's chosen anchors, N at most; the remaining entries are ignored anchors."""

    anchors: tf.Tensor
    """`(B, N)` int32, indices along A."""
    class_targets: tf.Tensor
    """`(B, N)` int32: 0…K−1, −1 background, −2 no anchor."""


def ohem(
    class_targets: tf.Tensor,
    losses: tf.Tensor,
    boxes: tf.Tensor,
    num_examples: int = 128,
    nms_threshold: float = 0.5,
    ratio: float | None = None,
    static_shapes: bool = False,
) -> tf.Tensor:
    """Keeps each image's hardest examples and sets all others to ignored. For eager and graph mode and for XLA.

    Args:
        class_targets: `(B, A)` int32, 0…K−1, −1 background, −2 ignored (never selected, never suppresses another).
        losses: `(B, A)` float, loss of each anchor, 0 or more; no gradient flows back through the choice.
        boxes: `(B, A, 4)` or `(A, 4)` xyxy pixels of the anchors.
        num_examples: examples per image at most (Table 1d: 128, 256, 512).
        nms_threshold: an example is dropped if its IoU with one of higher loss exceeds this (Table 1d: 0.5, 0.7).
        ratio: None takes the examples of highest loss whatever they are. A number r enforces positives to negatives
            1:r among what NMS left (3.0: Table 1d's "OHEM 1:3"): at most num_examples / (1 + r) positives, then r times
            as many negatives as positives. An image without positives counts as if it had one, so its background
            teaches.
        static_shapes: choose by a loop over the whole batch, for XLA: its own NMS takes a minute to compile for 10^5
            anchors and seconds to run. Without a ratio TensorFlow's kernel, image by image, is faster on a CPU without
            XLA; with a ratio the loop is always taken.

    Returns:
        `(B, A)` int32, class targets with −2 wherever an anchor was not selected.
    """
    class_targets = tf.cast(class_targets, tf.int32)
    losses = tf.where(class_targets == IGNORED, _NEVER, tf.stop_gradient(tf.cast(losses, tf.float32)))
    boxes = tf.cast(boxes, tf.float32)
    if static_shapes or ratio is not None:
        chosen = _greedy(class_targets >= 0, losses, boxes, num_examples, nms_threshold, ratio)
        return tf.where(chosen, class_targets, IGNORED)
    boxes = tf.broadcast_to(boxes, tf.concat([tf.shape(losses), [4]], 0))

    def of_image(image):
        targets, scores, corners = image
        # XLA's kernel slices as many as it is asked for.
        limit = num_examples if scores.shape[0] is None else min(num_examples, scores.shape[0])
        # Intersection over union doesn't change when x and y are exchanged, so xyxy may stand for the kernel's yxyx.
        chosen = tf.image.non_max_suppression(corners, scores, limit, nms_threshold, score_threshold=_NEVER / 2)
        mask = tf.scatter_nd(chosen[:, None], tf.ones_like(chosen), tf.shape(scores)) > 0
        return tf.where(mask, targets, IGNORED)

    signature = tf.TensorSpec(class_targets.shape[1:], tf.int32)
    return tf.map_fn(of_image, (class_targets, losses, boxes), fn_output_signature=signature)


def mine(
    loss: ClassificationLoss,
    class_targets: tf.Tensor,
    class_logits: tf.Tensor,
    anchors: tf.Tensor,
    mining: str,
    mining_examples: int = 128,
    mining_nms: float = 0.5,
    static_shapes: bool = False,
) -> Minibatch:
    """`ohem` as the training job has it: anchors scored by the classification loss in use.

    Args:
        loss: one of this package's classification losses.
        class_targets: `(B, A)` int32.
        class_logits: `(B, A, K)`.
        anchors: `(A, 4)`.
        mining: 'ohem' or 'ohem_1_3'.
        mining_examples: see `ohem`.
        mining_nms: see `ohem`.
        static_shapes: see `ohem`.
    """
    losses = loss.per_anchor(class_targets, tf.stop_gradient(class_logits))
    ratio = {"ohem": None, "ohem_1_3": 3.0}[mining]
    kept = ohem(class_targets, losses, anchors, mining_examples, mining_nms, ratio, static_shapes)
    count = kept.shape[1]
    size = min(mining_examples, count) if count else tf.minimum(mining_examples, tf.shape(kept)[1])
    _, chosen = tf.math.top_k(tf.cast(kept != IGNORED, tf.int32), size)
    return Minibatch(chosen, tf.gather(kept, chosen, batch_dims=1))


def _greedy(positive, scores, corners, num_examples, threshold, ratio):
    """Mask `(B, A)` of the hardest survivors, found one per turn in all images at once.

    `positive` is `(B, A)` bool, `corners` `(A, 4)` or `(B, A, 4)`. With a ratio the turns go on until the positives'
    share is full or no positive is left, and there are enough negatives.
    """
    share = num_examples if ratio is None else max(1, int(num_examples / (1.0 + ratio)))
    # An image without positives takes as many negatives as if it had one.
    enough = 0 if ratio is None else max(num_examples - share, min(int(ratio), num_examples))
    x1, y1, x2, y2 = tf.unstack(tf.broadcast_to(corners, [*tf.unstack(tf.shape(scores)), 4]), axis=-1)
    area = (x2 - x1) * (y2 - y1)
    indices = tf.range(tf.shape(scores)[1])

    def is_left(left):
        return left > _NEVER / 2

    def goes_on(turn, left, ranks, counts):
        if ratio is None:
            return turn < num_examples
        positives_wait = (counts[:, 1] < share) & tf.reduce_any(is_left(left) & positive, axis=1)
        return tf.reduce_any(tf.reduce_any(is_left(left), axis=1) & (positives_wait | (counts[:, 0] < enough)))

    def take_hardest(turn, left, ranks, counts):
        best = tf.argmax(left, axis=1, output_type=tf.int32)

        def of_best(values):
            return tf.gather(values, best, axis=1, batch_dims=1)[:, None]

        exists, kind = is_left(of_best(left)), tf.cast(of_best(positive), tf.int32)
        width = tf.minimum(x2, of_best(x2)) - tf.maximum(x1, of_best(x1))
        height = tf.minimum(y2, of_best(y2)) - tf.maximum(y1, of_best(y1))
        common = tf.maximum(width, 0.0) * tf.maximum(height, 0.0)
        taken = exists & (indices == best[:, None])
        # Boxes without area overlap nothing.
        overlap = tf.math.divide_no_nan(common, area + of_best(area) - common)
        rank = tf.gather(counts, kind, axis=1, batch_dims=1)
        counts += tf.cast(exists, tf.int32) * tf.one_hot(kind[:, 0], 2, dtype=tf.int32)
        return (
            turn + 1,
            tf.where(exists & ((overlap > threshold) | taken), _NEVER, left),
            tf.where(taken, rank, ranks),
            counts,
        )

    # Each survivor's rank among those of its kind, and how many survivors of each kind there are.
    ranks = tf.fill(tf.shape(scores), tf.int32.max)
    counts = tf.zeros([tf.shape(scores)[0], 2], tf.int32)
    _, _, ranks, counts = tf.while_loop(
        goes_on, take_hardest, (tf.constant(0), scores, ranks, counts), maximum_iterations=tf.shape(scores)[1]
    )
    if ratio is None:
        return ranks < tf.int32.max
    positives = tf.minimum(counts[:, 1:], share)
    negatives = tf.cast(ratio * tf.maximum(tf.cast(positives, tf.float32), 1.0), tf.int32)
    return ranks < tf.where(positive, share, tf.minimum(negatives, num_examples - positives))
