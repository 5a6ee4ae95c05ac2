"""The figures that formulas give: their points against the formulas written out in numpy."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.once


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def fl(p, gamma):
    return -((1 - p) ** gamma) * np.log(p)


def fl_slope(x, gamma):
    p = sigmoid(x)
    return (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1)


FIGURES = {
    "figure_1": {f"γ = {g:g}": (lambda p, g=g: fl(p, g)) for g in (0, 0.5, 1, 2, 5)},
    "figure_5": {
        "CE": lambda x: -np.log(sigmoid(x)),
        "FL γ = 2": lambda x: fl(sigmoid(x), 2),
        "FL* γ = 2, β = 1": lambda x: -np.log(sigmoid(2 * x + 1)) / 2,
        "FL* γ = 4, β = 0": lambda x: -np.log(sigmoid(4 * x)) / 4,
    },
    "figure_6": {
        "CE": lambda x: sigmoid(x) - 1,
        "FL γ = 2": lambda x: fl_slope(x, 2),
        "FL* γ = 2, β = 1": lambda x: sigmoid(2 * x + 1) - 1,
        "FL* γ = 4, β = 0": lambda x: sigmoid(4 * x) - 1,
    },
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, forked):
    """The folder that the three commands wrote."""
    folder = tmp_path_factory.mktemp("figures")
    for name in FIGURES:
        status, output = forked.run(f"experiments.paper.{name}", [f"--output={folder}"])
        assert status == 0, output
    return folder


@pytest.mark.parametrize("name", FIGURES)
def test_the_points_are_the_formulas(drawn, name):
    content = json.loads((drawn / f"{name}.json").read_text())
    x = np.array(content["x"])
    assert set(content["curves"]) == set(FIGURES[name])
    for label, formula in FIGURES[name].items():
        np.testing.assert_allclose(content["curves"][label], formula(x), rtol=1e-3, atol=2e-5, err_msg=label)
    assert (drawn / f"{name}.png").stat().st_size > 5000
