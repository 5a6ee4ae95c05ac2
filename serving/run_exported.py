"""Inference with an exported ONNX or LiteRT file: numpy, Pillow and its runtime alone, without retinanet_tf.

    python run_exported.py retinanet.onnx photo.jpg …          pip install numpy pillow onnxruntime
    python run_exported.py retinanet.tflite photo.jpg …        pip install numpy pillow ai-edge-litert

prints a line of JSON per detection: file, category_id, name, score, and bbox [x, y, width, height] in pixels.
"""

import json
import sys
import zipfile

import numpy as np
from PIL import Image, ImageOps

MIN_SCORE = 0.3


def load_onnx(path):
    """(the file's metadata, a function from a dict of inputs to a dict of outputs)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["retinanet_tf"])
    return metadata, lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def load_litert(path):
    """As `load_onnx`. The order of a LiteRT file's outputs isn't fixed; its signature has their names."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path).get_signature_runner()
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read("retinanet_tf.json"))
    return metadata, lambda inputs: run(**inputs)


def neighbours(old, new):
    """For each new pixel the two old ones that it lies between, and how far from the first: half-pixel centres."""
    position = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    below = np.floor(position)
    first = np.maximum(below, 0).astype(int)
    return first, np.minimum(np.ceil(position).astype(int), old - 1), position - below


def resize(image, height, width):
    """Bilinear without antialiasing, which Pillow's own resize would do."""
    upper, lower, y = neighbours(image.shape[0], height)
    left, right, x = neighbours(image.shape[1], width)
    image = image.astype(np.float32)
    top = image[upper][:, left] + (image[upper][:, right] - image[upper][:, left]) * x[:, None]
    bottom = image[lower][:, left] + (image[lower][:, right] - image[lower][:, left]) * x[:, None]
    return top + (bottom - top) * y[:, None, None]


def detect(path, metadata, run):
    """The detections of one image file."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray(np.rint(np.asarray(picture, np.float64) * (255 / 65535)).astype(np.uint8))
    image = np.asarray(picture.convert("RGB"))
    old = np.array(image.shape[:2])
    batch, height, width = (metadata["input"][name] for name in ("batch", "height", "width"))
    scale = min(height / old[0], width / old[1])
    new = [max(1, round(side * scale)) for side in old.tolist()]
    if metadata["preprocessing"].get("proportions") == "lost":
        new = [height, width]
    images = np.full((batch or 1, height, width, 3), metadata["preprocessing"]["padding"], np.uint8)
    images[0, : new[0], : new[1]] = np.rint(resize(image, *new))
    answer = run({"images": images, "sizes": np.array([new] * len(images), np.float32)})
    for index in range(answer["num_detections"][0]):  # further rows are empty
        x1, y1, x2, y2 = (answer["boxes"][0, index] * np.tile(old[::-1] / new[::-1], 2)).tolist()
        label = metadata["labels"][answer["labels"][0, index]]
        score = float(answer["scores"][0, index])
        if score >= MIN_SCORE:
            row = {"file": path, "category_id": label["id"], "name": label["name"], "score": round(score, 4)}
            yield {**row, "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]}


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    load = load_onnx if sys.argv[1].endswith(".onnx") else load_litert
    model = load(sys.argv[1])
    for file in sys.argv[2:]:
        for found in detect(file, *model):
            print(json.dumps(found, ensure_ascii=False))
