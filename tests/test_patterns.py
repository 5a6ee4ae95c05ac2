"""Glob patterns: what exists is no pattern."""

import pytest

from retinanet_tf.errors import InputError
from retinanet_tf.patterns import matching, split_list


@pytest.fixture
def tree(tmp_path):
    """Files whose paths have glob's characters, beside those that a pattern of these characters would match."""
    for name in (
        *("data [v2]/a.txt", "data v/a.txt", "data 2/a.txt", "run (1) [ab]/x[1].txt", "run (1) [ab]/x1.txt"),
        *("what?/a.txt", "whats/a.txt", "star*/a.txt", "start/a.txt", "deep/[x]/[y]/a.txt", "deep/x/y/a.txt", "b1.txt"),
        *("b2.txt", "open[/a.txt"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("data [v2]/*.txt", ["data [v2]/a.txt"]),
        ("data [v2]/a.txt", ["data [v2]/a.txt"]),
        ("data [v2]", ["data [v2]"]),
        ("data [2v]/*.txt", ["data 2/a.txt", "data v/a.txt"]),  # there is no such folder, so it is a set
        ("run (1) [ab]/x[1]*", ["run (1) [ab]/x[1].txt"]),
        ("run (1) [ab]/x[0-9]*", ["run (1) [ab]/x1.txt"]),
        ("what?/*", ["what?/a.txt"]),
        ("wha??/*", ["what?/a.txt", "whats/a.txt"]),
        ("star*/a*", ["star*/a.txt"]),
        ("deep/[x]/[y]/*", ["deep/[x]/[y]/a.txt"]),
        ("deep/*/[y]/*", ["deep/[x]/[y]/a.txt"]),
        ("**/b[12].txt", ["b1.txt", "b2.txt"]),
        ("open[/*", ["open[/a.txt"]),
        ("none[/*", []),
        ("none", []),
        ("nu\0l/*", []),
    ],
)
def test_what_exists_is_no_pattern(tree, pattern, matches, monkeypatch):
    assert matching(tree / pattern) == [str(tree / name) for name in matches]
    monkeypatch.chdir(tree)
    assert matching(pattern) == matches


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("b1.txt,b2.txt", ["b1.txt", "b2.txt"]),
        ("b1.txt, b2.txt,", ["b1.txt", "b2.txt"]),
        ("c, d.txt", ["c, d.txt"]),
        ("b1.txt,c, d.txt,b2.txt", ["b1.txt", "c, d.txt", "b2.txt"]),
        ("e,f/*.txt,b*.txt", ["e,f/*.txt", "b*.txt"]),
        ("none,b1.txt,nor,this", ["none", "b1.txt", "nor", "this"]),
        (",", []),
        ("", []),
    ],
)
def test_commas_of_names_do_not_separate(tree, text, parts, monkeypatch):
    for name in ("c, d.txt", "e,f/x.txt"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("")
    monkeypatch.chdir(tree)
    assert split_list(text) == parts


def test_an_address_that_no_file_system_has_is_refused():
    with pytest.raises(InputError, match=r"https://example\.com/a\.jpg can't be listed: .*copy it to a local folder"):
        split_list("https://example.com/a.jpg")
