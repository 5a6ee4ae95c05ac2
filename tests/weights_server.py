"""A server of this machine in place of those that publish weights, and rows of the zoo that point to it."""

import dataclasses
import hashlib
import http.server
import time

import numpy as np

from retinanet_tf.pretrained import cache, zoo

CONTENT = np.random.default_rng(0).bytes(50_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path, and answers that go wrong; `asked` are the paths in order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {"/weights.pkl": CONTENT}, []

    def url(self, path="/weights.pkl"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        kind, _, rest = self.path.removeprefix("http://weights.invalid").rpartition("/")
        content = self.server.files.get(f"/{rest}")
        if content is None:
            return self.send_error(404)
        if kind == "/moved":
            self.send_response(302)
            self.send_header("Location", f"/{rest}")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if kind == "/silent":
            time.sleep(1)
        elif kind == "/half":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif kind == "/slow":
            for start in range(0, len(content), 10_000):
                self.wfile.write(content[start : start + 10_000])
                self.wfile.flush()
                time.sleep(0.3)
        else:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def row(url, digest=f"sha256:{SHA256[:8]}", **changes):
    return dataclasses.replace(
        zoo.ZOO["torchvision/retinanet_resnet50_fpn"], name="tests/tiny", url=url, digest=digest, **changes
    )


def leftovers():
    return [path for path in cache.home().rglob("*") if path.is_file()] if cache.home().exists() else []
