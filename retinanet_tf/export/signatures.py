"""Signatures of a served detector: graphs from encoded images to the TF Object Detection API's outputs.

All is in the graph, weights included: what is saved runs with tensorflow alone, without custom operations.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tf.data import transforms
from retinanet_tf.detection.rounding import round_up
from retinanet_tf.export import image_decoding as decoding
from retinanet_tf.inference.detector import CANVAS_MULTIPLE, PREPARED_SPEC, Detector, Prepared, empty_detections

SIGNATURES = ("serving_default", "image_tensor", "tf_example")


class ServedDetector(tf.Module):
    """A detector with one method per signature.

    Every method returns {"detection_boxes": `(B, D, 4)` ymin, xmin, ymax, xmax in 0–1 of the image,
    "detection_scores": `(B, D)` descending, "detection_classes": `(B, D)` the dataset's category ids,
    "num_detections": `(B,)`}, float32 all of them as the TF Object Detection API has it, and
    "detection_class_names" `(B, D)` strings. Rows beyond num_detections hold 0, −1 as class, and "".

    Args:
        detector: a trained detector.
        network: canvases `(B, h, w, 3)` → logits and deltas per level, as `detector.levels` returns them.
        max_pixels: larger encoded images are refused.
    """

    def __init__(
        self,
        detector: Detector,
        network: Callable[[tf.Tensor], dict[str, list[tf.Tensor]]],
        max_pixels: int = decoding.MAX_PIXELS,
    ):
        super().__init__(name="served_detector")
        self._detector, self._network, self._max_pixels = detector, network, max_pixels
        # One entry more, in front, for the label −1 of empty rows.
        self._ids = tf.constant([-1.0, *detector.label_map.ids], tf.float32)
        self._names = tf.constant(["", *detector.label_map.names])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="input_tensor")])
    def serving_default(self, input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections on encoded images `(B,)` of any sizes; InvalidArgument names one that can't be read."""
        sizes = decoding.check_sizes(decoding.image_sizes(input_tensor), self._max_pixels)
        canvases = tf.map_fn(self._canvas_size, sizes)
        codes = tf.cast(canvases[:, 0], tf.int64) * 2**32 + tf.cast(canvases[:, 1], tf.int64)
        groups, group_of = tf.unique(codes)
        detections = empty_detections(tf.shape(input_tensor)[0], self._detector.config)
        # Equal canvases go through the network together, as `batches_by_canvas` has it outside of graphs.
        for group in tf.range(tf.size(groups)):
            rows = tf.where(group_of == group)
            batch = tf.map_fn(
                lambda row: self._decoded(input_tensor[row], sizes[row], row),
                tf.cast(rows[:, 0], tf.int32),
                fn_output_signature=PREPARED_SPEC,
            )
            answer = self._detect(batch)
            detections = {
                name: tf.tensor_scatter_nd_update(detections[name], rows, answer[name]) for name in detections
            }
        return self._outputs(detections, tf.cast(sizes, tf.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")])
    def image_tensor(self, input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections on decoded RGB images `(B, H, W, 3)` of one size."""
        shape = tf.shape(input_tensor)
        detections = empty_detections(shape[0], self._detector.config)
        if shape[0] > 0:
            batch = tf.map_fn(self._detector.prepare, input_tensor, fn_output_signature=PREPARED_SPEC)
            detections = self._detect(batch)
        return self._outputs(detections, tf.cast(tf.broadcast_to(shape[1:3], [shape[0], 2]), tf.float32))

    def fixed(
        self, shape: Sequence[int], network: Callable, jit_compile: bool
    ) -> tf.types.experimental.GenericFunction:
        """The signature of decoded RGB images `(B, H, W, 3)` uint8 that go through the network as they are.

        Args:
            shape: B, H and W.
            network: as `self` has it; its graph becomes part of the signature.
            jit_compile: compile network and post-processing with XLA.
        """
        batch, height, width = shape
        sizes = tf.constant([[height, width]] * batch, tf.float32)

        def detect(images):
            canvases = tf.cast(images, tf.float32)
            return self._detector.select(network(canvases), canvases, tf.ones_like(sizes), sizes, jit_compile)

        compiled = tf.function(detect, jit_compile=True) if jit_compile else detect

        @tf.function(input_signature=[tf.TensorSpec([*shape, 3], tf.uint8, name="input_tensor")])
        def fixed(input_tensor):
            return self._outputs(compiled(input_tensor), sizes)

        return fixed

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="tf_example")])
    def tf_example(self, tf_example: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections on serialised tf.Examples `(B,)`, whose key "image/encoded" holds the encoded image."""
        feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        return self.serving_default(tf.io.parse_example(tf_example, feature)["image/encoded"])

    @tf.autograph.experimental.do_not_convert
    def _detect(self, batch: Prepared) -> dict[str, tf.Tensor]:
        return self._detector.select(self._network(batch.canvas), *batch)

    def _canvas_size(self, size: tf.Tensor) -> tf.Tensor:
        sides = self._detector.image_size, self._detector.max_size, self._detector.resize
        return round_up(tf.stack(transforms.resized_shape(size[0], size[1], *sides)), CANVAS_MULTIPLE)

    @tf.autograph.experimental.do_not_convert
    def _decoded(self, encoded: tf.Tensor, size: tf.Tensor, index: tf.Tensor) -> Prepared:
        return self._detector.prepare(decoding.check_decoded(decoding.decode(encoded), size, index))

    def _outputs(self, detections: dict[str, tf.Tensor], sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        height, width = sizes[:, 0, None], sizes[:, 1, None]
        x1, y1, x2, y2 = tf.unstack(detections["boxes"], axis=-1)
        return {
            "detection_boxes": tf.stack([y1 / height, x1 / width, y2 / height, x2 / width], axis=-1),
            "detection_scores": detections["scores"],
            "detection_classes": tf.gather(self._ids, detections["labels"] + 1),
            "detection_class_names": tf.gather(self._names, detections["labels"] + 1),
            "num_detections": tf.cast(detections["num_detections"], tf.float32),
        }
