"""Inference with an exported SavedModel and TensorFlow alone, without retinanet_tf, on image files.

    python run_saved_model.py --model=runs/demo/export/1 --images='photos/*.jpg' --output=detections.json

The output has COCO's results format, {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"},
and the name as "category".
"""

import glob
import json
import os
import sys

import tensorflow as tf
from absl import app, flags

MODEL = flags.DEFINE_string("model", None, "Folder of the SavedModel.", required=True)
IMAGES = flags.DEFINE_string("images", None, "Pattern of image files.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
LIMIT = flags.DEFINE_integer("limit", None, "Only the first so many files.")
MIN_SCORE = flags.DEFINE_float("min_score", 0.5, "Detections below this are left out.")


def main(_: list[str]) -> int | None:
    """Sends all files to serving_default in one batch and writes what comes back."""
    folder, name = os.path.split(IMAGES.value)
    files = sorted(glob.glob(os.path.join(glob.escape(folder), name)) or glob.glob(IMAGES.value))[: LIMIT.value]
    if not files:
        print(f"error: --images={IMAGES.value} matches no file.", file=sys.stderr)
        return 1
    try:
        signature = tf.saved_model.load(MODEL.value).signatures["serving_default"]
        (input_name,) = signature.structured_input_signature[1]
        encoded = [tf.io.read_file(file) for file in files]
        answer = {name: value.numpy() for name, value in signature(**{input_name: tf.stack(encoded)}).items()}
    except (IndexError, KeyError, OSError, ValueError, tf.errors.OpError) as error:
        print(f"error: --model={MODEL.value} doesn't answer: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    rows = []
    for index, file in enumerate(files):
        height, width = tf.io.decode_image(encoded[index], channels=3, expand_animations=False).shape[:2]
        for rank in range(int(answer["num_detections"][index])):
            y1, x1, y2, x2 = (float(side) for side in answer["detection_boxes"][index, rank])
            score = float(answer["detection_scores"][index, rank])
            if score >= MIN_SCORE.value:
                rows.append(
                    {
                        "image_id": file,
                        "category_id": int(answer["detection_classes"][index, rank]),
                        "bbox": [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height],
                        "score": score,
                        "category": answer["detection_class_names"][index, rank].decode(),
                    }
                )
    with open(OUTPUT.value, "w") as output:
        json.dump(rows, output, indent=1)
    loaded = "yes" if "retinanet_tf" in sys.modules else "no"
    print(f"{len(files)} images through {MODEL.value}; retinanet_tf imported: {loaded}")
    return None


if __name__ == "__main__":
    app.run(main)
