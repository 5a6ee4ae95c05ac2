"""The page of an evaluation: its numbers without a browser, and what a browser makes of them."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.evaluation import page
from retinanet_tf.evaluation.evaluator import analyse_results
from retinanet_tf.evaluation.page import html_page, page_data
from tests.browser import CHROMIUM, Browser
from tests.evaluation.splits import analysed, random_split, split

HOSTILE = '</script><img src=x onerror="window.caught = 1">\u2028&lt;b&gt;\x1b'


def encoded(count=4):
    for number in range(count):
        out = io.BytesIO()
        Image.new("RGB", (100, 100), (50 * number, 90, 120)).save(out, "PNG")
        yield out.getvalue()


def embedded(text):
    """The numbers in a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def count(entries, level):
    return sum(one >= level for one in entries)


def state(history, level):
    """The partner's class at a level; None above all of a history."""
    reached = [entry for entry in history if entry[0] >= level]
    return reached[-1][1] if reached else None


@pytest.mark.parametrize("seed", range(12))
def test_the_numbers_of_every_level_are_the_analysis(seed):
    """Of the whole matrix, of the pictures, and of the boxes on them."""
    analysis = analysed(*random_split(seed))
    data = json.loads(json.dumps(page_data(analysis), allow_nan=False))
    assert len(data["pictures"]) == len(data["drawn"]) == 4
    for level in range(0, len(data["levels"]), 7):
        whole, pictures, boxes = (np.zeros((4, 4), int) for _ in range(3))
        for true, predicted, *changes in data["matrix"]:
            whole[true, predicted] = sum(c for at, c in zip(changes[::2], changes[1::2], strict=True) if at >= level)
        for picture in data["pictures"]:
            for true, predicted, gains, losses in picture["cells"]:
                pictures[true, predicted] += count(gains, level) - count(losses, level)
            for _, label, history in picture["objects"]:
                if history is not None and state(history, level) == 3:
                    boxes[label, 3] += 1
            for _, label, score, history in picture["detections"]:
                assert (state(history, level) is None) == (score < data["levels"][level])
                if score >= data["levels"][level]:
                    boxes[state(history, level), label] += 1
        expected = analysis.outcomes.confusion(level, 3)
        for found in (whole, pictures, boxes):
            np.testing.assert_array_equal(found, expected)
        for row in data["errors"]:
            assert row["total"] == analysis.errors.counts[row["kind"]] == row["counts"][0]


def test_a_picture_without_an_annotated_size_has_its_own():
    truth, results = random_split(1)
    for row in truth["images"]:
        row["width"] = row["height"] = None
    drawn = [one for one in embedded(html_page(analysed(truth, results), encoded))["pictures"] if one["thumbnail"]]
    sizes = [list(Image.open(io.BytesIO(content)).size) for content in encoded()]
    assert drawn and all(one["size"] == sizes[one["index"]] for one in drawn)


def test_names_are_data_and_nothing_else():
    truth, results = random_split(1)
    for row in (*truth["categories"], *truth["images"]):
        row["name" if "name" in row else "file_name"] = HOSTILE
    text = html_page(analysed(truth, results, name=HOSTILE), encoded)
    assert "<img src=x" not in text and "\u2028" not in text and text.count("</script>") == 2
    data = embedded(text)
    assert data["names"][0].startswith("</script><img src=x onerror=") and "\\x1b" in data["source"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_a_page_has_as_many_pictures_as_it_says(monkeypatch):
    """Two of four: half of the room goes to a kind of mistake each, the rest to the pictures with most errors."""
    box, far = (10, 10, 20, 20), (60, 60, 20, 20)
    objects = [("a", 0, box), *(("b", 0, (x, 50, 9, 9)) for x in (0, 20, 40)), ("c", 0, box), ("d", 1, box)]
    rows = [("a", 0, box, 0.9), ("b", 0, box, 0.9), ("c", 1, box, 0.9), ("d", 1, far, 0.9)]
    analysis = analysed(*split(objects, rows, "abcd"))
    monkeypatch.setattr(page, "THUMBNAILS", 2)
    data = embedded(html_page(analysis, encoded))
    drawn = [one["name"] for one in data["pictures"] if one["thumbnail"]]
    assert len(drawn) == 2 and data["pictures"][0]["name"] == "b.jpg" in drawn
    assert "2 of 4 pictures" in data["about"]
    assert all(bool(one["thumbnail"]) == bool(one["detections"]) for one in data["pictures"])
    monkeypatch.setattr(page, "LISTED_PICTURES", 3)
    assert len(embedded(html_page(analysis, encoded))["pictures"]) == 3


def test_every_cell_has_a_listed_picture_though_others_have_more_errors(monkeypatch):
    """Nine pictures with two false alarms each, and one with the only confusion of two classes."""
    box, far, images = (10, 10, 20, 20), (60, 60, 20, 20), "abcdefghij"
    rows = [(image, 0, place, 0.9) for image in images[:9] for place in (box, far)]
    analysis = analysed(*split([("j", 0, box)], [*rows, ("j", 1, box, 0.9)], images))
    monkeypatch.setattr(page, "LISTED_PICTURES", 4)
    monkeypatch.setattr(page, "THUMBNAILS", 2)
    pictures = page.page_data(analysis)["pictures"]
    assert [one["name"] for one in pictures] == ["a.jpg", "b.jpg", "c.jpg", "j.jpg"]
    assert [0, 1] in [cell[:2] for cell in pictures[-1]["cells"]]


@pytest.mark.once
def test_evaluate_writes_page_numbers_and_plots(tmp_path):
    """Of results and the folder of the images the page has pictures; without images it says that it has none."""
    truth, results = random_split(3, images=(5, 3, 2, 9))
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "images").mkdir()
    for row, content in zip(truth["images"], encoded(), strict=True):
        Image.open(io.BytesIO(content)).save(tmp_path / "images" / row["file_name"])
    of_numpy = [{**row, "bbox": np.array(row["bbox"]), "score": np.float64(row["score"])} for row in results]
    metrics = analyse_results(tmp_path / "gt.json", of_numpy, tmp_path / "images", output=tmp_path / "out").metrics
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == json.loads(json.dumps(results))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"evaluation.html", "metrics.json", "detections.json"} | {
        f"{name}.png" for name in ("precision_recall", "sizes_scores", "classes", "confusion_matrix", "errors")
    }
    data = embedded((tmp_path / "out" / "evaluation.html").read_text())
    assert all(one["thumbnail"] for one in data["pictures"]) and "no pictures" not in data["about"]
    without = embedded(html_page(analysed(truth, results)))
    assert not any(one["thumbnail"] for one in without["pictures"]) and "no pictures" in without["about"]
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["AP50"] == metrics["AP50"] == content["errors"]["AP50"]
    assert content["threshold"] == data["levels"][data["start"]]
    counts = np.array(content["confusion_matrix"]["counts"])
    assert counts.sum() - counts[:, -1].sum() > 0


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(tmp_path):
    """Slider, cells, pictures and boxes follow the numbers, and hostile names stay text."""
    truth, results = random_split(0)
    for row in (*truth["categories"], *truth["images"]):
        row["name" if "name" in row else "file_name"] = HOSTILE
    analysis = analysed(truth, results, name=HOSTILE)
    path = tmp_path / "page.html"
    path.write_text(html_page(analysis, encoded), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=path.as_uri())
        browser.wait("document.body?.dataset.state == 'ready'")
        cells = "[...document.querySelectorAll('#matrix td')].map(cell => Number(cell.textContent))"
        slide = "(s => {{ s.value = {}; s.oninput({{ target: s }}); }})(document.getElementById('score'))"
        for level in (analysis.level, 0, 55, len(analysis.levels) - 1):
            browser.value(slide.format(level))
            counts = analysis.outcomes.confusion(level, 3)
            assert browser.value(cells) == counts.ravel().tolist()
            boxes = {kind: f"document.querySelectorAll('.frame rect.{kind}').length" for kind in ("right", "missed")}
            assert browser.value(boxes["right"]) == counts.trace()
            assert browser.value(boxes["missed"]) == counts[:, 3].sum()
            assert browser.value("document.querySelectorAll('.frame rect.false').length") == counts[3].sum()
        browser.value("document.getElementById('best').click()")
        assert browser.value("document.getElementById('f1').textContent") == f"{100 * analysis.best.f1:.1f}"
        true, predicted = np.argwhere(analysis.confusion * (1 - np.eye(4)))[0]
        browser.value(f"document.querySelector('a[href=\"#cell-{true}-{predicted}\"]').click()")
        browser.wait("document.querySelectorAll('#matrix td.chosen').length")
        data = page_data(analysis)
        shown = [
            one
            for one in data["pictures"]
            for t, p, gains, losses in one["cells"]
            if (t, p) == (true, predicted) and count(gains, analysis.level) > count(losses, analysis.level)
        ]
        assert browser.value("document.querySelectorAll('#pictures figure').length") == len(shown) > 0
        assert browser.value("window.caught ?? null") is None
        assert browser.value("document.title").endswith("\\x1b")
