"""TensorBoard: scalars, the first input images, and predicted and true boxes at every evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.source import Source
from retinanet_tf.inference.detector import Detector
from retinanet_tf.inference.images import to_image
from retinanet_tf.inference.results import MIN_SCORE
from retinanet_tf.training.callbacks import Progress
from retinanet_tf.visualize import draw_detections

LOG_STEPS = 20
"""Steps between scalars."""

PICTURES = 4
"""Images per evaluation, and of the input."""


class Board(keras.callbacks.Callback):
    """Writes scalars and images of a job into `folder` for TensorBoard; `progress` comes before this callback."""

    def __init__(self, folder: Path, progress: Progress):
        super().__init__()
        self.progress = progress
        self.folder, self.writer = folder, tf.summary.create_file_writer(str(folder))

    def on_train_batch_end(self, batch, logs=None):
        if self.progress.step % LOG_STEPS == 0:  # Keras' logs are means since the epoch's beginning
            self.scalars({"learning_rate": float(self.progress.rate(self.progress.step - 1)), **(logs or {})})

    def on_epoch_end(self, epoch, logs=None):
        self.scalars({name: value for name, value in (logs or {}).items() if np.isfinite(value)})

    def classes(self, values: dict[str, float | None]) -> None:
        """Writes AP by class, as AP/NAME, of the classes that have objects."""
        self.scalars({f"AP/{name}": value for name, value in values.items() if value is not None})

    def scalars(self, values: dict[str, float]) -> None:
        """Writes numbers of the last finished step."""
        with self._writing():
            for name, value in values.items():
                tf.summary.scalar(name, value)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self.writer.as_default(self.progress.step):
                yield
        except tf.errors.OpError as error:  # of a full disk it is the same as of a GPU's memory
            reason = error.message.splitlines()[0].rpartition("; ")[2]
            raise InputError(
                f"{self.folder} can't be written ({reason}); make room and repeat the command: it resumes."
            ) from None

    def inputs(self, batch: tuple[tf.Tensor, dict[str, tf.Tensor]], label_map: LabelMap) -> None:
        """Writes images of a training batch as the network sees them, with their boxes."""
        images, objects = tf.nest.map_structure(lambda value: value[:PICTURES].numpy(), batch)
        names, ids = label_map.names, label_map.ids
        pictures = [
            draw_detections(np.clip(image, 0, 255).astype(np.uint8), boxes, labels, names=names, ids=ids)
            for image, boxes, labels in zip(images, objects["boxes"], objects["labels"], strict=True)
        ]
        self._pictures("input", pictures)

    def detections(self, detector: Detector, source: Source) -> None:
        """Writes the first images of the evaluation: predictions in colour, ground truth dashed."""
        pictures: list[np.ndarray] = []
        for record, encoded in zip(source.instances["images"][:PICTURES], source.encoded(), strict=False):
            detections = {name: value[0].numpy() for name, value in detector([encoded]).items()}
            pictures.append(
                draw_detections(
                    np.asarray(to_image(encoded, 0), np.uint8),
                    detections["boxes"],
                    detections["labels"],
                    detections["scores"],
                    names=detector.label_map.names,
                    ground_truth=source.boxes_of(record["id"]),
                    min_score=MIN_SCORE,
                    ids=detector.label_map.ids,
                )
            )
        self._pictures("evaluation", pictures)

    def _pictures(self, name: str, pictures: list[np.ndarray]) -> None:
        with self._writing():
            for number, picture in enumerate(pictures):
                tf.summary.image(f"{name}/{number}", picture[None])
