"""Text of others for terminals and pages."""

import pytest

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("żółw 杯子 ☕ «é»", "żółw 杯子 ☕ «é»"),
        ("bell\a, tab\t, line\n", r"bell\x07, tab\t, line\n"),
        ("\x1b]0;title\x07\x9b2J", r"\x1b]0;title\x07\x9b2J"),
        ("NUL\0", r"NUL\x00"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("half of \ud83d", r"half of \ud83d"),
        ("\u2028\u2029\u200b\ufeff", r"\u2028\u2029\u200b\ufeff"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),
    ],
)
def test_what_could_act_on_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["cup", "fish", "dog"], ("cup", "fish", "dog")),
        (["fish", "fish", "cup"], ("fish (1)", "fish (2)", "cup")),
        (["fish", "fish", "fish (1)"], ("fish (1)", "fish (2)", "fish (1) (3)")),
        ([" ", " ", " "], ("  (1)", "  (2)", "  (3)")),
    ],
)
def test_names_that_tell_categories_apart(names, unique):
    assert LabelMap([1, 2, 3], names).unique_names == unique
