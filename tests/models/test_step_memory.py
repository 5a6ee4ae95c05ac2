"""Memory of a training step: XLA's plan against buffers counted by hand and against the network's own tensors."""

import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.models.step_memory import StepMemory, buffer_bytes, step_memory

MATRIX = 512 * 512 * 4


def test_buffers_counted_by_hand():
    matrix = tf.TensorSpec((512, 512))
    variable = tf.Variable(tf.zeros((512, 512)))
    small = 4096
    assert 0 <= buffer_bytes(lambda a: tf.matmul(a, a), matrix) - 2 * MATRIX < small  # argument, result
    cube = buffer_bytes(lambda a: tf.matmul(tf.matmul(a, a), a), matrix)
    assert 0 <= cube - 3 * MATRIX < small  # the first product as well
    # The updated variable takes the place of the old one.
    assert 0 <= buffer_bytes(lambda a: variable.assign_add(a), matrix) - 3 * MATRIX < small


def test_the_largest_batch_by_hand():
    memory = StepMemory(batch=2, total=1000, per_image=300)  # 400 and 300 an image
    assert [memory.largest_batch(capacity) for capacity in (300, 699, 700, 1000, 1299, 1300)] == [0, 0, 1, 2, 2, 3]
    assert [memory.largest_batch(capacity, 2) for capacity in (999, 1000, 1599, 1600)] == [0, 2, 2, 4]


@pytest.mark.slow
def test_a_step_holds_weights_slots_images_and_activations():
    model = rn.RetinaNet(num_classes=3, **TINY_NETWORK, freeze_stages=0)
    model.compile(optimizer="adam", loss=rn.retinanet_losses(), jit_compile=True)
    memory = step_memory(model, 2, (128, 128), objects=8)
    held = 4 * sum(tf.size(value).numpy() for value in (*model.weights, *model.optimizer.variables))
    image = 128 * 128 * 3 * 4
    stem = 64 * 64 * 16 * 4  # its activations, which the backward pass needs
    assert memory.per_image > image + stem
    assert held < memory.total - 2 * memory.per_image < 3 * held  # gradients and what updates them come and go
