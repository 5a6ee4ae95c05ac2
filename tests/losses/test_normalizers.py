"""Normalisers: their arithmetic, the same gradients on one device and on two, and the background's lesson."""

from functools import lru_cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.config.config import AnchorConfig
from retinanet_tf.losses.normalizers import normalizer_weights

IMAGES = np.random.default_rng(0).uniform(0, 255, (8, 64, 64, 3)).astype(np.float32)
OBJECTS = {
    "spread": [1, 0, 2, 1, 2, 0, 1, 2],
    "all on one replica": [2, 1, 2, 2, 0, 0, 0, 0],
}


def truth(objects):
    """So many objects in each image, padded to two."""
    boxes = np.array([[4.0, 8, 36, 40], [20, 20, 60, 52]], np.float32)
    shown = np.arange(2) < np.array(objects)[:, None]
    return {
        "boxes": np.where(shown[..., None], boxes, 0).astype(np.float32),
        "labels": np.where(shown, [0, 2], -1).astype(np.int32),
    }


@lru_cache
def strategy(replicas):
    """One per process, as in a training job; without collectives, whose keys other tests' models share."""
    devices = [f"CPU:{i}" for i in range(replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


@lru_cache
def compiled(normalizer, replicas):
    """A model, which keeps its graph from one `fit` to the next."""
    with strategy(replicas).scope():
        model = rn.RetinaNet(
            num_classes=3,
            **TINY_NETWORK,
            norm="frozen",
            weight_decay=0.0,
            freeze_stages=0,
            anchors=AnchorConfig(max_level=5),
            normalizer=normalizer,
        )
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss=rn.retinanet_losses(), jit_compile=False)
    return model


def gradients(objects, normalizer, replicas=1):
    """What one step of `fit` with SGD at learning rate 1 takes off each variable."""
    keras.utils.set_random_seed(0)
    data = tf.data.Dataset.from_tensors((IMAGES, truth(objects)))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    model = compiled(normalizer, replicas)
    # Equal values whatever the replicas' random numbers are, and large enough for the deeper gradients to show.
    rng = np.random.default_rng(1)
    before = [rng.normal(0, 0.05, w.shape) if w.ndim == 4 else w for w in model.get_weights()]
    model.set_weights(before)
    before = [np.array(w) for w in model.trainable_variables]
    model.fit(data.with_options(options), epochs=1, verbose=0)
    return [old - np.array(new) for old, new in zip(before, model.trainable_variables, strict=True)]


def test_weights_by_hand():
    counts = tf.constant([3.0, 0.0, 1.0])
    np.testing.assert_allclose(normalizer_weights(counts, "image"), [1 / 3, 1, 1])
    np.testing.assert_allclose(normalizer_weights(counts, "replica"), [3 / 7] * 3)
    np.testing.assert_allclose(normalizer_weights(counts, "global"), [3 / 4] * 3)
    assert normalizer_weights(tf.zeros(2), "global").numpy().tolist() == [2.0, 2.0]


def test_global_weights_do_not_depend_on_where_the_objects_are():
    """Σ over replicas of mean-of-replica losses, for counts on one replica alone: the total is divided by the total."""
    two = strategy(2)
    counts = tf.constant([[4.0, 2.0], [0.0, 0.0]])

    @tf.function
    def run():
        values = two.experimental_distribute_values_from_function(
            lambda context: counts[context.replica_id_in_sync_group]
        )
        return two.experimental_local_results(two.run(normalizer_weights, (values, "global")))

    first, second = run()
    np.testing.assert_allclose(first, [4 / 6] * 2, rtol=1e-6)
    np.testing.assert_allclose(second, first)


@pytest.mark.once
@pytest.mark.parametrize("objects", OBJECTS)
def test_global_gives_the_same_gradients_on_one_device_and_on_two(objects):
    one, two = (gradients(OBJECTS[objects], "global", replicas) for replicas in (1, 2))
    largest = max(np.abs(gradient).max() for gradient in one)
    assert largest > 1e-3
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)


@pytest.mark.parametrize("normalizer", ["image", "replica", "global"])
def test_without_objects_every_image_keeps_a_finite_weight(normalizer):
    weights = normalizer_weights(tf.zeros(8), normalizer).numpy()
    assert np.isfinite(weights).all() and (weights > 0).all()
