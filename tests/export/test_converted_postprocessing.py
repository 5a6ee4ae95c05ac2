"""Post-processing alone through each converter, on outputs that networks seldom give: ties, NaN, the far corner."""

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tf.config.config import AnchorConfig, DetectConfig
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.export import litert_file, onnx_file

CELLS, CLASSES, WIDTH = (12, 3), 80, 1344
CONFIG = DetectConfig(score_threshold=0.3, pre_nms_top_k=10, max_detections=8)
RNG = np.random.default_rng(0)
SIZES = np.float32([[800, WIDTH], [640, WIDTH]])
OUTPUTS = ("boxes", "scores", "labels", "num_detections")


def anchors():
    """9 to a cell, of whole pixels, some of them equal; the last ones at the right border."""
    levels = []
    for cells in CELLS:
        corner = RNG.integers(0, 8, (9 * cells, 2)) * 20
        corner[-9:, 0] += WIDTH - 200
        levels.append(np.concatenate([corner, corner + RNG.integers(1, 4, corner.shape) * 30], 1).astype(np.float32))
    return levels


ANCHORS = anchors()


def detections(logits, deltas, sizes, static_shapes):
    split = [9 * cells for cells in CELLS]
    return select_detections(
        tf.split(logits, split, axis=1),
        tf.split(deltas, split, axis=1),
        [tf.constant(level) for level in ANCHORS],
        tf.ones_like(sizes),
        sizes,
        CONFIG,
        AnchorConfig(),
        static_shapes,
    )


@pytest.fixture(scope="module")
def runs():
    """The converted function in onnxruntime and in ai-edge-litert."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    onnxruntime = pytest.importorskip("onnxruntime")
    shapes = {"logits": [2, 9 * sum(CELLS), CLASSES], "deltas": [2, 9 * sum(CELLS), 4], "sizes": [2, 2]}
    specs = [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in shapes.items()]
    function = tf.function(lambda *values: detections(*values, static_shapes=True), specs, autograph=False)
    with pytest.MonkeyPatch.context() as patch:
        for module in (onnx_file, litert_file):
            patch.setattr(module, "detection_graph", lambda *_: function)
        session = onnxruntime.InferenceSession(onnx_file.convert(None, None)[0], providers=["CPUExecutionProvider"])
        interpreter = litert.Interpreter(model_content=litert_file.convert(None, None)[0])
    return {
        "onnx": lambda feeds: dict(zip(OUTPUTS, session.run(OUTPUTS, feeds), strict=True)),
        "litert": lambda feeds: interpreter.get_signature_runner()(**feeds),
    }


def few_values(number):
    """Outputs with many ties; every fifth time also with logits and deltas of NaN."""
    rng = np.random.default_rng(number)
    logits = rng.integers(-6, 3, (2, 9 * sum(CELLS), CLASSES)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.9] = -9
    deltas = rng.integers(-1, 2, (2, 9 * sum(CELLS), 4)).astype(np.float32) / 4
    if number % 5 == 0:
        logits[rng.random(logits.shape) < 0.05] = np.nan
        deltas[rng.random(deltas.shape) < 0.1] = np.nan
    return {"logits": logits, "deltas": deltas, "sizes": SIZES}


def check(answer, feeds):
    expected = detections(*feeds.values(), static_shapes=False)
    for name in OUTPUTS:
        np.testing.assert_allclose(answer[name], expected[name], atol=1e-3 if name == "boxes" else 1e-6, err_msg=name)
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_ties_and_nan(runs, name):
    counts = [check(runs[name](feeds), feeds)["num_detections"] for feeds in map(few_values, range(20))]
    assert min(map(min, counts)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_no_candidate(runs, name):
    feeds = few_values(1)
    feeds["logits"][1] = -9
    answer = check(runs[name](feeds), feeds)
    assert answer["num_detections"].tolist()[1] == 0 and (answer["labels"][1] == -1).all()


@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_the_last_class_at_the_right_border(runs, name):
    """Of two boxes that overlap there, one is kept."""
    feeds = few_values(1)
    feeds["logits"][:] = -9
    feeds["deltas"][:] = 0
    feeds["logits"][:, -1, -1], feeds["logits"][:, -2, -1] = 2, 1
    both = np.copy(ANCHORS[1][-2:])
    answer = check(runs[name](feeds), feeds)
    shared = np.prod(np.minimum(both[0, 2:], both[1, 2:]) - np.maximum(both[0, :2], both[1, :2]))
    areas = np.prod(both[:, 2:] - both[:, :2], axis=1)
    assert answer["num_detections"].tolist() == [1 + (shared / (areas.sum() - shared) <= CONFIG.nms_iou)] * 2
    assert answer["labels"][0, 0] == CLASSES - 1
    np.testing.assert_allclose(answer["boxes"][0, 0], both[1], atol=1e-3)
