"""The detector as a server sees it: a graph from encoded images to the TF Object Detection API's outputs.

Everything is in the graph, weights included: what is saved runs with tensorflow alone, without custom operations.
"""

import tensorflow as tf

from retinanet_tf.data import transforms
from retinanet_tf.detection.postprocess import select_detections
from retinanet_tf.export import image_decoding as decoding
from retinanet_tf.export.freeze import freeze, with_precision
from retinanet_tf.inference.detector import CANVAS_MULTIPLE, Detector

SIGNATURES = ("serving_default", "image_tensor", "tf_example")


class ServedDetector(tf.Module):
    """A detector with one method a signature.

    Every method returns {"detection_boxes": `(B, D, 4)` ymin, xmin, ymax, xmax in 0–1 of the image,
    "detection_scores": `(B, D)` descending, "detection_classes": `(B, D)` the dataset's category ids,
    "num_detections": `(B,)`}, float32 all of them as the TF Object Detection API has it, and
    "detection_class_names" `(B, D)` strings. Places beyond num_detections hold 0, −1 as class, and "".

    Args:
      detector: a trained detector.
      max_pixels: larger encoded images are refused.
      precision: of the network: 'float32', 'float16' or 'bfloat16'.
    """

    def __init__(self, detector: Detector, max_pixels: int = decoding.MAX_PIXELS, precision: str = "float32"):
        super().__init__(name="served_detector")
        self._network = freeze(with_precision(detector, precision))
        self._anchors = detector.model.anchors
        self._config = detector.config
        self._depth = detector.config.max_detections
        self._prepare = detector.prepare
        self._side_limits = (detector.image_size, detector.max_size)
        self._max_pixels = max_pixels
        labels = detector.label_map
        # One place more, in front, for the label −1 of empty places.
        self._ids = tf.constant([-1.0, *labels.ids], tf.float32)
        self._names = tf.constant(["", *labels.names])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="input_tensor")])
    def serving_default(self, input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections on encoded images `(B,)` of any sizes; InvalidArgument names one that can't be read."""
        sizes = decoding.check_sizes(decoding.image_sizes(input_tensor), self._max_pixels)
        canvases = tf.map_fn(self._canvas_size, sizes)
        codes = tf.cast(canvases[:, 0], tf.int64) * 2**32 + tf.cast(canvases[:, 1], tf.int64)
        groups, group_of = tf.unique(codes)
        found = self._nothing(tf.shape(input_tensor)[0])
        # Equal canvases go through the network together, each group as the detector itself would compute it.
        for group in tf.range(tf.size(groups)):
            members = tf.where(group_of == group)
            answer = self._detect(*self._decoded(input_tensor, sizes, tf.cast(members[:, 0], tf.int32)))
            found = {name: tf.tensor_scatter_nd_update(found[name], members, answer[name]) for name in found}
        return self._outputs(found, tf.cast(sizes, tf.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")])
    def image_tensor(self, input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections on decoded RGB images `(B, H, W, 3)` of one size."""
        shape = tf.shape(input_tensor)
        found = self._nothing(shape[0])
        if shape[0] > 0:
            found = self._detect(*self._prepared(self._prepare, input_tensor))
        return self._outputs(found, tf.cast(tf.broadcast_to(shape[1:3], [shape[0], 2]), tf.float32))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="tf_example")])
    def tf_example(self, tf_example: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections on serialised tf.Examples `(B,)`, whose key "image/encoded" holds the encoded image."""
        feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        return self.serving_default(tf.io.parse_example(tf_example, feature)["image/encoded"])

    def _detect(self, canvases: tf.Tensor, scales: tf.Tensor, sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._network(canvases)
        return select_detections(
            outputs["class_logits"],
            outputs["box_deltas"],
            self._anchors.by_level(canvases),
            scales,
            sizes,
            self._config,
            self._anchors.config,
        )

    def _nothing(self, count: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "boxes": tf.zeros([count, self._depth, 4]),
            "scores": tf.zeros([count, self._depth]),
            "labels": tf.zeros([count, self._depth], tf.int32),
            "num_detections": tf.zeros([count], tf.int32),
        }

    def _canvas_size(self, size: tf.Tensor) -> tf.Tensor:
        resized = tf.stack(transforms.resized_shape(size[0], size[1], *self._side_limits))
        return -(-resized // CANVAS_MULTIPLE) * CANVAS_MULTIPLE

    def _decoded(self, encoded: tf.Tensor, sizes: tf.Tensor, members: tf.Tensor):
        def one(index):
            image = decoding.decode(encoded[index])
            return self._prepare(decoding.check_decoded(image, sizes[index], index))

        return self._prepared(one, members)

    @staticmethod
    def _prepared(function, elements: tf.Tensor):
        """`function` gives (canvas, scale, size) of each element; all canvases are of one size."""
        return tf.map_fn(
            function,
            elements,
            fn_output_signature=(
                tf.TensorSpec([None, None, 3], tf.float32),
                tf.TensorSpec([2], tf.float32),
                tf.TensorSpec([2], tf.float32),
            ),
        )

    def _outputs(self, found: dict[str, tf.Tensor], sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        height, width = sizes[:, 0, None], sizes[:, 1, None]
        x1, y1, x2, y2 = tf.unstack(found["boxes"], axis=-1)
        return {
            "detection_boxes": tf.stack([y1 / height, x1 / width, y2 / height, x2 / width], axis=-1),
            "detection_scores": found["scores"],
            "detection_classes": tf.gather(self._ids, found["labels"] + 1),
            "detection_class_names": tf.gather(self._names, found["labels"] + 1),
            "num_detections": tf.cast(found["num_detections"], tf.float32),
        }
