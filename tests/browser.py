"""Headless Chromium with one page, driven through DevTools' protocol over pipes."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A context manager; `folder` keeps the browser's profile."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        command_in, self.commands = os.pipe()
        self.answers, answer_out = os.pipe()
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", *camera, "about:blank"]

        def pipes():  # the protocol's descriptors are 3 and 4; copies first, since these may be among them
            ends = [os.dup(command_in), os.dup(answer_out)]
            high = [os.dup2(end, 100 + index) for index, end in enumerate(ends)]
            for index, end in enumerate(high):
                os.dup2(end, 3 + index)

        self.process = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={self.folder}"],
            preexec_fn=pipes,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_in)
        os.close(answer_out)
        self.numbers, self.received, self.session = itertools.count(1), b"", None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        self.process.wait(timeout=30)
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method, **parameters):
        """The result of one command of the protocol."""
        request = {"id": next(self.numbers), "method": method, "params": parameters}
        if self.session and not method.startswith("Browser."):
            request["sessionId"] = self.session
        os.write(self.commands, json.dumps(request).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == request["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def choose(self, selector, path):
        """Chooses a file as a person does with an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def wait(self, expression, seconds=60):
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, self.value("document.body?.innerText")
            time.sleep(0.05)

    def _message(self):
        while b"\0" not in self.received:
            assert select.select([self.answers], [], [], 60)[0], "Chromium doesn't answer"
            part = os.read(self.answers, 2**20)
            assert part, "Chromium ended"
            self.received += part
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)
