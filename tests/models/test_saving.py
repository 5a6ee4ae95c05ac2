"""Saving, copying and freezing a model: what comes back, with its frozen layers and its optimizer."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK
from small_models import batch, images, small

import retinanet_tf as rn
from retinanet_tf.config.config import AnchorConfig
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.network import variables

RNG = np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"norm": "batch", "freeze_stages": 0, "subnet_norm": "batch"}])
def test_saving_keeps_the_outputs(changes, tmp_path):
    """As .keras, rebuilt without a word about its configuration, and as .weights.h5."""
    model = small(anchors=AnchorConfig(max_level=6), **changes)
    model.set_weights([RNG.uniform(0.01, 0.1, value.shape).astype(np.float32) for value in model.get_weights()])
    x = images(1, 64, 96)
    expected = model(x, training=False)
    model.save(tmp_path / "model.keras")
    model.save_weights(str(tmp_path / "model.weights.h5"))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fresh = rn.RetinaNet.from_config(model.get_config())
    fresh.load_weights(str(tmp_path / "model.weights.h5"))
    for other in (loaded, fresh):
        assert other.get_config() == model.get_config()
        for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for name, value in other(x, training=False).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_a_clone_is_a_retinanet_or_refused():
    """Keras 2 takes `from_config`; Keras 3 would give a plain functional model, whose training says nothing useful."""
    model = small()
    try:
        assert isinstance(keras.models.clone_model(model), rn.RetinaNet)
    except rn.InputError as error:
        assert "from_config" in str(error)
    with pytest.raises(rn.InputError, match="by name"):
        rn.RetinaNet(3, "resnet18", AnchorConfig())


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5"])
def test_a_whole_model_as_hdf5_is_refused(tmp_path, name):
    with pytest.raises(rn.InputError, match=f"{name}: .* save it as .keras"):
        small().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_numpys_numbers_are_saved_as_pythons():
    config = small(num_classes=np.int64(3), pixel_std=np.array([2.0, 2.0, 2.0])).get_config()
    assert config == small(pixel_std=(2.0, 2.0, 2.0)).get_config()
    assert type(config["num_classes"]) is int and type(config["pixel_std"]) is tuple


@pytest.mark.slow
def test_the_backbone_can_be_frozen():
    """After which a step changes pyramid and subnets alone."""
    model = small(freeze_stages=0, norm="batch")
    x, y = batch()
    assert [value.shape[1] for value in model.backbone(x)] == [8, 4, 2]
    model.backbone.trainable = False
    model.compile("sgd", loss=rn.retinanet_losses())
    before = {variable: np.array(value) for variable, value in variables(model).items()}
    model.train_on_batch(x, y)
    changed = {name for name, value in variables(model).items() if (np.array(value) != before[name]).any()}
    assert changed and all(name.startswith(("fpn", "class_subnet", "box_subnet")) for name in changed)


@pytest.mark.slow
def test_stages_are_frozen_up_to_one():
    """After which a step changes neither weights nor statistics of the stages before."""
    model = small(freeze_stages=1, norm="batch")
    x, y = batch()
    for wrong in (0, 6, 2.5):
        with pytest.raises(rn.InputError, match=f"stage={wrong} must be a whole number from 1 to 5"):
            model.freeze_until(wrong)
    model.freeze_until(3)
    model.compile("sgd", loss=rn.retinanet_losses())
    before = {variable: np.array(value) for variable, value in variables(model).items()}
    model.train_on_batch(x, y)
    changed = {name for name, value in variables(model).items() if (np.array(value) != before[name]).any()}
    assert {name.split("_")[0] for name in changed if name.startswith("st")} == {"stage4", "stage5"}


@pytest.mark.parametrize("stages", [0, 2])
def test_what_was_frozen_is_trained_again_but_for_the_fixed_stages(tmp_path, stages):
    """Also in a model that was saved while its backbone was frozen."""
    model = small(freeze_stages=stages, norm="batch")
    trained = [variable.shape for variable in model.trainable_variables]
    for part in ("backbone", "whole", "loaded"):
        (model if part == "whole" else model.backbone).trainable = False
        assert len(model.trainable_variables) < len(trained)
        if part == "loaded":
            model.save(tmp_path / "model.keras")
            model = keras.models.load_model(tmp_path / "model.keras")
            assert len(model.trainable_variables) < len(trained)
        (model if part == "whole" else model.backbone).trainable = True
        assert [variable.shape for variable in model.trainable_variables] == trained


def test_stages_that_were_frozen_by_hand_are_trained_again_too():
    model = small(freeze_stages=0)
    trained = len(model.trainable_variables)
    model.freeze_until(np.int64(3))
    assert len(model.trainable_variables) < trained
    model.backbone.trainable = True  # though some of its layers are trainable already
    assert len(model.trainable_variables) == trained


@pytest.mark.slow
@pytest.mark.parametrize("until", [2, 4])
def test_a_copied_backbone_is_as_frozen_as_before(tmp_path, until):
    """Alone and inside a model of one's own, whose training leaves the frozen stages' statistics alone."""
    model = small(norm="batch", freeze_stages=2)
    model.freeze_until(until)
    backbone = model.backbone
    inputs, trained = keras.Input((64, 64, 3)), [weight.shape for weight in backbone.trainable_weights]
    features = keras.layers.GlobalAveragePooling2D()(backbone(inputs)[2])
    own = keras.Model(inputs, keras.layers.Dense(2)(features))
    for name, whole in (("backbone", backbone), ("own", own)):
        whole.save(tmp_path / f"{name}.keras")
        loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        copies = [loaded] if whole is own else [loaded, copy.deepcopy(backbone), keras.models.clone_model(backbone)]
        for again in copies:
            assert [w.shape for w in again.trainable_weights] == [w.shape for w in whole.trainable_weights]
    before = [weight.numpy() for layer in backbone.layers if not layer.trainable for weight in layer.weights]
    loaded.compile("sgd", "mse")
    loaded.fit(np.full((2, 64, 64, 3), 99.0), np.ones((2, 2)), verbose=0)
    inside = next(layer for layer in loaded.layers if hasattr(layer, "layers"))
    after = [weight.numpy() for layer in inside.layers if not layer.trainable for weight in layer.weights]
    assert before and all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    for again in (keras.models.load_model(tmp_path / "backbone.keras"), keras.models.clone_model(backbone)):
        again.trainable = False
        again.trainable = True
        fixed = [layer for layer in again.layers if layer.name.startswith(("stem", "stage2"))]
        assert not any(layer.trainable for layer in fixed) and len(again.trainable_weights) >= len(trained)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_keras_policy_is_saved(tmp_path, precision):
    with precision_policy(precision):
        model = small()
    model.save(tmp_path / "model.keras")
    for again in (keras.models.load_model(tmp_path / "model.keras"), rn.RetinaNet.from_config(model.get_config())):
        assert [layer.dtype_policy.name for layer in again.layers] == [
            layer.dtype_policy.name for layer in model.layers
        ]


@pytest.mark.slow
def test_a_compiled_model_is_saved_and_trains_on(two_devices, tmp_path):
    """Trained by plain `fit` on two devices, and loaded there, with its losses and optimizer."""
    x, y = batch()
    with two_devices.scope():
        model = small(normalizer="global")
        model.compile("adam", loss=rn.retinanet_losses(), jit_compile=False)
    history = model.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0).history
    assert np.isfinite(history["loss"][0]) and history["class_logits_loss"][0] > 0
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    with two_devices.scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
        other = small(normalizer="global")
        other.compile("adam", loss=rn.retinanet_losses())
        other.load_weights(tmp_path / "model.weights.h5")
    for again in (loaded, other):
        assert all(np.array_equal(*pair) for pair in zip(again.get_weights(), model.get_weights(), strict=True))
        assert int(again.optimizer.iterations.numpy()) == 1
    second = [one.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0).history["loss"][0] for one in (model, loaded)]
    assert second[1] == pytest.approx(second[0], rel=1e-4)


@pytest.mark.slow
def test_precision_and_its_optimizer_are_saved(tmp_path):
    with precision_policy("float16"):
        model = small()
        model.compile("adam", loss=rn.retinanet_losses())
    model.train_on_batch(*batch())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded(images(1, 64, 64))["class_logits"].dtype == model(images(1, 64, 64))["class_logits"].dtype
    for each in (model, loaded):
        each.train_on_batch(*batch())
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) == 2
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_saved_model_asks_its_own_machine_about_xla(tmp_path, monkeypatch):
    """Compiled with jit_compile='auto' where there is a GPU, loaded where there is none."""
    model = small()
    with monkeypatch.context() as patch:
        patch.setattr("retinanet_tf.xla.has_accelerator", lambda: True)
        model.compile("sgd", loss=rn.retinanet_losses())
    assert model.jit_compile
    model.save(tmp_path / "model.keras")
    assert not keras.models.load_model(tmp_path / "model.keras").jit_compile


@pytest.mark.parametrize("name", ["w.h5", "w.hdf5"])
def test_weights_in_the_older_hdf5_layout_are_refused(tmp_path, name):
    with pytest.raises(rn.InputError, match=f"{name} must end in .weights.h5"):
        small().save_weights(str(tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["stages", "class_subnet", "all"])
def test_what_is_frozen_stays_so_in_a_saved_model_with_its_optimizer(tmp_path, part):
    model = small(freeze_stages=1, norm="batch")
    if part == "stages":
        model.freeze_until(3)
    else:
        (model if part == "all" else model.get_layer(part)).trainable = False
    model.compile(keras.optimizers.Adam(1e-3), loss=rn.retinanet_losses())
    x, y = batch()
    if part == "stages":  # of "all" Keras says that nothing is to train
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.trainable for layer in loaded.layers] == [layer.trainable for layer in model.layers]
    whole = small(freeze_stages=1, norm="batch")
    assert len(loaded.trainable_weights) == len(model.trainable_weights) < len(whole.trainable_weights)
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations)
    if part == "stages":
        assert loaded.train_on_batch(x, y) == pytest.approx(model.train_on_batch(x, y), rel=1e-4)
        for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("config", ["mini", 3, None])
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(rn.InputError, match="must be a Config"):
        rn.RetinaNet.from_config(config)
    assert rn.RetinaNet.from_config({"num_classes": 3, **TINY_NETWORK}).config.num_classes == 3
