"""Evaluation plots: the curves' values, and that the pictures show them."""

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.evaluation.coco import coco_scores
from retinanet_tf.evaluation.plots import mean_precision, precision_recall_plot, size_score_plot

TRUTH = {
    "images": [{"id": 7, "width": 100, "height": 100}, {"id": 9, "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "a"}, {"id": 40, "name": "b"}, {"id": 41, "name": "without objects"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40], "area": 1600.0},
        {"id": 2, "image_id": 9, "category_id": 3, "bbox": [20, 20, 40, 40], "area": 1600.0},
        {"id": 3, "image_id": 9, "category_id": 40, "bbox": [0, 0, 10, 10], "area": 100.0},
    ],
}
RESULTS = [
    {"image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9},
    {"image_id": 9, "category_id": 3, "bbox": [70, 70, 20, 20], "score": 0.8},
    {"image_id": 9, "category_id": 3, "bbox": [20, 20, 40, 40], "score": 0.7},
]


def test_mean_curve_is_the_aps():
    """Its mean over recall is AP at that IoU; a category without objects has no part in it."""
    scores = coco_scores(TRUTH, RESULTS)
    assert mean_precision(scores, 0).mean() == pytest.approx(scores.metrics["AP50"])
    assert mean_precision(scores, 5).mean() == pytest.approx(scores.metrics["AP75"])
    # Half of the mean: category b is never found. Of a: right, wrong, right: 1 up to recall .5, then 2/3.
    np.testing.assert_allclose(mean_precision(scores, 0)[[0, 50, 51, 100]], [0.5, 0.5, 1 / 3, 1 / 3])


def coloured(path):
    """Columns of the picture with ink that isn't grey."""
    picture = np.asarray(Image.open(path)).astype(int)
    return ((picture.max(-1) - picture.min(-1)) > 60).sum(0)


@pytest.mark.parametrize("results", [RESULTS, []])
def test_plots_are_drawn(results, tmp_path):
    scores = coco_scores(TRUTH, results)
    ink = coloured(precision_recall_plot(scores, tmp_path / "pr.png"))
    assert (ink > 0).mean() > 0.5, "a curve over the whole width of the axes"
    ink = coloured(size_score_plot(TRUTH, results, scores, tmp_path / "sizes.png"))
    third = len(ink) // 3
    middle = ink[third : 2 * third].max()
    assert ink[:third].max() > 50 and (middle > 50 if results else middle == 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pr.png", "sizes.png"]
