"""Normalisers: their arithmetic on one device and on two."""

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.losses.normalizers import normalizer_weights


def test_weights_by_hand():
    counts = tf.constant([3.0, 0.0, 1.0])
    np.testing.assert_allclose(normalizer_weights(counts, "image"), [1 / 3, 1, 1])
    np.testing.assert_allclose(normalizer_weights(counts, "replica"), [3 / 7] * 3)
    np.testing.assert_allclose(normalizer_weights(counts, "global"), [3 / 4] * 3)
    assert normalizer_weights(tf.zeros(2), "global").numpy().tolist() == [2.0, 2.0]


def test_global_weights_do_not_depend_on_where_the_objects_are(two_devices):
    """Σ over replicas of mean-of-replica losses, for counts on one replica alone: the total is divided by the total."""
    counts = tf.constant([[4.0, 2.0], [0.0, 0.0]])

    @tf.function
    def run():
        values = two_devices.experimental_distribute_values_from_function(
            lambda context: counts[context.replica_id_in_sync_group]
        )
        return two_devices.experimental_local_results(two_devices.run(normalizer_weights, (values, "global")))

    first, second = run()
    np.testing.assert_allclose(first, [4 / 6] * 2, rtol=1e-6)
    np.testing.assert_allclose(second, first)


@pytest.mark.parametrize("normalizer", ["image", "replica", "global"])
def test_without_objects_every_image_keeps_a_finite_weight(normalizer):
    weights = normalizer_weights(tf.zeros(8), normalizer).numpy()
    assert np.isfinite(weights).all() and (weights > 0).all()
