"""Detection heads: the class and the box subnet, each shared by all pyramid levels (§4)."""

import math

import keras
import tensorflow as tf

from retinanet_tf.models.layers import conv, normalization, regularizer


@keras.saving.register_keras_serializable(package="retinanet_tf")
class Subnet(keras.layers.Layer):
    """`depth` 3×3 convolutions with ReLU and a last 3×3 convolution, the same for every level.

    Args:
        outputs_per_anchor: K for the class subnet, 4 for the box subnet.
        anchors_per_cell: anchors at each cell of a level.
        depth: convolutions before the last one (§4: 4).
        channels: their filters (§4: 256).
        norm: 'none' (§4), 'group', or 'batch', which has statistics and affine per level, because levels see features
            of different scale through the same convolutions.
        prior: π for the class subnet's last bias, −ln((1 − π)/π) (§4.1); None leaves that bias 0.
        init_std: standard deviation of the initial kernels (§4.1: 0.01, for 256 channels).
        weight_decay: coupled L2 on the kernels.
    """

    def __init__(
        self,
        outputs_per_anchor: int,
        anchors_per_cell: int,
        depth: int = 4,
        channels: int = 256,
        norm: str = "none",
        prior: float | None = None,
        init_std: float = 0.01,
        weight_decay: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.outputs_per_anchor, self.anchors_per_cell = outputs_per_anchor, anchors_per_cell
        self.depth, self.channels = depth, channels
        self.norm, self.prior, self.init_std, self.weight_decay = norm, prior, init_std, weight_decay

        def convolution(filters, **options):
            # One initializer per layer: a shared one gives every layer the same numbers.
            initializer = keras.initializers.RandomNormal(stddev=init_std)
            options |= {"kernel_initializer": initializer, "kernel_regularizer": regularizer(weight_decay)}
            return conv(filters, 3, **options)

        self.convs = [convolution(channels, use_bias=norm == "none", name=f"conv{i}") for i in range(depth)]
        bias = keras.initializers.Constant(0.0 if prior is None else -math.log((1.0 - prior) / prior))
        self.predictor = convolution(anchors_per_cell * outputs_per_anchor, bias_initializer=bias, name="predictor")
        self.norms: list = []

    def build(self, input_shape):
        """Builds every convolution once, and the normalisations (one per level for 'batch')."""
        shape = tuple(input_shape[0])
        if self.norm != "none":
            copies = len(input_shape) if self.norm == "batch" else 1
            # One flat list, copy after copy: Keras 2 doesn't save what is in a list of lists.
            self.norms = [
                normalization(self.norm, self.channels, name=f"norm{i}_{copy}")
                for copy in range(copies)
                for i in range(len(self.convs))
            ]
        for index, layer in enumerate(self.convs):
            layer.build(shape)
            shape = (*shape[:-1], layer.filters)
            for norm in self.norms[index :: len(self.convs)]:
                norm.build(shape)
        self.predictor.build(shape)
        super().build(input_shape)

    def call(self, pyramid, training=None):
        """Maps each level `(B, H_l, W_l, C)` to `(B, H_l·W_l·A, outputs_per_anchor)`, in anchor order."""
        results = []
        for level, features in enumerate(pyramid):
            for index, layer in enumerate(self.convs):
                features = layer(features)
                if self.norms:
                    norm = self.norms[(level * len(self.convs) + index) % len(self.norms)]
                    features = norm(features, training=training)
                features = tf.nn.relu(features)
            features = self.predictor(features)
            results.append(tf.reshape(features, [tf.shape(features)[0], -1, self.outputs_per_anchor]))
        return results

    def compute_output_shape(self, input_shape):
        def anchors(height, width):
            return None if None in (height, width) else height * width * self.anchors_per_cell

        return [(shape[0], anchors(*shape[1:3]), self.outputs_per_anchor) for shape in input_shape]

    def get_config(self) -> dict:
        arguments = ("outputs_per_anchor", "anchors_per_cell", "depth", "channels", "norm", "prior", "init_std")
        return {**super().get_config(), **{name: getattr(self, name) for name in (*arguments, "weight_decay")}}
