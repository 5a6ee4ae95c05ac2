"""Published RetinaNets in the sources' own names, written from the published architectures.

One pass makes the tensors that a source would store (random, batch statistics included) and computes with them what
the source would: nothing here knows the package's tables, layers or orders.
"""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import tensorflow as tf

BASIC = ("resnet18", "resnet34")
"""Of blocks of two 3×3 convolutions; only torchvision has them."""
STAGES = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
    "resnext101_32x8d": (3, 4, 23, 3),
    "resnext101_64x4d": (3, 4, 23, 3),
    "resnet_small": (1, 2, 1, 1),
}
"""Blocks of the stages 2 to 5; one more that nobody published, for tests that would take long with a whole network."""
GROUPS = {
    "resnet50": (1, 64),
    "resnet101": (1, 64),
    "resnet152": (1, 64),
    "resnext50_32x4d": (32, 4),
    "resnext101_32x8d": (32, 8),
    "resnext101_64x4d": (64, 4),
    "resnet_small": (1, 8),
}
"""(groups, channels of each in stage 2)."""


class Published:
    """`tensors` after `outputs(image)`: the checkpoint. `source`: detectron, detectron2, torchvision, torchvision2."""

    def __init__(self, source, backbone="resnet50", columns=80, channels=256, anchors=9):
        self.source, self.backbone, self.columns = source, backbone, columns
        self.channels, self.anchors = channels, anchors
        self.tensors, self.rng = {}, np.random.default_rng(0)
        self.endings = ("_w", "_b") if source == "detectron" else (".weight", ".bias")
        self.stride_first = not source.startswith("torchvision") and not backbone.startswith("resnext")
        self.p6_from_c5 = source != "torchvision"
        self.group_norm = source == "torchvision2"
        self.epsilon = 0.0 if source == "torchvision" and columns == 91 and backbone == "resnet50" else 1e-5

    def take(self, name, draw):
        if name not in self.tensors:
            self.tensors[name] = np.asarray(draw(), np.float32)
        return self.tensors[name]

    def conv(self, x, name, out, size, stride=1, groups=1, bias=True, gain=1.0, shift=0.0):
        wide = x.shape[-1] // groups
        deviation = gain * (2 / (wide * size * size)) ** 0.5
        kernel = self.take(name + self.endings[0], lambda: self.rng.normal(0, deviation, (out, wide, size, size)))
        kernel = kernel.transpose(2, 3, 1, 0)
        margin = size // 2
        x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        parts = [
            tf.nn.conv2d(
                x[..., g * wide : (g + 1) * wide],
                kernel[..., g * out // groups : (g + 1) * out // groups],
                stride,
                "VALID",
            )
            for g in range(groups)
        ]
        result = np.concatenate(parts, axis=-1)
        return result + self.take(name + self.endings[1], lambda: self.rng.normal(shift, 0.1, out)) if bias else result

    def norm(self, x, name, last=False):
        width, draw = x.shape[-1], self.rng
        scale = (0.2, 0.4) if last else (0.6, 1.0)
        if self.source == "detectron":
            return x * self.take(name + "_s", lambda: draw.uniform(*scale, width)) + self.take(
                name + "_b", lambda: draw.normal(0, 0.1, width)
            )
        gamma = self.take(name + ".weight", lambda: draw.uniform(*scale, width))
        beta = self.take(name + ".bias", lambda: draw.normal(0, 0.1, width))
        mean = self.take(name + ".running_mean", lambda: draw.normal(0, 0.1, width))
        variance = self.take(name + ".running_var", lambda: draw.uniform(0.5, 1.5, width))
        return (x - mean) / np.sqrt(variance + self.epsilon) * gamma + beta

    def unit(self, place, n):
        """Names of convolution and normalisation `n` (0: shortcut) of a block, or of the stem for place None."""
        if self.source == "detectron":
            if place is None:
                return "conv1", "res_conv1_bn"
            name = f"res{place[0]}_{place[1]}_branch" + ("1" if n == 0 else "2" + " abc"[n])
            return name, name + "_bn"
        if self.source == "detectron2":
            where = "stem.conv1" if place is None else f"res{place[0]}.{place[1]}." + (f"conv{n}" if n else "shortcut")
            return f"backbone.bottom_up.{where}", f"backbone.bottom_up.{where}.norm"
        if place is None:
            return "backbone.body.conv1", "backbone.body.bn1"
        block = f"backbone.body.layer{place[0] - 1}.{place[1]}."
        return (block + f"conv{n}", block + f"bn{n}") if n else (block + "downsample.0", block + "downsample.1")

    def stages(self, x):
        def step(x, place, n, out, size, stride=1, groups=1, last=False):
            conv, norm = self.unit(place, n)
            return self.norm(self.conv(x, conv, out, size, stride, groups, bias=False), norm, last)

        x = np.maximum(step(x, None, 0, 64, 7, 2), 0)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        x = tf.nn.max_pool2d(padded, 3, 2, "VALID").numpy()
        result = []
        for stage, count in enumerate(STAGES[self.backbone], start=2):
            for block in range(count):
                stride = 2 if stage > 2 and block == 0 else 1
                place = (stage, block)
                if self.backbone in BASIC:
                    width = 64 * 2 ** (stage - 2)
                    short = step(x, place, 0, width, 1, stride) if width != x.shape[-1] else x
                    y = np.maximum(step(x, place, 1, width, 3, stride), 0)
                    x = np.maximum(step(y, place, 2, width, 3, last=True) + short, 0)
                    continue
                groups, width = GROUPS[self.backbone]
                inner, outer = groups * width * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
                first, second = (stride, 1) if self.stride_first else (1, stride)
                short = step(x, place, 0, outer, 1, stride) if block == 0 else x
                y = np.maximum(step(x, place, 1, inner, 1, first), 0)
                y = np.maximum(step(y, place, 2, inner, 3, second, groups), 0)
                x = np.maximum(step(y, place, 3, outer, 1, last=True) + short, 0)
            result.append(x)
        return result[1:]

    def pyramid_name(self, kind, level):
        last = STAGES[self.backbone][level - 2] - 1 if level < 6 else None
        if self.source == "detectron":
            if kind == "coarse":
                return f"fpn_{level}"
            inner = f"fpn_inner_res{level}_{last}_sum" + ("_lateral" if level < 5 else "")
            return inner if kind == "lateral" else f"fpn_res{level}_{last}_sum"
        if self.source == "detectron2":
            return f"backbone.top_block.p{level}" if kind == "coarse" else f"backbone.fpn_{kind}{level}"
        if kind == "coarse":
            return f"backbone.fpn.extra_blocks.p{level}"
        return f"backbone.fpn.{'inner' if kind == 'lateral' else 'layer'}_blocks.{level - 3}.0"

    def pyramid(self, stages):
        inner, result = None, []
        for level in (5, 4, 3):
            lateral = self.conv(stages[level - 3], self.pyramid_name("lateral", level), self.channels, 1, gain=0.5)
            if inner is not None:
                inner = inner.repeat(2, axis=1).repeat(2, axis=2)[:, : lateral.shape[1], : lateral.shape[2]]
            inner = lateral if inner is None else lateral + inner
            result.insert(0, self.conv(inner, self.pyramid_name("output", level), self.channels, 3, gain=0.5))
        source = stages[2] if self.p6_from_c5 else result[2]
        p6 = self.conv(source, self.pyramid_name("coarse", 6), self.channels, 3, 2)
        return [*result, p6, self.conv(np.maximum(p6, 0), self.pyramid_name("coarse", 7), self.channels, 3, 2)]

    def head(self, x, kind, outputs):
        """Logits `(cells, outputs)` of one level, by `kind` 'cls' or 'bbox'."""
        torch_name = "head.classification_head" if kind == "cls" else "head.regression_head"
        for i in range(4):
            name = {
                "detectron": f"retnet_{kind}_conv_n{i}_fpn3",
                "detectron2": f"head.{kind}_subnet.{2 * i}",
            }.get(self.source, f"{torch_name}.conv.{i}.0")
            x = self.conv(x, name, self.channels, 3, bias=not self.group_norm)
            if self.group_norm:
                grouped = x.reshape(*x.shape[:3], 32, -1)
                mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
                variance = grouped.var(axis=(1, 2, 4), keepdims=True)
                x = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
                norm = f"{torch_name}.conv.{i}.1"
                x = x * self.take(norm + ".weight", lambda: self.rng.uniform(0.5, 1.5, self.channels))
                x = x + self.take(norm + ".bias", lambda: self.rng.normal(0, 0.1, self.channels))
            x = np.maximum(x, 0)
        last = {
            "detectron": f"retnet_{kind}_pred_fpn3",
            "detectron2": "head.cls_score" if kind == "cls" else "head.bbox_pred",
        }.get(self.source, f"{torch_name}.{'cls_logits' if kind == 'cls' else 'bbox_reg'}")
        # Few detections, as trained networks have.
        shift = {"cls": -4.0 if outputs > 1 else -2.0, "bbox": 0.0}[kind]
        return self.conv(x, last, self.anchors * outputs, 3, gain=0.3, shift=shift).reshape(-1, outputs)

    def pixels(self, image):
        """What the source feeds its network for an RGB image 0–255 `(1, H, W, 3)`."""
        if self.source.startswith("torchvision"):
            return ((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
        bgr = [102.9801, 115.9465, 122.7717] if self.source == "detectron" else [103.53, 116.28, 123.675]
        return (image[..., ::-1] - bgr).astype(np.float32)

    def backbone_outputs(self, image):
        """C3, C4 and C5 of an image."""
        # A real network's first layer expects the pixels' scale.
        kernel = self.unit(None, 0)[0] + self.endings[0]
        deviation = (2 / 147) ** 0.5 / (1 if self.source.startswith("torchvision") else 60)
        self.take(kernel, lambda: self.rng.normal(0, deviation, (64, 3, 7, 7)))
        return self.stages(self.pixels(image))

    def outputs(self, image):
        """Class logits `(A, columns)` and box deltas `(A, 4)` of an image, all levels one after the other."""
        levels = self.pyramid(self.backbone_outputs(image))
        logits = [self.head(level, "cls", self.columns) for level in levels]
        deltas = [self.head(level, "bbox", 4) for level in levels]
        return np.concatenate(logits), np.concatenate(deltas)


def write(path, tensors, wrap=None):
    """A pickle as the two programs write them; returns its path."""
    path.write_bytes(pickle.dumps({wrap: tensors} if wrap else tensors, protocol=2))
    return path


def write_safetensors(path, arrays):
    """A file by the format's description: the header's length, the header, the numbers; returns its path."""
    types = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}
    header, data = {}, b""
    for name, array in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": types[array.dtype.name], "shape": array.shape, "data_offsets": place}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def picture():
    """A real photo where there is one, else noise: `(1, 96, 64, 3)` in 0–255."""
    folder = os.environ.get("RETINANET_TF_TEST_DATA")
    photos = sorted(Path(folder).glob("coco_ccby/**/*.jpg")) if folder else []
    if not photos:
        return np.random.default_rng(0).uniform(0, 255, (1, 96, 64, 3)).astype(np.float32)
    return tf.image.resize(tf.io.decode_jpeg(photos[0].read_bytes(), 3), (96, 64), antialias=True)[None].numpy()


IMAGE = picture()


def close(ours, expected):
    """1e-3 relative to the largest value."""
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
