"""Published weights by name: converted once, and used as a detector, by a job, in the notebook and in README.md."""

import dataclasses
import hashlib
import json
import re
import resource
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch_writer
from documents import block_after
from small_detectors import TINY_NETWORK, clutter
from small_jobs import TINY, write_shards
from weights_server import leftovers, row

import retinanet_tf as rn
from retinanet_tf.models.network import variables
from retinanet_tf.pretrained import cache, download, import_weights, zoo
from retinanet_tf.pretrained.by_name import resolve
from retinanet_tf.pretrained.loading import initialize, settings
from retinanet_tf.training.job import open_job

ROOT = Path(__file__).resolve().parents[2]


def torchvision_name(ours):
    """The name that torchvision's detector gives to a weight."""
    layer, _, weight = ours.rpartition("/")
    suffix = {
        **{"kernel": "weight", "gamma": "weight", "beta": "bias"},
        **{"moving_mean": "running_mean", "moving_variance": "running_var"},
    }.get(weight, weight)
    words = layer.replace("/", "_").split("_")
    match words:
        case ["stem", kind]:
            name = f"backbone.body.{'conv' if kind == 'conv' else 'bn'}1"
        case [stage, block, "shortcut", kind]:
            name = f"backbone.body.layer{int(stage[-1]) - 1}.{block[5:]}.downsample.{'01'[kind == 'norm']}"
        case [stage, block, number, kind]:
            kind = "conv" if kind == "conv" else "bn"
            name = f"backbone.body.layer{int(stage[-1]) - 1}.{block[5:]}.{kind}{number}"
        case ["fpn", part]:
            level = int(part[-1])
            blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}.get(part[:-1])
            name = f"backbone.fpn.{blocks}.{level - 3}.0" if blocks else f"backbone.fpn.extra_blocks.p{level}"
        case [task, "subnet", "predictor"]:
            name = f"head.{'classification_head.cls_logits' if task == 'class' else 'regression_head.bbox_reg'}"
        case [task, "subnet", part]:
            name = f"head.{'classification' if task == 'class' else 'regression'}_head.conv.{part[4:]}.0"
    return f"{name}.{suffix}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small network with random weights in torchvision's layout: a file of two categories and the background."""
    model = rn.RetinaNet(num_classes=3, **TINY_NETWORK)
    rng = np.random.default_rng(1)
    tensors = {}
    for name, value in variables(model).items():
        # Scores above the threshold, variances that divide.
        array = rng.uniform(0.5, 1.5, value.shape) if "norm" in name else rng.normal(0, 0.3, value.shape)
        array = array.astype(np.float32)
        tensors[torchvision_name(name)] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return torch_writer.save(tmp_path_factory.mktemp("tiny") / "tiny.pth", tensors)


@pytest.fixture
def tiny_row(server, tiny, monkeypatch):
    """Puts the small network on the server and into the zoo."""
    content = tiny.read_bytes()
    monkeypatch.setitem(server.files, "/tiny.pth", content)
    entry = row(
        server.url("/tiny.pth"),
        f"sha256:{hashlib.sha256(content).hexdigest()[:8]}",
        labels=("cat", "dog"),
        backbone="resnet10_w16",
        settings={"score_threshold": 0.2, "image_size": 64, "max_size": 96},
        expected={"p6_from": "c5", "subnet_depth": 1, "num_classes": 2},
    )
    monkeypatch.setitem(zoo.ZOO, entry.name, entry)
    return entry


def test_a_disk_that_is_full(server, tiny_row, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(rn.InputError, match=r"weights.pkl can't be written"):
            download.fetch(row(server.url()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not leftovers()
    file = download.fetch(tiny_row)
    free = shutil.disk_usage(file.parent)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(rn.InputError, match=r"model.weights.h5 can't be written: it needs 1.4 MB and 0.0 MB are free"):
        download.install(tiny_row)
    assert leftovers() == [file]


@pytest.mark.slow
def test_from_a_name_to_a_detector(server, tiny, tiny_row, tmp_path):
    """The same as importing the file by its path; the second time nothing is fetched, nor written."""
    detector = rn.load_detector("tests/tiny")
    assert detector.label_map == rn.data.LabelMap([1, 2], ["cat", "dog"])
    assert (detector.config.score_threshold, detector.image_size, detector.max_size) == (0.2, 64, 96)
    import_weights("torchvision", tiny, tmp_path / "by_path", label_map=detector.label_map)
    direct = rn.load_detector(tmp_path / "by_path")
    image = clutter(0, 64, 96)[None].astype(np.float32)
    outputs, expected = detector.model(image, training=False), direct.model(image, training=False)
    assert expected["class_logits"].shape[-1] == 2 and np.std(expected["class_logits"]) > 0.1
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value)
    asked, before = list(server.asked), {path: path.stat().st_mtime_ns for path in leftovers()}
    again = rn.load_detector("tests/tiny")
    np.testing.assert_array_equal(again.model.get_weights()[0], detector.model.get_weights()[0])
    assert asked == server.asked == ["/tiny.pth"]
    assert before == {path: path.stat().st_mtime_ns for path in leftovers()}
    assert {path.parent.name for path in before} == {"tiny", cache.converted_folder(tiny_row).name}


@pytest.mark.slow
def test_a_job_starts_from_a_name(tiny_row, tmp_path):
    """The network's settings come with the weights; the classes are replaced, all else is kept."""
    write_shards(tmp_path / "data")
    given = settings(resolve("tests/tiny"))
    assert given["subnet_depth"] == 1 and given["anchor_style"] == "torchvision" and "num_classes" not in given
    config = TINY.replace(**given, num_classes=5)
    job = open_job(config, data=str(tmp_path / "data" / "train-*"), init_weights="tests/tiny")
    assert job.paths["init_weights"] == "tests/tiny"
    model = rn.RetinaNet.from_config(config)
    report = initialize(model, resolve("tests/tiny"), job.label_map)
    assert report.missing == ["class_subnet/predictor/kernel", "class_subnet/predictor/bias"]
    before = variables(rn.load_detector("tests/tiny").model)
    for name, value in variables(model).items():
        assert name in report.missing or np.array_equal(value, before[name])


def test_the_tensors_must_be_those_of_the_row(server, tiny_row, tiny):
    for changes, sentence in (
        ({"backbone": "resnet50"}, "backbone=resnet10_w16 instead of resnet50"),
        ({"expected": {"p6_from": "p5"}}, "p6_from=c5 instead of p5"),
        ({"labels": ("a", "b", "c", "d")}, "fits neither the number of categories"),
        ({"source": "detectron2"}, "not a checkpoint of detectron2"),
    ):
        entry = dataclasses.replace(tiny_row, **changes)
        with pytest.raises(rn.InputError, match=f"tests/tiny can't be converted from .*{sentence}"):
            download.install(entry)
        assert [path.name for path in leftovers()] == ["tiny.pth"]
    cache.published_file(tiny_row).write_bytes(tiny.read_bytes()[:5000])
    with pytest.raises(rn.InputError, match="tests/tiny can't be converted.*tiny.pth.*delete it"):
        download.install(dataclasses.replace(tiny_row, digest=""))


def test_a_file_inside_a_zip_file(server, tiny, tiny_row, monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        archive.write(tiny, "inner.pth")
    monkeypatch.setitem(server.files, "/tiny.zip", (tmp_path / "tiny.zip").read_bytes())
    entry = dataclasses.replace(tiny_row, url=server.url("/tiny.zip"), digest="", member="other.pth")
    with pytest.raises(rn.InputError, match=r"tiny.zip is not a zip file with other.pth"):
        download.install(entry)
    folder = download.install(dataclasses.replace(entry, member="inner.pth"))
    assert (folder / "run.json").exists() and {path.parent for path in leftovers()} == {folder, folder.parent}


def test_another_process_converts_first(tiny_row, tiny, monkeypatch):
    """What is there when this one is ready is kept."""

    def slower(*arguments, **options):
        monkeypatch.setattr(download, "import_weights", import_weights)
        other = download.install(tiny_row)
        (other / "mark").touch()
        return import_weights(*arguments, **options)

    monkeypatch.setattr(download, "import_weights", slower)
    folder = download.install(tiny_row)
    assert (folder / "mark").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, "tiny.pth"]


def test_what_exists_is_a_path(tiny_row, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/mine") == Path("runs/mine") and resolve("a.keras") == Path("a.keras")
    (tmp_path / "tests" / "tiny").mkdir(parents=True)
    assert resolve("tests/tiny") == Path("tests/tiny")
    shutil.rmtree(tmp_path / "tests")
    assert resolve("tests/tiny") == cache.converted_folder(tiny_row)


@pytest.mark.parametrize(
    "name", ["torchvision/retinanet_resnet50", "torchvision/../../etc", "../torchvision/resnet50", "tests/tiny/../tiny"]
)
def test_no_name_leads_out_of_the_cache(server, tiny_row, name):
    with pytest.raises(rn.InputError, match="there is no published model"):
        resolve(name)
    assert not leftovers() and not server.asked


def notebook_cells():
    """The notebook's code, cell by cell, without the lines that IPython alone understands."""
    content = json.loads((ROOT / "docs/notebooks/first_detection.ipynb").read_text())
    assert (content["nbformat"], content["nbformat_minor"]) >= (4, 0) and "metadata" in content
    cells = []
    for cell in content["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and "metadata" in cell
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "stored without results"
            cells.append("".join(line for line in cell["source"] if not line.startswith("%")))
    return cells


def test_the_notebook_is_valid_python():
    text = "\n".join(notebook_cells())
    compile(text, "notebook", "exec")
    assert zoo.find(re.search(r'NAME = "(.+?)"', text)[1])


@pytest.mark.once
def test_the_notebook_runs(tiny_row, monkeypatch, tmp_path, capsys):
    """Cell after cell, with a small network in place of the published one and fewer pictures and steps."""
    (tmp_path / "docs/notebooks").mkdir(parents=True)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path / "docs/notebooks")
    space = {}
    for cell in notebook_cells():
        for whole, part in (
            ("torchvision/retinanet_resnet50_fpn_v2", "tests/tiny"),
            ("num_train=200, num_val=40", "num_train=8, num_val=2"),
            ("steps=100, decay_steps=(80,), warmup_steps=10", 'steps=2, learning_rate=0.0, strategy="one_device"'),
        ):
            cell = cell.replace(whole, part)
        exec(compile(cell, "notebook", "exec"), space)
    said = capsys.readouterr().out
    assert "its 2 categories are not the 5 here" in said and space["mine"].label_map.num_classes == 5
    assert space["detector"].label_map.names == ("cat", "dog")


@pytest.mark.slow
def test_the_readmes_first_detection(tiny_row, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "tests/data/samples/photo.jpg", tmp_path)
    text = block_after((ROOT / "README.md").read_text(), "Detect", "python")
    for whole, part in (("torchvision/retinanet_resnet50_fpn_v2", "tests/tiny"), ("score > 0.5", "score > 0.0")):
        assert whole in text
        text = text.replace(whole, part)
    exec(compile(text, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines and {line.split()[0] for line in lines[-3:]} <= {"cat", "dog"}
