"""The network as a whole: the paper's architecture, its initialisation, and one step of plain model.fit."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import batch, images, small

import retinanet_tf as rn
from retinanet_tf.config.config import LossConfig, ModelConfig
from retinanet_tf.models.resnet import resnet

RNG = np.random.default_rng(0)


def kernels(model):
    return {v.path if hasattr(v, "path") else v.name: np.array(v) for v in model.weights if "kernel" in v.name}


@pytest.fixture(scope="module")
def paper():
    """The paper's network with fresh weights."""
    return rn.RetinaNet.from_config(rn.presets["paper"])


@pytest.mark.slow
def test_the_parameter_count_follows_from_the_paper(paper):
    """ResNet-50 without its classifier, plus what §4 adds, worked out layer by layer."""
    backbone = keras.applications.ResNet50(include_top=False, weights=None)
    # keras.applications gives every convolution a bias that batch normalisation makes pointless: 1 a filter.
    biases = sum(layer.filters for layer in backbone.layers if isinstance(layer, keras.layers.Conv2D))
    c = 256
    laterals = sum(width * c + c for width in (512, 1024, 2048))
    outputs = 3 * (9 * c * c + c)
    coarse = (9 * 2048 * c + c) + (9 * c * c + c)
    towers = 2 * 4 * (9 * c * c + c)
    predictors = (9 * c * 9 * 80 + 9 * 80) + (9 * c * 9 * 4 + 9 * 4)
    assert paper.count_params() == backbone.count_params() - biases + laterals + outputs + coarse + towers + predictors


def backward_operations(**changes):
    """A small model, and the types of all operations of its forward and backward pass that the gradients need.

    The others are in the graph too, and TensorFlow prunes them before it runs it.
    """
    model = small(**changes)

    @tf.function
    def step(pixels):
        with tf.GradientTape() as tape:
            outputs = model(pixels, training=True)
            loss = tf.reduce_sum(outputs["class_logits"]) + tf.reduce_sum(outputs["box_deltas"])
        return tape.gradient(loss, model.trainable_variables)

    waiting = [tensor.op for tensor in step.get_concrete_function(tf.TensorSpec((1, 64, 64, 3))).graph.outputs]
    needed = set(waiting)
    while waiting:
        operation = waiting.pop()
        before = {tensor.op for tensor in operation.inputs} - needed
        needed |= before
        waiting.extend(before)
    return model, collections.Counter(operation.type for operation in needed)


@pytest.mark.slow
def test_frozen_parts_cost_nothing_in_the_backward_pass():
    """No gradient of a frozen kernel, none of what goes into frozen layers, no reduction for frozen norms."""
    trained, all_operations = backward_operations(freeze_stages=0)
    _, operations = backward_operations(freeze_stages=2)
    convolutions = [layer for layer in trained.layers if isinstance(layer, keras.layers.Conv2D)]
    frozen = [layer for layer in convolutions if layer.name.startswith(("stem", "stage2"))]
    entrances = [
        layer for layer in convolutions if layer.name in ("stage3_block0_1_conv", "stage3_block0_shortcut_conv")
    ]
    assert len(frozen) >= 3 and len(entrances) == 2
    kernels, inputs = "Conv2DBackpropFilter", "Conv2DBackpropInput"
    assert all_operations[kernels] - operations[kernels] == len(frozen)
    # The image's own gradient is in neither; the first trained layers' inputs need none once stage 2 is frozen.
    assert all_operations[inputs] - operations[inputs] == len(frozen) - 1 + len(entrances)
    assert operations["MaxPoolGrad"] == 0 and all_operations["MaxPoolGrad"] == 1
    # Of frozen norms nothing is summed, so a deeper backbone needs no more sums; a trained one's statistics are.
    assert backward_operations(freeze_stages=2, backbone="resnet14_w24")[1]["Sum"] == operations["Sum"]
    normed = backward_operations(freeze_stages=2, norm="batch")[1]
    assert normed["Sum"] + normed["FusedBatchNormGradV3"] > operations["Sum"]


def test_outputs_fit_the_anchors_at_any_size():
    model = small()
    for size in ((64, 64), (96, 160), (608, 352), (75, 130)):
        out = model(images(1, *size))
        anchors = model.anchors(images(1, *size)).shape[0]
        assert out["class_logits"].shape == (1, anchors, 3) and out["box_deltas"].shape == (1, anchors, 4)


@pytest.mark.slow
def test_initialisation_is_the_papers(paper):
    """§4.1: subnet kernels N(0, 0.01), biases 0, the class predictor's −ln 99; FPN uniform in ±√(3 / fan in)."""
    for name in ("class_subnet", "box_subnet"):
        subnet = paper.get_layer(name)
        for layer in (*subnet.convs, subnet.predictor):
            kernel, bias = (np.array(value) for value in layer.get_weights())
            assert kernel.std() == pytest.approx(0.01, rel=0.02)
            assert abs(kernel.mean()) < 5 * 0.01 / np.sqrt(kernel.size)  # Five standard errors.
            expected = -np.log(99) if layer is subnet.predictor and name == "class_subnet" else 0.0
            np.testing.assert_allclose(bias, expected, rtol=1e-6)
    kernel = np.array(paper.get_layer("fpn_output4").get_weights()[0])
    limit = np.sqrt(3 / (9 * 256))
    assert np.abs(kernel).max() <= limit and kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)


def test_prior_and_initial_deviation_are_the_configurations():
    model = small(prior=0.1, subnet_init_std=0.05, subnet_channels=64)
    for name, bias in (("class_subnet", -np.log(9)), ("box_subnet", 0.0)):
        subnet = model.get_layer(name)
        np.testing.assert_allclose(subnet.predictor.get_weights()[1], bias, rtol=1e-6)
        for layer in (*subnet.convs, subnet.predictor):
            assert np.std(layer.get_weights()[0]) == pytest.approx(0.05, rel=0.05)


@pytest.mark.slow
def test_no_two_layers_start_alike(paper):
    """One initializer shared by layers would give all of them the same numbers."""
    seen = {}
    for name, kernel in kernels(paper).items():
        other = seen.setdefault(kernel.ravel()[:8].tobytes(), name)
        assert other == name, f"{name} starts as {other} does"


@pytest.mark.slow
def test_the_step_is_traced_once(monkeypatch):
    """A trace that makes variables, as Keras' own does, is followed by another."""
    traced = []
    step = rn.RetinaNet.train_step
    monkeypatch.setattr(rn.RetinaNet, "train_step", lambda self, data: traced.append(1) or step(self, data))
    model = small()
    model.compile("adam", loss=rn.retinanet_losses())
    history = model.fit(tf.data.Dataset.from_tensors(batch()).repeat(2), epochs=2, steps_per_epoch=1, verbose=0).history
    assert len(traced) == 1
    for values in history.values():
        assert values[0] != values[1]
    total = np.array(history["class_logits_loss"]) + history["box_deltas_loss"]
    assert (np.array(history["loss"]) > total).all(), "the decay is in it"


def gradients(model, x, y):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
    return tape.gradient(loss, model.trainable_variables)


@pytest.mark.slow
def test_padding_of_boxes_changes_nothing():
    model = small()
    model.compile("sgd", loss=rn.retinanet_losses(), jit_compile=False)
    x, y = batch()
    more = {
        "boxes": np.pad(y["boxes"], [(0, 0), (0, 7), (0, 0)]),
        "labels": np.pad(y["labels"], [(0, 0), (0, 7)], constant_values=-1),
    }
    for a, b in zip(gradients(model, x, y), gradients(model, x, more), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_batch_without_objects_still_teaches_the_background():
    model = small()
    model.compile("sgd", loss=rn.retinanet_losses(), jit_compile=False)
    x, y = batch()
    y = {"boxes": np.zeros((2, 0, 4), np.float32), "labels": np.zeros((2, 0), np.int32)}
    predictor = model.get_layer("class_subnet").predictor
    (bias,) = (g for g, v in zip(gradients(model, x, y), model.trainable_variables, strict=True) if v is predictor.bias)
    # A descent step lowers every class' bias: the gradient is positive.
    assert (bias.numpy() > 0).all() and np.isfinite(bias).all()


def test_frozen_stages_are_out_of_the_backward_pass():
    """Stem and stage 2 by default: not trainable, and no gradient graph reaches them."""
    model = small()
    names = [layer.name for layer in model.layers if layer.trainable_weights]
    assert not [name for name in names if name.startswith(("stem", "stage2"))]
    assert [name for name in names if name.startswith("stage3")]
    pixels = tf.constant(images(1, 64, 64))
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        out = tf.reduce_sum(model(pixels)["class_logits"])
    assert tape.gradient(out, pixels) is None


def test_group_normalisation_of_a_backbone_is_each_pictures_own():
    """By numpy, in 32 groups of three; so doubled contrast changes nothing, where frozen statistics double all."""
    x = RNG.normal(0, 50, (2, 64, 96, 3)).astype(np.float32)
    inputs = keras.Input((None, None, 3))
    for norm, factor in (("group", 1), ("frozen", 2)):
        stages = resnet(inputs, ModelConfig(backbone="resnet14_w24", norm=norm, norm_epsilon=1e-9))
        for once, twice in zip(keras.Model(inputs, stages)(x), keras.Model(inputs, stages)(2 * x), strict=True):
            np.testing.assert_allclose(twice, factor * once, atol=1e-3)
        if norm == "group":
            layers = keras.Model(inputs, stages).get_layer
            layer = layers("stage4_block0_1_norm")
            gamma, beta = RNG.uniform(0.5, 2, 96), RNG.normal(size=96)
            layer.set_weights([gamma, beta])
            before, after = keras.Model(inputs, [layers("stage4_block0_1_conv").output, layer.output])(x)
            grouped = np.reshape(before, (2, 4, 6, 32, 3))
            mean, deviation = grouped.mean((1, 2, 4), keepdims=True), grouped.std((1, 2, 4), keepdims=True)
            expected = ((grouped - mean) / deviation).reshape(after.shape) * gamma + beta
            np.testing.assert_allclose(after, expected, atol=1e-3)


def test_an_unknown_backbone_is_refused_by_name():
    with pytest.raises(rn.InputError, match="backbone='resnet51' is not known; choose one of resnet18"):
        rn.RetinaNet(backbone="resnet51")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scope"), [("GPU", "step"), ("CPU", "nothing")])
def test_plain_compile_compiles_on_accelerators_only(monkeypatch, kind, scope):
    """The caller's word stands on both."""
    devices = [tf.config.PhysicalDevice(f"/physical_device:{kind}:0", kind)]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda of=None: devices)
    model = small()
    for arguments, expected in (({}, scope), ({"jit_compile": True}, "step"), ({"jit_compile": False}, "nothing")):
        model.compile(optimizer="sgd", loss=rn.retinanet_losses(), **arguments)
        assert model.xla_scope == expected and model.jit_compile is (expected == "step")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"num_classes": "20"}, "num_classes='20' must be of type int"),
        ({"num_classes": 3.0}, "num_classes=3.0 must be of type int"),
        ({"prior": "0.01"}, "prior='0.01' must be of type float"),
        ({"pixel_mean": "grey"}, "pixel_mean='grey' must be numbers of type float"),
        ({"backbone": 50}, "backbone=50 must be of type str"),
        ({"classes": 20, "weights": "coco"}, "RetinaNet has no argument classes, weights"),
        ({"normalizer": "batch"}, "normalizer='batch' is not one of"),
        ({"mining_examples": 0}, "mining_examples=0 must lie in"),
        ({"anchors": (1.0, 2.0)}, r"anchors=\(1.0, 2.0\) is no AnchorConfig"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, sentence):
    with pytest.raises(rn.InputError, match=sentence):
        rn.RetinaNet(**arguments)


def test_an_alpha_for_each_of_other_classes_is_refused_at_once():
    with pytest.raises(rn.InputError, match="alpha has 2 numbers for 3 classes"):
        small().compile("sgd", loss=rn.retinanet_losses(LossConfig(class_alpha="0.5,0.25")))


@pytest.mark.slow
def test_arguments_by_position_are_keras_own():
    model = small()
    model.compile("sgd", loss=rn.retinanet_losses())
    x, y = batch()
    history = model.fit(x, y, 1, 2, 0, None, 0.0, (x, {name: list(value) for name, value in y.items()}))
    assert len(history.history["loss"]) == 2 and "val_loss" in history.history
    with pytest.raises(TypeError):
        model.compile("sgd", rn.retinanet_losses(), {"class_logits": 2.0})


@pytest.mark.slow
def test_weights_of_the_losses_are_by_name():
    model, (x, y) = small(weight_decay=0.0), batch()
    model.compile("sgd", rn.retinanet_losses(), loss_weights={"box_deltas": 3.0})
    plain = model.evaluate(x, y, verbose=0, return_dict=True)
    model.compile("sgd", rn.retinanet_losses(), loss_weights={"class_logits": 1.0, "box_deltas": 3.0})
    assert model.evaluate(x, y, verbose=0, return_dict=True) == plain
    model.compile("sgd", rn.retinanet_losses(), loss_weights={"class_logits": 2.0, "box_deltas": 0.0})
    found = model.test_on_batch(x, y, return_dict=True)
    assert found["loss"] == pytest.approx(2.0 * found["class_logits_loss"], rel=1e-5)
    for wrong in ([2.0, 0.0], 2.0, {"boxes": 1.0}):
        with pytest.raises(rn.InputError, match="loss_weights=.* must be a dictionary with 'class_logits' or"):
            model.compile("sgd", rn.retinanet_losses(), loss_weights=wrong)


def test_channels_first_is_refused_in_a_sentence():
    keras.backend.set_image_data_format("channels_first")
    try:
        with pytest.raises(rn.InputError, match="set_image_data_format"):
            small()
    finally:
        keras.backend.set_image_data_format("channels_last")
