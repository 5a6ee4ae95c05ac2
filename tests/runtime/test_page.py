"""The page to try a detector, in headless Chromium: the file's detections, from its own file, without a network."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.errors import InputError
from retinanet_tf.runtime import page as module
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.page import download_runtime, write_page
from tests.browser import CHROMIUM, Browser
from tests.exported_files import METADATA, write_onnx
from tests.small_detectors import clutter

RUNTIME = os.environ.get("RETINANET_TF_ONNXRUNTIME_WEB")
HOSTILE = [{"id": 1, "name": "</script><b>__WASM__"}, {"id": 18, "name": "żółw"}, {"id": 90, "name": '"x"'}]


@pytest.mark.once
@pytest.mark.skipif(not (CHROMIUM and RUNTIME), reason="no Chromium or RETINANET_TF_ONNXRUNTIME_WEB (CONTRIBUTING.md)")
@pytest.mark.parametrize("batch", [None, 2])
def test_the_page_finds_what_the_file_finds(batch, tmp_path):
    write_onnx(tmp_path / "a.onnx", batch, {**METADATA, "labels": HOSTILE})
    page = write_page(tmp_path / "a.onnx", runtime=RUNTIME)
    assert page == tmp_path / "a.html"
    turned = Image.Exif()
    turned[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (301, 417, 3), np.uint8)
    Image.fromarray(clutter(2)).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "dark.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    detector = ExportedDetector(tmp_path / "a.onnx")
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("document.body?.dataset.state == 'ready' || document.body?.dataset.state == 'error'")
        assert browser.value("document.getElementById('status').innerText").startswith("Finds: </script><b>__WASM__, ")
        for name in ("turned.jpg", "noise.png", "dark.png"):
            browser.value("window.result = null")
            browser.choose("#file", tmp_path / name)
            browser.wait("window.result || document.body.dataset.state == 'error'")
            found, expected = browser.value("window.result"), detector(str(tmp_path / name))
            count = int(expected["num_detections"][0])
            assert len(found["detections"]) == count == (0 if name == "dark.png" else 2)
            # A JPEG's pixels differ by a step or two between decoders.
            for index, row in enumerate(found["detections"]):
                assert row["score"] == pytest.approx(expected["scores"][0, index], abs=5e-3 if "jpg" in name else 1e-6)
                np.testing.assert_allclose(row["box"], expected["boxes"][0, index], atol=1e-3)
                label = HOSTILE[expected["labels"][0, index]]
                assert (row["id"], row["name"]) == (label["id"], label["name"])
        browser.choose("#file", tmp_path / "broken.png")
        browser.wait("document.body.dataset.state == 'error'")
        assert "broken.png is no picture" in browser.value("document.getElementById('status').innerText")
        # The slider: of noise, one detection has half the red, the other an eighth of the blue.
        browser.choose("#file", tmp_path / "noise.png")
        browser.wait("document.body.dataset.state == 'done'")
        rows = "document.querySelectorAll('#rows tr').length"
        assert browser.value(rows) == 1
        for score, shown in ((0, 2), (0.9, 0)):
            browser.value(
                f"document.getElementById('score').value = {score}; document.getElementById('score').oninput()"
            )
            assert browser.value(rows) == shown
        # A camera that shows green and a dot.
        browser.value("window.result = null; camera.click()")
        browser.wait("window.result")
        assert browser.value("[result.width, result.height, camera.innerText]") == [640, 480, "Stop the camera"]
        browser.value("camera.click()")
        assert browser.value("camera.innerText") == "Use the camera"
        assert browser.value("fetch('data:,x').then(() => false, () => true)"), "the page's policy forbids any request"


def test_only_onnx_has_a_page(forked):
    status, text = forked.run("export", ["--model=none", "--output=none.tflite", "--format=litert", "--page"])
    assert status == 1 and "--page is for --format=onnx" in text


def test_what_can_be_no_page_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="export with format='onnx'"):
        write_page(tmp_path / "a.tflite", tmp_path)
    write_onnx(tmp_path / "a.onnx")
    with pytest.raises(InputError, match=r"ort.wasm.bundle.min.mjs can't be read"):
        write_page(tmp_path / "a.onnx", runtime=tmp_path)
    (tmp_path / "a.html").write_text("mine")
    with pytest.raises(InputError, match="a.html exists; choose another name"):
        write_page(tmp_path / "a.onnx", tmp_path)
    (tmp_path / "a.html").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm isn't installed"):
        download_runtime(tmp_path)
    npm = Path(tmp_path, "npm")
    for script, sentence in (
        ("echo 'npm error code X\nnpm error errno X\nnpm error no way\nnpm error log' >&2; exit 1", "it: no way"),
        ("echo text > a.tgz", "npm's download is damaged"),
    ):
        npm.write_text(f"#!/bin/sh\n{script}\n")
        npm.chmod(0o755)
        with pytest.raises(InputError, match=sentence):
            download_runtime(tmp_path)
    monkeypatch.setattr(module, "_LARGEST", 10)
    with pytest.raises(InputError, match="too much for a page"):
        write_page(tmp_path / "a.onnx", tmp_path)
    assert not (tmp_path / "a.html").exists()
