"""Comparisons of settings: what their rows change, and the numbers of a row."""

import json

import pytest

from experiments import augmentation, comparison, modern, rare_classes
from retinanet_tf.config.presets import presets
from retinanet_tf.errors import InputError


@pytest.mark.parametrize(
    ("rows", "base"),
    [
        (augmentation.ROWS, comparison.REDUCED),
        (rare_classes.ROWS, comparison.REDUCED),
        (modern.ROWS, modern.BASE),
    ],
    ids=["augmentation", "rare_classes", "modern"],
)
def test_every_row_but_the_first_changes_what_it_names(rows, base):
    before, seen = base.flat(), set()
    for number, changes in enumerate(rows.values()):
        after = base.replace(**changes).flat()
        assert {name for name in after if after[name] != before[name]} == set(changes) and bool(changes) == (number > 0)
        seen.add(str(after))
    assert len(seen) == len(rows)


def test_every_part_of_modern_is_left_out_once():
    """What `modern` changes in the paper's configuration, but for pixels, sizes and schedule, is in some row."""
    paper, preset, base = presets["paper"].flat(), presets["modern"].flat(), modern.BASE.flat()
    changed = {name for name in preset if preset[name] != paper[name]}
    replaced = {*modern.NETWORK, *modern.PIXELS, *modern.OPTIMIZATION, *modern.OTHERS}
    assert all(base[name] == preset[name] for name in set(preset) - replaced)
    tried = {name for changes in modern.ROWS.values() for name in changes}
    fixed = {"channel_order", "stride_in", "anchor_style", "steps", "weight_decay", "learning_rate"}
    assert changed - tried - fixed <= {*modern.PIXELS, *modern.OPTIMIZATION, *modern.NETWORK}


def test_numbers_of_a_row_are_means_over_its_seeds():
    found = {"one": {"0": {"AP": 0.2}}, "two": {"0": {"AP": 0.1}, "1": {"AP": 0.3}}}
    first, second = comparison._result("x", found, {"one": {}, "two": {"flip": 0.0}}, "reduced")["rows"]
    assert (first["mean"], first["standard_deviation"]) == ({"AP": 0.2}, {})
    assert second["mean"] == {"AP": 0.2} and second["standard_deviation"]["AP"] == pytest.approx(0.1414, abs=1e-4)
    assert second["changes"] == {"flip": 0.0} and second["seeds"] == found["two"]


def test_later_rows_and_seeds_join_those_of_the_same_data(tmp_path):
    path = tmp_path / "x.json"
    assert comparison._before(path, "reduced: 9 pictures") == {}
    rows = {"one": {}, "two": {"flip": 0.0}}
    first = {"two": {"0": {"AP": 0.1}}}
    path.write_text(json.dumps(comparison._result("x", first, rows, "reduced: 9 pictures")))
    found = comparison._before(path, "reduced: 9 pictures")
    assert found == first
    found["two"]["1"], found["one"] = {"AP": 0.3}, {"0": {"AP": 0.2}}
    table = comparison._result("x", found, rows, "reduced: 9 pictures")["rows"]
    assert [(row["row"], row["mean"]["AP"]) for row in table] == [("one", 0.2), ("two", 0.2)]
    with pytest.raises(InputError, match="other pictures or steps"):
        comparison._before(path, "reduced: 8 pictures")
