"""Loss normalizers (§4.1), as one weight per image."""

import tensorflow as tf


def normalizer_weights(num_positive: tf.Tensor, kind: str = "image") -> tf.Tensor:
    """Weights under which Keras' mean over the images, and its mean over replicas, is the normalised loss.

    - 'image' (§4.1): each image by its own positives, then the mean over images. 1 / max(1, n_i).
    - 'replica' (authors' code): the replica's sum by Σ (n_i + 1) over its images. B / Σ (n_i + 1).
    - 'global': the sum over all replicas by max(1, Σ n_i) over all of them. R·B / max(1, Σ n_i): one replica and
        several give the same gradients, wherever the objects are. Where a batch isn't divisible by the replicas, which
        then have unequal parts, Keras' record of the losses is off; the gradients aren't.

    An image without positives keeps its weight, so its background still teaches; nothing is divided by zero.

    Args:
        num_positive: `(B,)` float32, positive anchors of each image of this replica.
        kind: 'image', 'replica' or 'global'.

    Returns:
        `(B,)` float32.
    """
    if kind == "image":
        return 1.0 / tf.maximum(num_positive, 1.0)
    images = tf.cast(tf.size(num_positive), tf.float32)
    if kind == "replica":
        return tf.fill(tf.shape(num_positive), images / tf.reduce_sum(num_positive + 1.0))
    total, replicas = tf.reduce_sum(num_positive), 1.0
    context = tf.distribute.get_replica_context()
    # There is no replica context while Keras 3 traces the model for shapes.
    if context is not None and context.num_replicas_in_sync > 1:
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
        replicas = float(context.num_replicas_in_sync)
    return tf.fill(tf.shape(num_positive), replicas * images / tf.maximum(total, 1.0))
