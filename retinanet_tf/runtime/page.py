"""A page to try a detector: one HTML file that runs an ONNX export in the browser, by onnxruntime-web, offline."""

import base64
import json
import os
import re
import shutil
import subprocess
import tarfile
from importlib import resources
from pathlib import Path

from retinanet_tf.errors import InputError, first_line
from retinanet_tf.files import read_bytes, write_text
from retinanet_tf.runtime.exported import ExportedDetector
from retinanet_tf.runtime.metadata import is_onnx

PACKAGE = "onnxruntime-web@1.30.0"
"""npm's package of ONNX Runtime for browsers (MIT licence), in the version that the page is tested with."""
LIBRARY, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
"""The files of its folder dist that become part of the page."""
_LARGEST = 350 * 2**20  # a browser's longest text, in base64, is about 512 million letters


def write_page(model: str | os.PathLike, runtime: str | os.PathLike) -> Path:
    """Writes an HTML page with an exported detector in it: it needs no server, loads nothing and sends nothing.

    A picture that is dropped on it, or the camera's, is shown with boxes and names; a slider sets the least score.

    Args:
        model: an ONNX file of `retinanet export`.
        runtime: folder with the files LIBRARY and WASM, as `download_runtime` gets them.

    Returns:
        The page's path: the model's name with the suffix .html, which must not exist yet.

    Raises:
        InputError: the model isn't such a file or too large, a file of the runtime is missing, or the page can't be
            written.
    """
    if not is_onnx(model):
        raise InputError(f"{os.fspath(model)} can't be run by a page; export with format='onnx'.")
    target = new_page(model)
    metadata = ExportedDetector(model).metadata
    content = read_bytes(model, "the exported detector")
    if len(content) > _LARGEST:
        raise InputError(f"{os.fspath(model)} has more than {_LARGEST >> 20} MiB, too much for a page.")
    library, wasm = (read_bytes(Path(runtime, name), "onnxruntime-web's") for name in (LIBRARY, WASM))
    needed = {name: metadata[name] for name in ("labels", "input", "preprocessing")}
    text = resources.files("retinanet_tf.runtime").joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "__METADATA__": json.dumps(needed, ensure_ascii=False).replace("<", "\\u003c"),
        "__LIBRARY__": base64.b64encode(library).decode(),
        "__WASM__": base64.b64encode(wasm).decode(),
        "__MODEL__": base64.b64encode(content).decode(),
    }
    text = re.sub("|".join(parts), lambda place: parts[place[0]], text)
    write_text(target, text)
    return target


def new_page(model: str | os.PathLike) -> Path:
    """The page beside a model; InputError if there is one already."""
    page = Path(model).with_suffix(".html")
    if page.exists():
        raise InputError(f"{page} exists; choose another name or remove it.")
    return page


def download_runtime(folder: str | os.PathLike) -> None:
    """Downloads PACKAGE by `npm pack` and puts its files LIBRARY and WASM into a folder; InputError if it can't."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"the page needs {PACKAGE}, which npm downloads, and npm isn't installed: install Node.js.")
    command = [npm, "pack", PACKAGE, "--prefer-offline", "--loglevel=error", f"--pack-destination={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    packed = list(Path(folder).glob("*.tgz"))
    if done.returncode or len(packed) != 1:
        lines = [line.removeprefix("npm error ") for line in done.stderr.splitlines()]
        reasons = [line for line in lines if line and not re.match("(code|errno|syscall) ", line)]
        raise InputError(f"the page needs {PACKAGE}, and npm can't download it: {[*reasons, 'no reason given'][0]}.")
    try:
        with tarfile.open(packed[0]) as archive:
            for name in (LIBRARY, WASM):
                file = archive.extractfile(f"package/dist/{name}")
                assert file is not None
                Path(folder, name).write_bytes(file.read())
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise InputError(f"the page needs {PACKAGE}, and npm's download is damaged: {first_line(error)}.") from None
