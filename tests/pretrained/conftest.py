"""A small backbone in the published layouts, which the library's table lacks, and a server of weights."""

import threading

import pytest
from weights_server import Server

from retinanet_tf.models.resnet import VARIANTS, Variant


@pytest.fixture(scope="module")
def small_backbone():
    """`resnet_small`, as `published` has it, among the backbones that are known."""
    VARIANTS["resnet_small"] = Variant((1, 2, 1, 1), group_width=8)
    yield
    del VARIANTS["resnet_small"]


@pytest.fixture(scope="module")
def shared_server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(shared_server, monkeypatch, tmp_path):
    """The server, with an empty cache in tmp_path / "home" and no proxy of the environment's."""
    monkeypatch.setenv("RETINANET_TF_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    shared_server.asked.clear()
    return shared_server
