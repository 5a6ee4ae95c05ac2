"""Small datasets on disk for tests of the data chain: random photos-like noise with boxes, as COCO files."""

import json
import pathlib

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "cup"}]


def picture(width, height, seed=0):
    """(height, width, 3) uint8, smooth enough that JPEG changes little."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def annotation(number, image_id, box, category=7, **more):
    """A COCO annotation; box is [x, y, width, height]."""
    rest = {"area": box[2] * box[3], "iscrowd": 0, **more}
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": box, **rest}


def write_coco(folder, sizes, boxes_an_image=2, suffix=".jpg", seed=0):
    """Writes FOLDER/images/ and FOLDER/instances.json for images of `sizes` (width, height); returns both paths.

    The last image is empty, and the last object of the first one is a crowd.
    """
    folder = pathlib.Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for number, (width, height) in enumerate(sizes):
        name = f"{number:06d}{suffix}"
        Image.fromarray(picture(width, height, seed + number)).save(folder / "images" / name)
        images.append({"id": 10 * number + 1, "file_name": name, "width": width, "height": height})
        for _ in range(boxes_an_image if number + 1 < len(sizes) or len(sizes) == 1 else 0):
            x, y = rng.uniform(0, width * 0.6), rng.uniform(0, height * 0.6)
            box = [round(float(v), 2) for v in (x, y, rng.uniform(2, width * 0.4), rng.uniform(2, height * 0.4))]
            category = int(rng.choice([7, 3, 90]))
            annotations.append(annotation(len(annotations) + 1, 10 * number + 1, box, category))
    if boxes_an_image > 1:
        annotations[boxes_an_image - 1]["iscrowd"] = 1
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return path, folder / "images"
