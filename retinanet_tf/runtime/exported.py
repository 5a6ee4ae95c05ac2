"""ExportedDetector: an ONNX or LiteRT file as a function from images to detections, without TensorFlow and Keras."""

import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError, check_count, first_line
from retinanet_tf.files import read_bytes
from retinanet_tf.runtime.metadata import KEY, is_onnx, parse_metadata, read_litert
from retinanet_tf.runtime.preprocess import Canvas, fit, own_pixels, to_pixels

INPUTS = {"images": np.uint8, "sizes": np.float32}
OUTPUTS = {"boxes": np.float32, "scores": np.float32, "labels": np.int32, "num_detections": np.int32}
"""What every exported file takes and gives, by name, and its types."""
_BATCH = 8  # pictures that `__call__` runs at once, in files that take any number


class ExportedDetector:
    """A detector that `retinanet export --format=onnx` or `--format=litert` wrote.

    It needs numpy, Pillow, and onnxruntime or ai-edge-litert. Several threads may call it; those of a LiteRT file wait
    for one another.

    Attributes:
        metadata: what the file says about itself: labels, preprocessing, thresholds, versions.
        label_map: category ids and names of the class indices.
        input_shape: (B, H, W) of the canvases that the file takes; B is None if any number can go in at once.

    Args:
        path: the file, `.onnx` or `.tflite`.
        threads: that the runtime computes with; by default one per core.

    Raises:
        InputError: the file can't be loaded or isn't such an export, or its runtime isn't installed.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None):
        self.path = os.fspath(path)
        load = _OnnxFile if is_onnx(path) else _LiteRTFile
        content = read_bytes(path, "the exported detector")
        self._file = load(self.path, content, threads)
        self.metadata: dict[str, Any] = self._file.metadata
        self.label_map = LabelMap.from_json(self.metadata["labels"], f"the metadata of {self.path}")
        present = {**self._file.inputs, **self._file.outputs}
        for name, dtype in {**INPUTS, **OUTPUTS}.items():
            if present.get(name) != np.dtype(dtype):
                raise InputError(
                    f"{self.path} isn't an exported detector: {name!r} of type {dtype.__name__} is missing."
                )
        batch, height, width, _ = self._file.shape
        self.input_shape: tuple[int | None, int, int] = (batch, height, width)

    def __call__(self, images: Any) -> dict[str, np.ndarray]:
        """Detects objects.

        Args:
            images: one image or several, whose sizes may differ; see `to_pixels` for what an image may be. An array
                `(B, H, W, C)` is a batch.

        Returns:
            {"boxes": `(B, D, 4)` float32 xyxy in each image's own pixels, "scores": `(B, D)` float32 descending,
            "labels": `(B, D)` int32 class indices (−1 where empty), "num_detections": `(B,)` int32}.

        Raises:
            InputError: an element is no image; its index is named.
        """
        several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
        pixels = [to_pixels(image, index) for index, image in enumerate(images if several else [images])]
        if not pixels:  # a blank picture's answer has the shapes
            return {name: values[:0] for name, values in self(np.zeros((1, 1, 3), np.uint8)).items()}
        rows = list(self._detect(pixels, _BATCH))
        return {name: np.stack([row[name] for row in rows]) for name in OUTPUTS}

    def prepare(self, image: np.ndarray) -> Canvas:
        """Resizes a picture `(h, w, 3)` as the file's metadata say and pads it to the file's canvas."""
        preprocessing = self.metadata["preprocessing"]
        stretch = preprocessing.get("proportions") == "lost"
        return fit(image, *self.input_shape[1:], preprocessing["padding"], stretch)

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """What the file itself answers for one batch of canvases, by the names of its outputs.

        Args:
            images: `(B, H, W, 3)` uint8 RGB canvases, of the file's batch and size.
            sizes: `(B, 2)` float32, height and width of the picture's part of each; boxes are clipped to it.

        Returns:
            As `__call__`, with boxes in pixels of the canvas.

        Raises:
            InputError: another type or shape than the file's.
        """
        batch, height, width = self.input_shape
        expected = (len(images) if batch is None else batch, height, width, 3)
        if images.dtype != np.uint8 or images.shape != expected:
            raise InputError(
                f"images of type {images.dtype} and shape {images.shape} don't go into {self.path}, which takes uint8 "
                f"of shape {expected}."
            )
        sizes = np.asarray(sizes, np.float32)
        if sizes.shape != (len(images), 2):
            raise InputError(f"sizes must be ({len(images)}, 2), a height and a width per image, not {sizes.shape}.")
        answer = self._file.run({"images": images, "sizes": sizes})
        return {name: answer[name] for name in OUTPUTS}

    def detect_all(self, images: Iterable[Any], batch_size: int = 8) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Runs over many pictures, in order.

        Args:
            images: the pictures; see `to_pixels` for what one may be.
            batch_size: how many go through the file at once, if it takes any number.

        Yields:
            (index, {"boxes" (n, 4), "scores" (n,), "labels" (n,)} in the picture's own pixels).

        Raises:
            InputError: an element is no image, and its index is named, or `batch_size` isn't above 0.
        """
        check_count("batch_size", batch_size)
        pixels = (to_pixels(image, index) for index, image in enumerate(images))
        for index, row in enumerate(self._detect(pixels, batch_size)):
            found = row["num_detections"]
            yield index, {name: row[name][:found] for name in ("boxes", "scores", "labels")}

    def _detect(self, pictures: Iterable[np.ndarray], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """The answer for each picture, boxes in its own pixels."""
        batch = self.input_shape[0]
        waiting = iter(pictures)
        while part := list(itertools.islice(waiting, batch or batch_size)):
            prepared = [self.prepare(picture) for picture in part]
            missing = (batch or len(part)) - len(part)
            filled = [*prepared, *prepared[-1:] * missing]  # the answers for those at the end are dropped
            answer = self.run(np.stack([one.canvas for one in filled]), np.stack([one.size for one in filled]))
            for index, picture in enumerate(part):
                row = {name: values[index] for name, values in answer.items()}
                labels = row["labels"][: row["num_detections"]]
                if labels.size and not 0 <= labels.min() <= labels.max() < self.label_map.num_classes:
                    raise InputError(f"{self.path} answers a class that its metadata don't name; export it again.")
                row["boxes"] = own_pixels(row["boxes"], prepared[index].scale, *picture.shape[:2])
                yield row


class _OnnxFile:
    """An ONNX file in onnxruntime, on the CPU."""

    _TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int32)": np.int32}

    def __init__(self, path: str, content: bytes, threads: int | None):
        try:
            import onnxruntime
        except ImportError:
            raise InputError(f"{path} needs onnxruntime; install it with: pip install 'retinanet_tf[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads or 0, 3  # 0: its choice; errors alone
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _unloadable(path, f"onnxruntime {onnxruntime.__version__}", error) from None
        self.metadata = parse_metadata(self._session.get_modelmeta().custom_metadata_map.get(KEY), path)
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        outputs = {entry.name: entry for entry in self._session.get_outputs()}
        self.inputs = {name: self._dtype(entry) for name, entry in inputs.items()}
        self.outputs = {name: self._dtype(entry) for name, entry in outputs.items()}
        self.shape = _shape(inputs["images"].shape if "images" in inputs else (), path)

    def _dtype(self, entry: Any) -> np.dtype | None:
        return np.dtype(self._TYPES[entry.type]) if entry.type in self._TYPES else None

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, self._session.run(list(OUTPUTS), feeds), strict=True))


class _LiteRTFile:
    """A LiteRT file in ai-edge-litert."""

    def __init__(self, path: str, content: bytes, threads: int | None):
        try:
            from ai_edge_litert import interpreter as litert
        except ImportError:
            raise InputError(
                f"{path} needs ai-edge-litert; install it with: pip install 'retinanet_tf[litert]'"
            ) from None
        self.metadata = read_litert(path)
        try:
            self._interpreter = litert.Interpreter(model_content=content, num_threads=threads or os.cpu_count())
            self._interpreter.allocate_tensors()
            self._runner = self._interpreter.get_signature_runner()
            inputs, outputs = self._runner.get_input_details(), self._runner.get_output_details()
        except Exception as error:
            raise _unloadable(path, "ai-edge-litert", error) from None
        self.inputs = {name: np.dtype(entry["dtype"]) for name, entry in inputs.items()}
        self.outputs = {name: np.dtype(entry["dtype"]) for name, entry in outputs.items()}
        self.shape = _shape(inputs["images"]["shape"].tolist() if "images" in inputs else (), path)
        self._lock = threading.Lock()  # an interpreter that two threads run at once ends the process

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            return {name: np.array(value) for name, value in self._runner(**feeds).items()}


def _shape(sides: Sequence[Any], path: str) -> tuple[int | None, int, int, int]:
    """(B or None, H, W, 3) of the input; raises InputError if it isn't of canvases of one size."""
    whole = [side if isinstance(side, int) and side > 0 else None for side in sides]
    if len(whole) != 4 or None in whole[1:] or whole[3] != 3:
        raise InputError(f"{path} takes no images of shape (B, H, W, 3) of one size: it isn't an export of a detector.")
    batch, height, width, channels = whole
    return batch, height or 0, width or 0, channels or 0


def _unloadable(path: str, runtime: str, error: Exception) -> InputError:
    return InputError(
        f"{path} can't be loaded by {runtime} ({first_line(error)}); is it complete, and is the runtime new enough?"
    )
