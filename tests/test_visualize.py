"""Pictures: exact pixels of outlines, positions of labels, tiles of sheets; and the values that curves get."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from retinanet_tf import visualize
from retinanet_tf.errors import InputError

GREY = np.full((120, 160, 3), 128, np.uint8)


def colour_at(picture, x, y):
    return tuple(int(value) for value in picture[y, x])


def test_an_outline_in_the_class_colour_and_nothing_inside_or_beside():
    picture = visualize.draw_detections(GREY, [[30, 40, 130, 100]], [2], min_side=0)
    assert picture.shape == GREY.shape
    for x, y in ((30, 70), (129, 70), (80, 99), (100, 40), (31, 98)):
        assert colour_at(picture, x, y) == visualize.class_colour(2)
    inside, below, beside = picture[45:95, 40:120], picture[101:], picture[41:, 131:]
    assert all((area == 128).all() for area in (inside, below, beside))
    assert (GREY == 128).all(), "the given image stays as it was"


@pytest.mark.parametrize("seed", range(20))
def test_labels_stay_inside_and_do_not_cover_each_other(seed):
    rng = np.random.default_rng(seed)
    taken = []
    for corner in ((0, 0), (80, 0), (0, 60), (80, 60)):  # each in a quarter of its own, at a random place
        x, y = rng.uniform((0, 0), (40, 30)) + corner
        outline, size = (x, y, *rng.uniform((x + 5, y + 5), (x + 40, y + 30))), rng.uniform((5, 5), (40, 20))
        left, top = visualize.label_corner(outline, size, (160, 120), taken)
        right, bottom = left + size[0], top + size[1]
        assert left >= 0 and right <= 160 and top >= 0 and bottom <= 120
        assert all(right <= a or c <= left or bottom <= b or d <= top for a, b, c, d in taken)
        taken.append((left, top, right, bottom))


def test_best_on_top_and_thresholds():
    boxes, labels = [[30, 40, 130, 100]] * 3 + [[0, 0, 20, 20]], [0, 1, 2, -1]
    picture = visualize.draw_detections(GREY, boxes, labels, [0.6, 0.9, 0.2, 0.0], min_score=0.3, min_side=0)
    assert colour_at(picture, 130 - 1, 70) == visualize.class_colour(1)
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert visualize.class_colour(2) not in colours, "below min_score"
    assert colour_at(picture, 0, 10) == (128, 128, 128), "label -1 is an empty row"
    np.testing.assert_array_equal(visualize.draw_detections(GREY, np.zeros((0, 4)), [], [], min_side=0), GREY)


def test_small_images_are_enlarged_with_their_boxes():
    picture = visualize.draw_detections(GREY[:50, :64], [[10, 20, 40, 45]], [4], min_side=200)
    assert picture.shape == (200, 256, 3)
    assert colour_at(picture, 40, 130) == colour_at(picture, 159, 130) == visualize.class_colour(4)
    assert colour_at(picture, 36, 150) == colour_at(picture, 164, 130) == (128, 128, 128)


@pytest.mark.parametrize("size", [(66_000, 4), (4, 66_000), (1000, 4), (3000, 2)])
def test_a_long_picture_becomes_a_jpeg_with_its_boxes(size, tmp_path):
    """At a whole multiple of its size, or smaller where JPEG has no room for it; the box over its end is seen."""
    width, height = size
    drawn = visualize.draw_detections(
        np.full((height, width, 3), 128, np.uint8), [[width // 2, height // 2, width, height]], [0], names=[""]
    )
    read = np.asarray(Image.open(visualize.save_image(drawn, tmp_path / "a.jpg")), float)
    assert max(read.shape) == min(max(size) * (4096 // max(size) or 1), 65_500)
    assert np.ptp(read[0, 0]) < 5 and np.ptp(read[-1, -1]) > 50, "grey, and the colour of the class"


def test_ground_truth_is_dashed_and_nothing_else():
    picture = visualize.draw_detections(GREY, [], [], ground_truth=[[20, 20, 140, 100]], min_side=0)
    changed = (picture != GREY).any(-1)
    outline = np.zeros_like(changed)
    outline[20:100, 20:140] = True
    outline[21:99, 21:139] = False
    np.testing.assert_array_equal(changed, outline)
    assert set(picture[20, 20:140].ravel().tolist()) == set(picture[20:100, 20].ravel().tolist()) == {0, 255}


def test_colours_are_distinct_for_eighty_classes():
    colours = np.array([visualize.class_colour(label) for label in range(80)], float)
    assert len({tuple(colour) for colour in colours.tolist()}) == 80
    assert np.linalg.norm(colours[:-1] - colours[1:], axis=1).min() > 80, "neighbours differ clearly"


def test_a_contact_sheet_keeps_every_image_in_its_shape():
    images = [np.full((h, w, 3), 40 * n, np.uint8) for n, (h, w) in enumerate(((50, 100), (100, 50), (80, 80)), 1)]
    sheet = visualize.contact_sheet(images, tile=100, gap=10)
    assert sheet.shape == (230, 230, 3)
    assert colour_at(sheet, 60, 60) == (40,) * 3 and colour_at(sheet, 60, 15) == (255,) * 3
    assert colour_at(sheet, 170, 15) == (80,) * 3 and colour_at(sheet, 125, 60) == (255,) * 3
    assert colour_at(sheet, 60, 170) == (120,) * 3 and colour_at(sheet, 170, 170) == (255,) * 3
    titled = visualize.contact_sheet(images, tile=100, gap=10, titles=["a", "b" * 80, "c"])
    assert titled.shape == (266, 230, 3)
    np.testing.assert_array_equal(titled[:110], sheet[:110])
    assert (titled[112:128, 110:120] == 255).all(), "a long title is shortened to its tile"
    with pytest.raises(InputError, match="at least one picture"):
        visualize.contact_sheet([])


@pytest.mark.parametrize("name", ["żółw", "чашка", "κύπελλο", "Բաժակ", "כוס", "فنجان", "ly™ ☕ ½"])
def test_names_of_the_scripts_that_dejavu_has_are_drawn(name):
    """Each letter changes the picture, and no two letters look alike, as squares for missing ones would."""
    drawn = [named(text) for text in [*name.replace(" ", ""), name, "5"]]
    assert len({picture.tobytes() for picture in drawn}) == len(set(name.replace(" ", ""))) + 2


@pytest.mark.parametrize("name", ["\U000f1234", "cup \U00101234", "\U0003fff0\U0003fff1"])
def test_a_name_that_no_font_has_is_drawn_as_its_id(name):
    np.testing.assert_array_equal(named(name, ids=[37]), named("37"))
    np.testing.assert_array_equal(named(name), named("0"))
    titled, marked = (
        visualize.contact_sheet([GREY], titles=[f"{text}.jpg"]) for text in (name, "".join(map(mark, name)))
    )
    np.testing.assert_array_equal(titled, marked)


def mark(letter):
    return letter if letter.isascii() else "?"


@pytest.mark.parametrize("letter", "鬱ᚠ𓀀")  # that no other test draws: the fonts of letters are remembered
def test_fonts_of_the_system_have_what_dejavu_lacks(letter, tmp_path, monkeypatch):
    """Of a font with one glyph, a square as high as the letters; broken fonts are passed over."""
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "square", "space"])
    font.setupCharacterMap({ord(letter): "square", 32: "space"})
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    font.setupGlyf({".notdef": pen.glyph(), "square": pen.glyph(), "space": TTGlyphPen(None).glyph()})
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "square", "space"), (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    font.setupPost()
    font.save(tmp_path / "square.ttf")
    (tmp_path / "a_broken_regular.ttf").write_bytes(b"no font")
    paths = [str(path) for path in tmp_path.iterdir()]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda *_, **__: paths)
    one, two = named(letter), named(f"{letter} {letter}")
    assert not np.array_equal(one, named("0")) and not np.array_equal(one, two)


@pytest.mark.parametrize("name", ["a\nb", "tab\t and bell\a", "\x1b[31m", "x" * 200_000, "", "half \ud83d"])
def test_odd_names_are_drawn_on_one_line(name):
    ordinary = named("dog")
    picture = named(name)
    rows = (picture != GREY).any((1, 2))
    assert picture.shape == GREY.shape and rows.sum() <= (ordinary != GREY).any((1, 2)).sum() + 6
    assert visualize.contact_sheet([GREY], titles=[name]).shape == visualize.contact_sheet([GREY], titles=["a"]).shape


def named(name, **options):
    """A label of a box without height at the picture's middle."""
    return visualize.draw_detections(GREY, [[5, 60, 150, 60]], [0], names=[name], min_side=0, **options)


def test_training_curves_leave_out_what_is_missing(figures, tmp_path):
    log = tmp_path / "log.csv"
    rows = ("0,,2.0,0.01,100,nan", "1,0.4,1.0,0.001,200,0.1", "2,NA,0.5,0.001,250,0.2")
    log.write_text("\n".join(["epoch,AP,loss,learning_rate,step,val_AP", *rows]))
    path = visualize.training_curves(log, tmp_path / "plots" / "training.png")
    curves = {
        f"{axes.get_title()}: {line.get_label()}": line.get_xydata().tolist()
        for axes in figures[0].axes
        for line in axes.lines
    }
    assert curves == {
        "loss: loss": [[100, 2], [200, 1], [250, 0.5]],
        "AP: AP": [[200, 0.4]],
        "AP: val_AP": [[200, 0.1], [250, 0.2]],
        "learning rate: learning_rate": [[100, 0.01], [200, 0.001], [250, 0.001]],
    }
    assert [file.name for file in path.parent.iterdir()] == ["training.png"]


def test_training_curves_show_what_was_measured_alone(figures, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("epoch,AP,loss,step,val_loss\n0,NA,2.0,250,NA\n1,NA,1.0,400,\n")
    visualize.training_curves(log, tmp_path / "training.png")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "step" and [line.get_label() for line in axes.lines] == ["loss"]
    assert axes.lines[0].get_xydata().tolist() == [[250, 2], [400, 1]]


@pytest.mark.parametrize(("content", "message"), [(None, "log.csv"), ("epoch,loss\n", "no finished epoch")])
def test_logs_without_an_epoch_are_refused(content, message, tmp_path):
    if content:
        (tmp_path / "log.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        visualize.training_curves(tmp_path / "log.csv", tmp_path / "x.png")


@pytest.mark.parametrize("name", ["file/a.png", "a.unknown"])
def test_pictures_that_cannot_be_written(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        visualize.save_image(GREY, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
