"""A small backbone in the published layouts, which the library's table lacks."""

import pytest

from retinanet_tf.models.resnet import VARIANTS, Variant


@pytest.fixture(scope="module")
def small_backbone():
    """`resnet_small`, as `published` has it, among the backbones that are known."""
    VARIANTS["resnet_small"] = Variant((1, 2, 1, 1), group_width=8)
    yield
    del VARIANTS["resnet_small"]
