"""Runs an exported SavedModel on image files as a server would: with TensorFlow alone, without retinanet_tf.

    python -m experiments.run_saved_model --model=runs/demo/export/1 --images='photos/*.jpg' --output=detections.json

The output is a list of {"file", "detections": [{"box" [x1, y1, x2, y2] in pixels, "score", "category_id", "name"}]}.
"""

import glob
import json
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
    files = sorted(glob.glob(IMAGES.value))[: LIMIT.value]
    if not files:
        print(f"error: --images={IMAGES.value} matches no file.", file=sys.stderr)
        return 1
    signature = tf.saved_model.load(MODEL.value).signatures["serving_default"]
    (input_name,) = signature.structured_input_signature[1]
    encoded = [tf.io.read_file(file) for file in files]
    answer = {name: value.numpy() for name, value in signature(**{input_name: tf.stack(encoded)}).items()}
    result = []
    for row, file in enumerate(files):
        height, width = tf.io.decode_image(encoded[row], channels=3, expand_animations=False).shape[:2]
        found = []
        for place in range(int(answer["num_detections"][row])):
            y1, x1, y2, x2 = (float(side) for side in answer["detection_boxes"][row, place])
            score = float(answer["detection_scores"][row, place])
            if score >= MIN_SCORE.value:
                found.append(
                    {
                        "box": [x1 * width, y1 * height, x2 * width, y2 * height],
                        "score": score,
                        "category_id": int(answer["detection_classes"][row, place]),
                        "name": answer["detection_class_names"][row, place].decode(),
                    }
                )
        result.append({"file": file, "detections": found})
    with open(OUTPUT.value, "w") as output:
        json.dump(result, output, indent=1)
    loaded = "yes" if "retinanet_tf" in sys.modules else "no"
    print(f"{len(files)} images through {MODEL.value}; retinanet_tf imported: {loaded}")
    return None


if __name__ == "__main__":
    app.run(main)
