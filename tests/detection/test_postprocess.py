"""Post-processing against a naive reference: random, tied, at the thresholds, degenerate, and real photos."""

import functools
import math

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tf.config.config import AnchorConfig, DetectConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.detection.postprocess import logit_threshold, select_detections
from retinanet_tf.inference.detector import Detector
from retinanet_tf.models.retinanet import RetinaNet

LEVELS = (400, 100, 25)
ONE_ANCHOR = AnchorConfig(anchor_scales=(1.0,), anchor_ratios=(1.0,))


def random_outputs(seed, classes=7, spread=1.5):
    """Logits around −4, deltas, and anchors of three levels on a 160×200 canvas; many boxes overlap."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(-4, spread, (count, classes)).astype(np.float32) for count in LEVELS]
    deltas = [rng.normal(0, 0.3, (count, 4)).astype(np.float32) for count in LEVELS]
    anchors = []
    for level, count in enumerate(LEVELS):
        corner = rng.uniform(-10, [190, 150], (count, 2))
        anchors.append(np.concatenate([corner, corner + 20 * 2**level * rng.uniform(0.7, 1.4, (count, 2))], 1))
    return logits, deltas, [level.astype(np.float32) for level in anchors]


FORMS = ("data-dependent shapes", "static shapes", "compiled")


@functools.cache
def selection(form, config, anchor_config):
    """One of the forms as a function that is traced once per shape."""

    @tf.function(jit_compile=form == "compiled")
    def select(logits, deltas, anchors, scales, sizes):
        static = form != "data-dependent shapes"
        return select_detections(logits, deltas, anchors, scales, sizes, config, anchor_config, static)

    return select


def select_in(form, logits, deltas, anchors, scales, sizes, config, anchor_config):
    """A batch's detections."""
    as_tensors = [[tf.convert_to_tensor(level) for level in part] for part in (logits, deltas, anchors)]
    select = selection(form, config, anchor_config)
    return select(*as_tensors, tf.constant(scales, tf.float32), tf.constant(sizes, tf.float32))


@pytest.fixture(params=FORMS)
def ours(request):
    """`select_detections` in each of its forms."""

    def select(logits, deltas, anchors, scale, size, per_cell=1, style="paper", **config):
        """Every field of the first image of a batch of two; the second is another image, which must not matter."""
        logits, deltas = ([np.stack([level, level[::-1]]) for level in levels] for levels in (logits, deltas))
        return {
            name: value[0].numpy()
            for name, value in select_in(
                request.param,
                logits,
                deltas,
                anchors,
                [scale, scale],
                [size, size],
                DetectConfig(**config),
                AnchorConfig(anchor_scales=(1.0,) * per_cell, anchor_ratios=(1.0,), anchor_style=style),
            ).items()
        }

    return select


def check(answer, expected, limit):
    count = len(expected)
    assert int(answer["num_detections"]) == count
    np.testing.assert_array_equal(answer["labels"], [label for _, label, _ in expected] + [-1] * (limit - count))
    np.testing.assert_allclose(answer["scores"], [s for s, _, _ in expected] + [0] * (limit - count), atol=1e-6)
    boxes = np.array([box for _, _, box in expected] + [[0] * 4] * (limit - count)).reshape(-1, 4)
    np.testing.assert_allclose(answer["boxes"], boxes, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top_k", [1000, 60])
def test_random_outputs(ours, seed, top_k):
    outputs = random_outputs(seed)
    expected = oracles.detections(*outputs, (0.5, 0.8), (300, 240), top_k=top_k)
    assert len(expected) == 100
    for per_cell in (1, 25):
        check(ours(*outputs, (0.5, 0.8), (300, 240), per_cell, pre_nms_top_k=top_k), expected, 100)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [5, 300])
def test_limits_and_few_detections(ours, limit):
    outputs = random_outputs(11, classes=3, spread=1.0)
    expected = oracles.detections(*outputs, (1, 1), (160, 200), score=0.1, nms_iou=0.3, limit=limit)
    assert len(expected) == 5 if limit == 5 else 5 < len(expected) < 300
    answer = ours(*outputs, (1, 1), (160, 200), score_threshold=0.1, nms_iou=0.3, max_detections=limit)
    check(answer, expected, limit)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [1000, 37])
def test_ties_go_to_the_finer_level_lower_anchor_lower_class(ours, top_k):
    """Logits of six values only: hundreds of ties, inside top-k's cut, between levels and at the limit."""
    logits, deltas, anchors = random_outputs(3)
    logits = [np.round(level * 1.0) for level in logits]
    expected = oracles.detections(logits, deltas, anchors, (1, 1), (160, 200), top_k=top_k)
    check(ours(logits, deltas, anchors, (1, 1), (160, 200), pre_nms_top_k=top_k), expected, 100)


@pytest.mark.slow
def test_detectrons_coarsest_level_has_no_threshold(ours):
    logits, deltas, anchors = random_outputs(7, classes=2, spread=1.0)
    expected = oracles.detections(logits, deltas, anchors, (1, 1), (160, 200), score=[0.1, 0.1, 0.0], limit=300)
    answer = ours(
        logits, deltas, anchors, (1, 1), (160, 200), style="detectron", score_threshold=0.1, max_detections=300
    )
    check(answer, expected, 300)
    assert min(score for score, _, _ in expected) < 0.1


@pytest.mark.slow
def test_nothing_above_the_threshold_and_one_class(ours):
    logits, deltas, anchors = random_outputs(4, classes=1)
    empty = [np.full_like(level, -9.0) for level in logits]
    check(ours(empty, deltas, anchors, (1, 1), (160, 200)), [], 100)
    expected = oracles.detections(logits, deltas, anchors, (1, 1), (160, 200))
    check(ours(logits, deltas, anchors, (1, 1), (160, 200)), expected, 100)


@pytest.mark.parametrize("score", [0.05, 0.01, 0.3, 0.5, 0.9])
def test_score_threshold_is_exact(score):
    """Of the float32 logits next to the threshold, exactly those with a score above it (in float64) pass."""
    limit = logit_threshold(score)
    nearby = [np.float32(limit)]
    for direction in (-np.inf, np.inf):
        step = np.float32(limit)
        for _ in range(3):
            step = np.nextafter(step, np.float32(direction))
            nearby.append(step)
    for logit in nearby:
        above = math.log(score / (1 - score)) < float(logit)
        assert (float(logit) > limit) == above
    assert logit_threshold(0.0) == -math.inf


@pytest.mark.slow
def test_iou_at_the_threshold_is_kept_and_above_is_dropped(ours):
    """Boxes 10×10 shifted by 10/3 overlap by exactly a half; in another class even equal boxes stay."""
    anchors = [np.array([[0, 0, 12, 12], [4, 0, 16, 12], [3.9, 20, 15.9, 32], [0, 20, 12, 32]], np.float32)]
    deltas = [np.zeros((4, 4), np.float32)]
    logits = [np.array([[3, 2.5], [2, -9], [1, -9], [1.5, -9]], np.float32)]
    answer = ours(logits, deltas, anchors, (1, 1), (64, 64))
    # (12 − 4)/(12 + 4) = 0.5 stays; (12 − 3.9)/(12 + 3.9) = 0.509 goes.
    assert answer["num_detections"] == 4
    np.testing.assert_array_equal(answer["boxes"][:4], anchors[0][[0, 0, 1, 3]])
    np.testing.assert_array_equal(answer["labels"][:4], [0, 1, 0, 0])


@pytest.mark.slow
def test_boxes_are_clipped_to_the_original_image_and_clamped(ours):
    anchors = [np.array([[-20, -30, 40, 50], [90, 90, 110, 110], [500, 500, 520, 520]], np.float32)]
    deltas = [np.array([[0, 0, 0, 0], [0, 0, 90, 90], [0, 0, 0, 0]], np.float32)]
    logits = [np.array([[3.0], [2.0], [1.0]], np.float32)]
    answer = ours(logits, deltas, anchors, (2, 0.5), (60, 100))
    expected = oracles.detections(logits, deltas, anchors, (2, 0.5), (60, 100))
    check(answer, expected, 100)
    np.testing.assert_allclose(answer["boxes"][0], [0, 0, 80, 25])
    np.testing.assert_allclose(answer["boxes"][1], [0, 0, 100, 60])
    assert np.isfinite(answer["boxes"]).all()


def test_saturated_scores_keep_their_order(ours):
    """Logits that round to the score 1 are still told apart."""
    anchors = [np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]], np.float32)]
    logits = [np.array([[30.0], [40.0], [35.0]], np.float32)]
    answer = ours(logits, [np.zeros((3, 4), np.float32)], anchors, (1, 1), (64, 64))
    np.testing.assert_array_equal(answer["boxes"][:3, 0], [20, 40, 0])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(333.0, 500.0), (4000.0, 3000.0)])
@pytest.mark.parametrize("classes", [80, 1203])
def test_iou_is_exact_however_far_classes_are_apart(ours, size, classes):
    """The last class' boxes at the image's far corner: an IoU of exactly the threshold stays, a pixel/64 more goes."""
    x, y = size[1] - 20, size[0] - 20
    pair = [[x, y, x + 12, y + 12], [x + 4, y, x + 16, y + 12]]  # (12 − 4)/(12 + 4) = 0.5
    nearer = [[x, y, x + 12, y + 12], [x + 4 - 1 / 64, y, x + 16 - 1 / 64, y + 12]]
    logits = np.full((2, classes), -9, np.float32)
    logits[:, -1] = [3, 2]
    for anchors, count in ((pair, 2), (nearer, 1)):
        answer = ours([logits], [np.zeros((2, 4), np.float32)], [np.array(anchors, np.float32)], (1, 1), size)
        assert answer["num_detections"] == count


@functools.cache
def tied_cases(values, classes, batch, dtype="float32"):
    """Images whose logits are drawn from few values, so that most of them tie, and the naive reference's answers."""
    rng = np.random.default_rng(len(values) + classes)
    counts = (36, 0, 9, 4)
    logits = [rng.choice(np.array(values, np.float32), (batch, count, classes)) for count in counts]
    # Whole sides and half shifts: an IoU at the threshold is exact in float32 as in the reference's float64.
    deltas = [rng.choice([-0.5, 0, 0, 0.5], (batch, count, 4)) * [1, 1, 0, 0] for count in counts]
    deltas = [level.astype(np.float32) for level in deltas]
    anchors = []
    for level, count in enumerate(counts):
        corner = rng.integers(-8, 60, (count, 2)) * 1.0
        anchors.append(np.concatenate([corner, corner + 12 * 2**level], axis=1).astype(np.float32))
    sizes = rng.integers(30, 64, (batch, 2))
    answers = []
    for image in range(batch):
        parts = [[level[image] for level in part] for part in (logits, deltas)]
        answers.append(oracles.detections(*parts, anchors, (1, 0.5), sizes[image], top_k=20, limit=15))
    return (logits, deltas, anchors, np.tile((1, 0.5), (batch, 1)), sizes), answers


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("values", "classes", "batch"),
    [
        ((-9, -1, 0, 1), 3, 400),
        ((-9, -9, -9, -9, -9, -9, 2, 3), 2, 200),
        ((-9, 0, math.nan, 5), 3, 200),
        ((-math.inf, math.nan, -1, math.inf), 1, 100),
        ((0.5,), 3, 50),
        ((0.5,), 1, 50),
        ((-9,), 3, 10),
        ((math.nan,), 2, 10),
        ((-9, -9, -9, -9, 1), 1203, 4),
        ((1,), 2, 0),
    ],
)
def test_thousand_cases_full_of_ties(form, values, classes, batch):
    """Equal logits inside every cut; NaN and infinite ones; one level without anchors; boxes outside the image."""
    inputs, answers = tied_cases(values, classes, batch)
    found = select_in(form, *inputs, DetectConfig(pre_nms_top_k=20, max_detections=15), ONE_ANCHOR)
    assert found["boxes"].shape == (batch, 15, 4)
    found = {name: value.numpy() for name, value in found.items()}
    for image, expected in enumerate(answers):
        check({name: value[image] for name, value in found.items()}, expected, 15)


@pytest.mark.slow
def test_equal_logits_have_equal_scores(ours):
    """Also the last ones of an array, which TensorFlow's kernel rounds otherwise."""
    anchors = np.float32([(20 * i, 0, 20 * i + 16, 16) for i in range(37)])
    for logit in (0.3, 1.0):
        logits, deltas = np.full((37, 1), logit, np.float32), np.zeros((37, 4), np.float32)
        assert len(set(ours([logits], [deltas], [anchors], (1, 1), (800, 800))["scores"][:37].tolist())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [2, 3])
def test_ties_inside_the_cut_of_cells(ours, top_k):
    """Two cells of nine anchors: the weaker cell comes first, and its pair ties with one of the stronger cell."""
    logits = np.full((18, 2), -9, np.float32)
    logits[0, 0], logits[9, 0], logits[10, 1] = 1, 3, 1
    anchors = (np.arange(18)[:, None] * 20 + np.array([0, 0, 10, 10])).astype(np.float32)
    answer = ours([logits], [np.zeros((18, 4), np.float32)], [anchors], (1, 1), (400, 400), 9, pre_nms_top_k=top_k)
    np.testing.assert_array_equal(answer["boxes"][:3, 0], [180, 0, 200 if top_k == 3 else 0])
    assert answer["num_detections"] == top_k


def test_a_turn_of_nms_too_many_changes_nothing(monkeypatch):
    """TensorRT's loops have made one: there may be candidates left then."""
    outputs = [[tf.constant(level[None]) for level in part] for part in random_outputs(2)]
    given = *outputs[:2], [level[0] for level in outputs[2]], tf.ones([1, 2]), tf.constant([[160.0, 200.0]])
    config, turns, loop = DetectConfig(max_detections=7), [], tf.while_loop
    expected = select_detections(*given, config, ONE_ANCHOR, True)

    def longer(_, body, start, maximum_iterations):
        def counted(*values):
            turns.append(1)
            return body(*values)

        return loop(lambda *_: True, counted, start, maximum_iterations=maximum_iterations + 2)

    monkeypatch.setattr(tf, "while_loop", longer)
    answer = select_detections(*given, config, ONE_ANCHOR, True)
    assert len(turns) == 9 and expected["num_detections"] == 7
    for name, value in expected.items():
        np.testing.assert_array_equal(answer[name], value)


def test_boxes_with_nan_are_dropped(ours):
    anchors = [np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]], np.float32)]
    deltas = [np.array([[0, 0, 0, 0], [np.nan, 0, 0, 0], [0, 0, np.nan, 0]], np.float32)]
    answer = ours([np.array([[1.0], [3.0], [2.0]], np.float32)], deltas, anchors, (1, 1), (64, 64))
    assert answer["num_detections"] == 1
    np.testing.assert_array_equal(answer["boxes"][0], anchors[0][0])
    assert np.isfinite(answer["boxes"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_images_of_a_batch_are_independent(form):
    (logits, deltas, anchors, scales, sizes), _ = tied_cases((-9, -1, 0, 1), 3, 400)
    order = np.random.default_rng(1).permutation(400)
    configs = DetectConfig(pre_nms_top_k=20, max_detections=15), ONE_ANCHOR
    found = select_in(form, logits, deltas, anchors, scales, sizes, *configs)
    shuffled = [[level[order] for level in part] for part in (logits, deltas)]
    permuted = select_in(form, *shuffled, anchors, scales, sizes[order], *configs)
    for name, value in found.items():
        np.testing.assert_array_equal(value.numpy()[order], permuted[name].numpy())


@pytest.mark.slow
def test_static_shapes_compile_to_static_shapes():
    """The program that XLA runs has no dynamic dimension and calls no host."""
    inputs, _ = tied_cases((0.5,), 3, 50)
    parts = [[tf.constant(level) for level in part] for part in inputs[:3]]
    select = selection("compiled", DetectConfig(), ONE_ANCHOR)
    sides = [tf.constant(value, tf.float32) for value in inputs[3:]]
    program = select.experimental_get_compiler_ir(*parts, *sides)(stage="optimized_hlo")
    assert "while" in program
    for word in ("[<=", "set-dimension-size", "infeed", "outfeed", "host"):
        assert word not in program, word


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_outputs(form, dtype):
    """The same answer as for their values in float32."""
    logits, deltas, anchors = random_outputs(5)
    low = [[tf.cast(level, dtype) for level in part] for part in (logits, deltas)]
    as_float = [[tf.cast(level, tf.float32).numpy() for level in part] for part in low]
    batch = [[level[None] for level in part] for part in low]
    answer = select_in(form, *batch, anchors, [[1, 1]], [[160, 200]], DetectConfig(), ONE_ANCHOR)
    expected = oracles.detections(*as_float, anchors, (1, 1), (160, 200))
    check({name: value[0].numpy() for name, value in answer.items()}, expected, 100)


@pytest.mark.once
def test_real_photos_through_a_network(test_data):
    """Photos through a whole (untrained, spread out) network, and its outputs through the naive reference."""
    keras.utils.set_random_seed(4)
    config = presets["mini"].replace(num_classes=4, image_size=128, max_size=200, fpn_channels=16, subnet_channels=16)
    model = RetinaNet.from_config(config)
    for variable in model.weights:
        if "class_subnet" in getattr(variable, "path", variable.name) and len(variable.shape) == 4:
            variable.assign(np.random.default_rng(5).normal(0, 0.2, variable.shape).astype(np.float32))
    detector = Detector(model)
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((test_data / "photos").glob("*.jpg"))[:3]]
    answer = detector(photos)
    for index, photo in enumerate(photos):
        canvas, scale, size = detector.prepare(tf.constant(photo))
        outputs = detector.levels(canvas[None], training=False)
        anchors = [level.numpy() for level in model.anchors.by_level(canvas[None])]
        logits, deltas = ([level[0].numpy() for level in outputs[name]] for name in ("class_logits", "box_deltas"))
        expected = oracles.detections(logits, deltas, anchors, scale.numpy(), size.numpy())
        assert len(expected) > 20
        one = {name: value[index].numpy() for name, value in answer.items()}
        one["boxes"] = one["boxes"] * 200 / max(photo.shape)
        scaled = [(s, label, [v * 200 / max(photo.shape) for v in box]) for s, label, box in expected]
        check(one, scaled, 100)
