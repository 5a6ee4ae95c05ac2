"""Evaluation plots: the values that curves, histograms and bars get."""

import numpy as np
import pytest

from retinanet_tf.evaluation import loss_distribution, plots
from retinanet_tf.evaluation.coco import coco_scores
from retinanet_tf.evaluation.loss_distribution import LossDistribution

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


@pytest.fixture(params=[RESULTS, []], ids=["results", "none"])
def results(request):
    return request.param


def test_mean_curve_is_the_aps():
    """Its mean over recall is AP at that IoU; a category without objects doesn't count."""
    scores = coco_scores(TRUTH, RESULTS)
    assert plots.mean_precision(scores, 0).mean() == pytest.approx(scores.metrics["AP50"])
    assert plots.mean_precision(scores, 5).mean() == pytest.approx(scores.metrics["AP75"])
    # Half of the mean: category b is never found. Of a: right, wrong, right: 1 up to recall .5, then 2/3.
    np.testing.assert_allclose(plots.mean_precision(scores, 0)[[0, 50, 51, 100]], [0.5, 0.5, 1 / 3, 1 / 3])


def test_precision_recall_curves(results, figures, tmp_path):
    scores = coco_scores(TRUTH, results)
    assert plots.precision_recall_plot(scores, tmp_path / "pr.png").exists()
    curves = [line.get_xydata() for line in figures[0].axes[0].lines]
    assert len(curves) == 3
    np.testing.assert_allclose(curves[0].T, [np.linspace(0, 1, 101), plots.mean_precision(scores, 0)])
    np.testing.assert_allclose(
        [curve[:, 1].mean() for curve in curves[:2]], [scores.metrics[k] for k in ("AP50", "AP75")]
    )


def test_sizes_scores_and_areas(results, figures, tmp_path):
    scores = coco_scores(TRUTH, results)
    assert plots.size_score_plot(TRUTH, results, scores, tmp_path / "sizes.png").exists()
    by_size, by_score, by_area = figures[0].axes
    shares = sum(bar.get_height() for bar in by_size.patches)
    assert shares == pytest.approx(2.0 if results else 1.0), "shares of the objects, and of the detections"
    assert sum(bar.get_height() for bar in by_score.patches) == len(results)
    heights = [bar.get_height() for bar in by_area.patches]
    assert heights == pytest.approx([0.0, 100 * scores.metrics["APm"], 0.0])
    assert [label.get_text() for label in by_area.get_xticklabels()] == [
        "small\n1 objects",
        "medium\n2 objects",
        "large\n0 objects",
    ]


def test_figure_4_has_the_curves(figures, tmp_path):
    rng = np.random.default_rng(0)
    distribution = LossDistribution()
    distribution.update(rng.integers(-2, 3, (2, 50)), rng.normal(-2, 2, (2, 50, 3)))
    assert loss_distribution.figure_4(distribution, tmp_path / "figure.png", (0.0, 2.0)).exists()
    for axes, kind in zip(figures[0].axes, ("foreground", "background"), strict=True):
        for line, gamma in zip(axes.lines, (0.0, 2.0), strict=True):
            np.testing.assert_array_equal(line.get_xydata().T, distribution.cumulative(kind, gamma))
