"""The table of published weights: rows that fit the library, and `retinanet models`, which prints them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import retinanet_tf as rn
from retinanet_tf.cli import models
from retinanet_tf.config.config import Config
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.models.resnet import VARIANTS
from retinanet_tf.pretrained.architecture import Architecture
from retinanet_tf.pretrained.cache import converted_folder, home, published_file
from retinanet_tf.pretrained.importing import describe
from retinanet_tf.pretrained.names import SOURCES
from retinanet_tf.pretrained.zoo import INPUTS, ZOO, find

ROOT = Path(__file__).resolve().parents[2]
FORMATS = (".pth", ".pkl", ".h5", ".safetensors")
LENGTHS = {"sha256": 64, "md5": 32}


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_a_row_fits_the_library(entry):
    assert re.fullmatch(r"[a-z0-9]+/[A-Za-z0-9][\w.-]*", entry.name) and ".." not in entry.name
    assert re.fullmatch(r"https://[\w.-]+/[^\s?#]+", entry.url) and entry.origin.startswith("https://")
    assert (entry.member or entry.filename).endswith(FORMATS) and entry.filename.endswith((*FORMATS, ".zip"))
    assert entry.source in SOURCES and entry.backbone in VARIANTS
    assert entry.licence and entry.data and entry.network and entry.tensors and entry.outputs
    Config().replace(**entry.settings, **entry.expected)  # refuses fields that don't exist
    if entry.digest:
        algorithm, _, digits = entry.digest.partition(":")
        assert re.fullmatch("[0-9a-f]+", digits) and len(digits) in (8, LENGTHS[algorithm])
        # torch.hub's convention: the name ends in the first eight digits.
        assert len(digits) > 8 or f"-{digits}." in entry.filename
    assert entry.has_md5sum == entry.url.startswith("https://dl.fbaipublicfiles.com/detectron/")
    assert not (entry.has_md5sum and entry.digest)
    if entry.detects:
        assert LabelMap.from_json(entry.categories()).num_classes == len(entry.categories())
    # As one reads them, without a network.
    text = models.facts(entry)
    for fact in (entry.name, entry.url, entry.licence, entry.origin, str(published_file(entry))):
        assert fact in text
    assert not entry.value or f"{entry.value:g}" in text
    assert ("retinanet evaluate" in text) == (entry.detects and entry.value is not None)


def test_no_two_rows_share_a_file():
    assert len({entry.url for entry in ZOO.values()}) == len({published_file(e) for e in ZOO.values()}) == len(ZOO)


def test_label_maps():
    """COCO's ids as its instances files have them: 80 of 1 to 90."""
    coco = LabelMap.from_json(ZOO["torchvision/retinanet_resnet50_fpn"].categories())
    assert coco.num_classes == 80 and set(range(1, 91)) - set(coco.ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert [coco.names[coco.to_index(number)] for number in (1, 13, 18, 90)] == [
        "person", "stop sign", "dog", "toothbrush",
    ]  # fmt: skip
    mlperf = LabelMap.from_json(ZOO["mlperf/retinanet_resnext50_32x4d"].categories())
    assert mlperf.ids == tuple(range(264)) and list(mlperf.names) == sorted(mlperf.names)
    assert ZOO["deepforest/tree"].categories() == [{"id": 1, "name": "Tree"}]


@pytest.mark.parametrize("source", SOURCES)
def test_the_inputs_that_are_told_are_those_of_the_settings(source):
    network = Architecture({}, {}, "resnet50", detects=False)
    config = describe(network, source, {}).model
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", INPUTS[source])]
    if config.channel_order == "rgb":
        assert INPUTS[source].startswith("RGB") and not numbers
        np.testing.assert_allclose(config.pixel_mean, 255 * np.array([0.485, 0.456, 0.406]))
        np.testing.assert_allclose(config.pixel_std, 255 * np.array([0.229, 0.224, 0.225]))
    else:
        assert INPUTS[source].startswith("BGR") and numbers == list(config.pixel_mean)[::-1]
        assert config.pixel_std == (1.0, 1.0, 1.0)


def test_a_wrong_name_gets_a_suggestion():
    for wrong, right in (
        ("torchvision/retinanet_resnet50_fpn_v3", "torchvision/retinanet_resnet50_fpn_v2"),
        ("torchvision/retinanet", "torchvision/retinanet_resnet50_fpn_v2"),
        ("keras/resnet5", "keras/resnet50"),
    ):
        with pytest.raises(rn.InputError, match=f"{wrong}.*Did you mean {right}"):
            find(wrong)


def test_the_folder_of_weights(monkeypatch):
    entry = ZOO["keras/resnet50"]
    monkeypatch.setenv("RETINANET_TF_HOME", "~/weights")
    assert home() == Path.home() / "weights"
    assert converted_folder(entry).parent == published_file(entry).parent == home() / "keras" / "resnet50"
    monkeypatch.delenv("RETINANET_TF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert home() == Path("/elsewhere/retinanet_tf") or sys.platform != "linux"


def test_the_list_needs_no_tensorflow():
    """Nor does the page, which is the committed one."""
    code = "import sys; sys.modules['tensorflow'] = None; from retinanet_tf.cli.main import main; main()"
    for arguments in ([], ["torchvision/retinanet_resnet50_fpn"], ["--markdown"]):
        command = [sys.executable, "-c", code, "models", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
        names = set(re.findall(r"^(?:## )?([a-z0-9]+/[\w.-]+)", done.stdout, re.MULTILINE))
        assert names == (set(arguments) if arguments and "/" in arguments[0] else set(ZOO))
    assert done.stdout == (ROOT / "docs" / "models.md").read_text(), "retinanet models --markdown > docs/models.md"
