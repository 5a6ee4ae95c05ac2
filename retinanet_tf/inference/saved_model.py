"""SavedModelDetector: an exported SavedModel as a detector of decoded images; needs TensorFlow, and no Keras."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError, first_line
from retinanet_tf.runtime.preprocess import to_pixels

_OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")


def check_loadable(folder: str | os.PathLike) -> None:
    """Raises InputError for a path in whose names TensorFlow's loader sees wildcards."""
    if re.search(r"[\[\\]", Path(os.path.abspath(folder)).as_posix()):
        raise InputError(f"{folder}: TensorFlow can't load a model from a path with [ or \\; choose another folder.")


class SavedModelDetector:
    """A detector that `retinanet export` wrote as a SavedModel.

    Args:
        folder: of one version, with saved_model.pb and assets/labels.json.

    Raises:
        InputError: it isn't such an export, or damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = os.fspath(folder)
        check_loadable(self.path)
        self.label_map = LabelMap.load(Path(folder) / "assets" / "labels.json")
        try:
            loaded = tf.saved_model.load(os.fspath(folder))
            self._detect = loaded.signatures["image_tensor"]
        except (IndexError, KeyError, OSError, ValueError, tf.errors.OpError) as error:
            raise InputError(f"{folder} can't be loaded as an exported detector: {first_line(error)}.") from None
        self._loaded = loaded  # its functions live as long as it does

    def detect_all(self, images: Iterable[Any], batch_size: int = 1) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Runs over many pictures, in order, one at a time whatever `batch_size` is.

        Yields:
            (index, {"boxes" (n, 4), "scores" (n,), "labels" (n,)} in the picture's own pixels).

        Raises:
            InputError: an element is no image (see `to_pixels`); its index is named.
        """
        for index, picture in enumerate(images):
            image = to_pixels(picture, index)
            answer = self._detect(input_tensor=tf.constant(image[None]))
            boxes, scores, classes, count = (answer[name][0].numpy() for name in _OUTPUTS)
            found, (height, width) = int(count), image.shape[:2]
            y1, x1, y2, x2 = boxes[:found].T * np.array([[height], [width], [height], [width]], np.float32)
            yield (
                index,
                {
                    "boxes": np.stack([x1, y1, x2, y2], axis=-1),
                    "scores": scores[:found],
                    "labels": np.asarray(self.label_map.to_index(classes[:found].astype(np.int64))),
                },
            )
