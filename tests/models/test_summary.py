"""Counts against arithmetic and against the figures that the ResNet paper prints."""

import pytest

import retinanet_tf as rn
from retinanet_tf.models.summary import count, draw, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def paper():
    """The paper's network."""
    return rn.RetinaNet.from_config(rn.presets["paper"])


def test_heads_and_pyramid_by_hand(paper):
    """640×1024: P3 80×128, P4 40×64, P5 20×32, P6 10×16, P7 5×8; C = 256, A = 9, K = 80."""
    rows = {row.part: row for row in count(paper, 640, 1024)}
    cells = {3: 80 * 128, 4: 40 * 64, 5: 20 * 32, 6: 10 * 16, 7: 5 * 8}
    tower = 4 * 9 * 256 * 256
    assert rows["class_subnet"].multiply_adds == sum(cells.values()) * (tower + 9 * 256 * 720)
    assert rows["box_subnet"].multiply_adds == sum(cells.values()) * (tower + 9 * 256 * 36)
    laterals = sum(cells[level] * channels * 256 for level, channels in ((3, 512), (4, 1024), (5, 2048)))
    outputs = sum(cells[level] for level in (3, 4, 5)) * 9 * 256 * 256
    coarse = cells[6] * 9 * 2048 * 256 + cells[7] * 9 * 256 * 256
    assert rows["fpn"].multiply_adds == laterals + outputs + coarse
    assert rows["box_subnet"].parameters == tower + 4 * 256 + 9 * 256 * 36 + 36
    assert sum(row.parameters for row in rows.values()) == paper.count_params()


NARROW = {"fpn_channels": 32, "subnet_channels": 32, "subnet_depth": 1}


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", 1.8e9), ("resnet50", 3.8e9), ("resnet152", 11.3e9)],
)
def test_backbones_cost_what_the_resnet_paper_says(name, published):
    """He et al. 2016, table 1: multiply-adds at 224×224; its classifier (below 0.3 %) isn't here."""
    model = rn.RetinaNet(backbone=name, **NARROW)
    backbone = sum(row.multiply_adds for row in count(model, 224, 224) if row.part.startswith("st"))
    assert backbone == pytest.approx(published, rel=0.03)


def test_grouped_convolutions_count_their_groups():
    """ResNeXt-50-32x4d costs what ResNet-50 does (Xie et al. 2017, table 1: 4.2e9 and 4.1e9, stride in the 3×3)."""
    model = rn.RetinaNet(backbone="resnext50_32x4d", stride_in="3x3", **NARROW)
    backbone = sum(row.multiply_adds for row in count(model, 224, 224) if row.part.startswith("st"))
    assert backbone == pytest.approx(4.2e9, rel=0.03)


def test_table_and_picture(paper, tmp_path):
    assert f"{paper.count_params():,}" in table(count(paper, 640, 1024))
    draw(paper, 640, 1024, tmp_path / "paper.png")
    assert (tmp_path / "paper.png").read_bytes().startswith(b"\x89PNG")
