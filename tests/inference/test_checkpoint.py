"""Checkpoints that are damaged, foreign or made to harm: one sentence each, and nothing in them is executed."""

import json
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.inference import checkpoint

CONFIG = rn.presets["paper"].replace(num_classes=2, **TINY_NETWORK)
LABELS = rn.data.LabelMap([1, 2], ["a", "b"])


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return rn.RetinaNet.from_config(CONFIG)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A finished run's folder with the same network as m.keras."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps({"config": CONFIG.to_dict()}))
    LABELS.save(folder / "labels.json")
    checkpoint.save_weights(model, folder / checkpoint.WEIGHTS)
    model.save(folder / "m.keras")
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("name", ["", "m.keras"])
def test_a_whole_one_is_loaded(whole, model, name):
    detector = rn.load_detector(whole / name)
    assert detector.label_map == LABELS
    for loaded, saved in zip(detector.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, saved)


@pytest.mark.slow
def test_a_compiled_and_trained_one_is_loaded(tmp_path, model):
    """A .keras file that holds an optimizer too."""
    trained = rn.RetinaNet.from_config(CONFIG)
    trained.set_weights(model.get_weights())
    trained.compile("adam", rn.retinanet_losses())
    trained.save(tmp_path / "trained.keras")
    loaded = rn.load_detector(tmp_path / "trained.keras").model
    for one, other in zip(loaded.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def refused(path):
    """The sentence, which names the path."""
    with pytest.raises(rn.InputError) as caught:
        rn.load_detector(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def with_setting(**changes):
    content = CONFIG.to_dict()
    content["model"] |= changes
    return json.dumps({"config": content})


@pytest.mark.parametrize(
    "content",
    [
        "null",
        '"run"',
        "7",
        "",
        "{",
        '{"config": null}',
        '{"config": []}',
        '{"config": {"model": "resnet50"}}',
        '{"config": {"model": {"image_size": "big"}}}',
        '{"config": {"model": {"backbone": ["resnet50"]}}}',
        "[" * 100_000,
        '{"seed": ' + 10_000 * "9" + "}",
        b"\x80\x02}q\x00.",
        '{"config": "é"}'.encode("latin-1"),
        with_setting(backbone="resnet9999"),
        with_setting(fpn_channels=10**8),
        with_setting(subnet_channels=10**7),
        with_setting(subnet_depth=10**12),
        with_setting(num_classes=2**60),
        with_setting(image_size=10**9),
        with_setting(fpn_channels=16.5),
        with_setting(norm_epsilon=float("nan")),
        with_setting(pixel_mean=[0, float("inf"), 0]),
        json.dumps({"config": CONFIG.to_dict(), "imported": "detector"}),
        json.dumps({"config": CONFIG.to_dict(), "imported": {"parts": 3}}),
    ],
)
def test_a_damaged_record_is_refused(run, content):
    (run / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "run.json" in refused(run) or "model.weights.h5" in refused(run)


def links(kind):
    def change(path):
        with h5py.File(path, "w") as file:
            file["layer"] = kind

    return change


def other_network(path):
    checkpoint.save_weights(rn.RetinaNet.from_config(CONFIG.replace(fpn_channels=24)), path)


def lacking(path):
    """Without the last convolution of a subnet."""
    with h5py.File(path, "a") as file:
        names = []
        file.visit(names.append)
        del file[next(name for name in names if name.endswith("predictor"))]


def huge(path):
    with h5py.File(path, "a") as file:
        file.create_dataset("more", (10**6, 10**6), "f4")


def elsewhere(path):
    (path.parent / "raw.bin").write_bytes(bytes(4000))
    with h5py.File(path, "a") as file:
        file.create_dataset("more", (1000,), "f4", external=[(str(path.parent / "raw.bin"), 0, 4000)])


def emptied(path):
    """A whole HDF5 file of the same size without a single array of the network."""
    size = path.stat().st_size
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros(size // 4, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"<html>" * 10**6),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
        other_network,
        emptied,
        lacking,
        huge,
        elsewhere,
        links(h5py.SoftLink("/layer")),
        links(h5py.ExternalLink("other.h5", "/")),
    ],
)
def test_damaged_or_foreign_weights_are_refused(run, change):
    change(run / checkpoint.WEIGHTS)
    assert checkpoint.WEIGHTS in refused(run)


def archive(**members):
    """A change of m.keras: other members, those with None left out."""

    def change(path):
        with zipfile.ZipFile(path) as old:
            content = {entry.filename: old.read(entry) for entry in old.infolist()}
        content |= {name.replace("__", "."): value for name, value in members.items()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, value in content.items():
                if value is not None:
                    new.writestr(name, value)

    return change


def described(change):
    def changed(path):
        content = json.loads(zipfile.ZipFile(path).read("config.json"))
        change(content)
        archive(config__json=json.dumps(content))(path)

    return changed


def hdf5_with_code(path):
    """What Keras 2's loader would take for a model, and unpack a function from."""
    function = ["4wEAAAAA", None, None]
    layer = {"class_name": "Lambda", "config": {"name": "l", "function": function, "function_type": "lambda"}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: (path.unlink(), path.mkdir()),
        hdf5_with_code,
        archive(config__json=None),
        archive(model__weights__h5=None),
        archive(model__weights__h5=b"no weights"),
        archive(model__weights__h5=bytes(10**8)),
        archive(config__json="[]"),
        archive(config__json="{"),
        archive(config__json=b"\xff\xfe"),
        described(lambda content: content.update(class_name="Functional")),
        described(lambda content: content.update(class_name=["RetinaNet"])),
        described(lambda content: content.update(config=None)),
        described(lambda content: content["config"].pop("anchors")),
        described(lambda content: content["config"].update(fpn_channels=10**9)),
        described(lambda content: content["config"].update(fpn_channels=24)),
        described(lambda content: content["config"].update(activation={"module": "os", "class_name": "system"})),
    ],
)
def test_keras_files_that_hold_no_retinanet_are_refused(run, change, monkeypatch):
    monkeypatch.setattr(keras.models, "load_model", lambda *_, **__: pytest.fail("Keras' loader may execute code"))
    change(run / "m.keras")
    refused(run / "m.keras")


@pytest.mark.parametrize("name", ["nothing", "nothing.keras", "nothing.weights.h5", "labels.json"])
def test_what_is_no_checkpoint_is_refused(run, name):
    assert name.removesuffix(".weights.h5") in refused(run / name.removesuffix(".weights.h5"))


def test_the_weights_of_a_run_are_loaded_by_its_folder(run):
    assert refused(run / "model.weights.h5").endswith(f"give its folder, {run}.")


def test_no_path_is_refused():
    with pytest.raises(rn.InputError, match="model=None must be a path, or a name"):
        rn.load_detector(None)


def test_the_newest_version_of_an_export_is_found_and_a_run_is_none(tmp_path):
    assert checkpoint.newest_version(tmp_path) is None and checkpoint.newest_version(tmp_path / "none") is None
    for version in ("9", "10", "11"):
        (tmp_path / version).mkdir()
    for version in ("9", "10"):
        (tmp_path / version / "saved_model.pb").touch()
    assert checkpoint.newest_version(tmp_path) == str(tmp_path / "10")
    assert checkpoint.newest_version(tmp_path / "9") == str(tmp_path / "9")
    with pytest.raises(rn.InputError, match="is an export, which `retinanet predict` can run"):
        checkpoint.load_config(tmp_path)
    (tmp_path / "run.json").write_text("{}")  # a run with its exports in the same folder
    assert checkpoint.newest_version(tmp_path) is None
    with pytest.raises(rn.InputError, match="doesn't describe a detector"):
        checkpoint.load_config(tmp_path)
