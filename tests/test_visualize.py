"""What the pictures show, pixel by pixel: colours at the outlines, untouched elsewhere; sheets; curves."""

import numpy as np
import pytest
from PIL import Image

from retinanet_tf import visualize
from retinanet_tf.errors import InputError

GREY = np.full((120, 160, 3), 128, np.uint8)


def colour_at(picture, x, y):
    return tuple(int(value) for value in picture[y, x])


def test_outline_in_class_colour_and_nothing_else():
    picture = visualize.draw_detections(GREY, [[30, 40, 130, 100]], [2], min_side=0)
    assert picture.shape == GREY.shape
    for x, y in ((30, 70), (129, 70), (80, 99), (100, 40), (31, 98)):
        assert colour_at(picture, x, y) == visualize.class_colour(2)
    inside, below, beside = picture[45:95, 40:120], picture[101:], picture[41:, 131:]
    assert all((part == 128).all() for part in (inside, below, beside)), "only the outline and its label are drawn"
    assert (GREY == 128).all(), "the given picture stays as it was"


def test_names_are_written_on_the_class_colour():
    """The label is a filled patch above the box with letters on it; a longer text makes a longer patch."""
    widths = []
    for name in ("i", "rectangle"):
        picture = visualize.draw_detections(GREY, [[30, 40, 150, 100]], [0], [0.5], [name], min_side=0)
        patch = (picture[38] == visualize.class_colour(0)).all(-1)
        widths.append(patch.sum())
        label = picture[24:40, 30 : 30 + widths[-1]].reshape(-1, 3).astype(int)
        letters = np.abs(label - visualize.class_colour(0)).sum(-1) > 250
        assert 0.03 < letters.mean() < 0.5
    assert widths[1] > widths[0] + 20


def test_labels_stay_inside_and_do_not_cover_each_other():
    boxes = [[0, 0, 60, 50], [2, 2, 58, 48], [100, 0, 160, 118], [130, 100, 160, 120]]
    names = ["one", "two", "three", "four"]
    taken = []
    original = visualize._label

    def spy(*arguments):
        taken.append(original(*arguments))
        return taken[-1]

    visualize._label = spy
    try:
        visualize.draw_detections(GREY, boxes, [0, 1, 2, 3], [0.9, 0.8, 0.7, 0.6], names, min_side=0)
    finally:
        visualize._label = original
    for number, (x1, y1, x2, y2) in enumerate(taken):
        assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 120
        for other in taken[:number]:
            assert x2 <= other[0] or other[2] <= x1 or y2 <= other[1] or other[3] <= y1


def test_best_on_top_and_thresholds():
    boxes, labels = [[30, 40, 130, 100]] * 3 + [[0, 0, 20, 20]], [0, 1, 2, -1]
    picture = visualize.draw_detections(GREY, boxes, labels, [0.6, 0.9, 0.2, 0.0], min_score=0.3, min_side=0)
    assert colour_at(picture, 130 - 1, 70) == visualize.class_colour(1)
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert visualize.class_colour(2) not in colours, "below min_score"
    assert colour_at(picture, 0, 10) == (128, 128, 128), "label -1 is an empty place"
    np.testing.assert_array_equal(visualize.draw_detections(GREY, np.zeros((0, 4)), [], [], min_side=0), GREY)


def test_small_pictures_are_enlarged_with_their_boxes():
    picture = visualize.draw_detections(GREY[:50, :64], [[10, 20, 40, 45]], [4], min_side=200)
    assert picture.shape == (200, 256, 3)
    assert colour_at(picture, 40, 130) == colour_at(picture, 159, 130) == visualize.class_colour(4)
    assert colour_at(picture, 36, 150) == colour_at(picture, 164, 130) == (128, 128, 128)


def test_ground_truth_is_dashed_white_beneath():
    picture = visualize.draw_detections(GREY, [], [], ground_truth=([[20, 20, 140, 100]], [0]), min_side=0)
    edge = picture[20, 20:140, 0]
    assert 0.3 < (edge == 255).mean() < 0.8 and set(edge.tolist()) == {0, 255}
    assert (picture[30:90, 30:130] == 128).all()


def test_colours_are_distinct_for_eighty_classes():
    colours = np.array([visualize.class_colour(label) for label in range(80)], float)
    assert len({tuple(colour) for colour in colours.tolist()}) == 80
    assert np.linalg.norm(colours[:-1] - colours[1:], axis=1).min() > 80, "neighbours are told apart easily"


def test_contact_sheet_keeps_every_picture_in_its_shape():
    images = [np.full((h, w, 3), 40 * n, np.uint8) for n, (h, w) in enumerate(((50, 100), (100, 50), (80, 80)), 1)]
    sheet = visualize.contact_sheet(images, columns=2, tile=100, gap=10)
    assert sheet.shape == (230, 230, 3)
    assert colour_at(sheet, 60, 60) == (40,) * 3 and colour_at(sheet, 60, 15) == (255,) * 3
    assert colour_at(sheet, 170, 15) == (80,) * 3 and colour_at(sheet, 125, 60) == (255,) * 3
    assert colour_at(sheet, 60, 170) == (120,) * 3 and colour_at(sheet, 170, 170) == (255,) * 3
    titled = visualize.contact_sheet(images, columns=2, tile=100, gap=10, titles=["a", "b" * 80, "c"])
    assert (titled[112:128, 10:110] < 100).any(), "the first title is written below its picture"
    with pytest.raises(InputError, match="at least one picture"):
        visualize.contact_sheet([])


def ink(path, colour):
    """Pixels of a curve's colour in the saved plot."""
    picture = np.asarray(Image.open(path)).astype(int)
    return (np.abs(picture - np.round(np.array(colour) * 0.85)).sum(-1) < 12).nonzero()


def test_training_curves_show_the_values(tmp_path):
    """A falling loss is drawn falling: its ink goes from the top left to the bottom right."""
    history = {"loss": np.linspace(3.0, 0.2, 12).tolist(), "val_AP": [float("nan"), 0.1] * 6}
    path = visualize.training_curves(history, tmp_path / "plots" / "training.png")
    rows, columns = ink(path, visualize.class_colour(0))
    left = columns < np.asarray(Image.open(path)).shape[1] // 2
    assert left.any() and (~left).any(), "two panels: loss, AP"
    slope = np.corrcoef(rows[left], columns[left])[0, 1]
    assert slope > 0.6
    assert sorted(file.name for file in path.parent.iterdir()) == ["training.png"]


def test_training_curves_from_a_csv_log(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("epoch,AP,loss,lr\n0,,2.0,0.01\n1,0.4,1.0,0.001\n2,NA,0.5,0.001\n")
    path = visualize.training_curves(log, tmp_path / "training.png")
    assert np.asarray(Image.open(path)).shape[1] > 1500, "three panels: loss, AP, learning rate"
    with pytest.raises(InputError, match=r"missing\.csv"):
        visualize.training_curves(tmp_path / "missing.csv", tmp_path / "x.png")
    log.write_text("epoch,loss\n")
    with pytest.raises(InputError, match="no finished epoch"):
        visualize.training_curves(log, tmp_path / "x.png")


def test_pictures_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        visualize.save_image(GREY, tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match="can't be written"):
        visualize.save_image(GREY, tmp_path / "a.unknown")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file"]
