"""Augmentation: what training does to the pictures of a sample and their objects, as a function of (seed, sample).

Boxes keep, through all steps, the share of their object that is still seen; one rule at the end says which stay.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tf.config.config import DataConfig, ModelConfig
from retinanet_tf.data import transforms
from retinanet_tf.detection import boxes as geometry

HOLDING_AN_OBJECT = 0.5
"""Share of square crops that are placed so that they show an object; the others lie anywhere."""
MINIMUM_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""IoU of a patch with some object, one of which is asked for (Liu et al. 2016, §2.2)."""
_TRIES = 50  # patches, as in SSD's code
_SCALES, _ASPECTS = (0.3, 1.0), (0.5, 2.0)  # of a patch's sides to the picture's, as in SSD's code
_CENTRES = (0.25, 0.75)  # of a mosaic, in shares of the frame's sides
_BETA = 1.5  # Zhang et al. 2019, §3.1
_FLIP, _JITTER, _COLOUR, _CROP, _OVERLAP, _CHANCES, _MOSAIC, _MIXUP, _CUTOUT = range(9)


class Scene(NamedTuple):
    """A picture and the N objects on it."""

    image: tf.Tensor  # `(H, W, 3)` uint8 or float32 RGB, 0–255
    boxes: tf.Tensor  # `(N, 4)` float32 xyxy pixels
    labels: tf.Tensor  # `(N,)` int32
    share: tf.Tensor  # `(N,)` float32, how much of each object's area can be seen

    @classmethod
    def whole(cls, image: tf.Tensor, boxes: tf.Tensor, labels: tf.Tensor) -> "Scene":
        """A picture of whose objects all can be seen."""
        return cls(image, boxes, labels, tf.ones_like(boxes[:, 0]))

    def window(self, offset: tf.Tensor, size: tf.Tensor) -> "Scene":
        """The part of `size` (height, width) from `offset` (y, x), which lies inside of the picture."""
        y, x = tf.unstack(offset)
        height, width = tf.unstack(size)
        moved = self.boxes - tf.cast(tf.stack([x, y, x, y]), tf.float32)
        boxes, share = transforms.cut(moved, height, width)
        return Scene(self.image[y : y + height, x : x + width], boxes, self.labels, self.share * share)

    def seen(self, least: float) -> "Scene":
        """Without the objects that `transforms.visible` leaves out."""
        keep = transforms.visible(self.boxes, self.share, least)
        return self._replace(**{name: tf.boolean_mask(getattr(self, name), keep) for name in self._fields[1:]})


class Augmentation:
    """From the pictures of a training sample to its example.

    Args:
        data: which augmentation, how strong; `mix_until` isn't looked at.
        model: sizes, rule of resizing and colour of the padding.
        seed: of all random numbers.
        mixed: the first sample without mosaic and mixup; None if there is none.
        square: whether one square canvas serves all pictures.
        alone: (wide, tall), whether there is just one picture of that orientation, so none to blend it with.
    """

    def __init__(
        self,
        data: DataConfig,
        model: ModelConfig,
        seed: int = 0,
        mixed: int | None = None,
        square: bool = False,
        alone: tuple[bool, bool] = (False, False),
    ):
        self._data, self._model, self._seed = data, model, seed
        self._mixed, self._square, self._alone = mixed, square, alone

    @property
    def partners(self) -> int:
        """Other pictures that a sample may need: three for the mosaic, one more for mixup."""
        return 3 * (self._data.mosaic > 0) + (self._data.mixup > 0)

    def __call__(self, picture: Callable[[int], Scene], sample: tf.Tensor, tall: tf.Tensor) -> Scene:
        """The example of a sample: at most as large as the frame of its canvas, float32.

        Args:
            picture: from a number 0 ≤ slot ≤ partners to a picture as it is stored, 0 the sample's own. The partners
                are asked for only where they are needed. All are of the canvas' orientation.
            sample: int64 scalar, the sample's number in the whole training.
            tall: bool scalar, which canvas.
        """
        data, mean = self._data, self._model.pixel_mean
        slots = tf.unstack(tf.range(1 + self.partners, dtype=tf.int64))

        def view(slot: int) -> Scene:
            return self._view(picture(slot), sample, slots[slot], tall)

        own = view(0)
        if self.partners:
            chances = tf.random.stateless_uniform((2,), self._key(sample, _CHANCES))
            mixing = tf.constant(True) if self._mixed is None else sample < self._mixed
        if data.mosaic:
            scene = tf.cond(
                mixing & (chances[0] < data.mosaic),
                lambda: self._mosaic([own, view(1), view(2), view(3)], sample, slots, tall),
                lambda: self._placed(own, sample, slots[0], tall),
            )
        else:
            scene = self._placed(own, sample, slots[0], tall)
        if data.mixup:
            plain = scene
            lonely = tf.where(tall, self._alone[1], self._alone[0]) & (data.crop == 0)  # two crops differ
            scene = tf.cond(
                mixing & (chances[1] < data.mixup) & ~lonely,
                lambda: mixup(
                    plain, self._placed(view(self.partners), sample, slots[-1], tall), self._key(sample, _MIXUP), mean
                ),
                lambda: plain,
            )
        if data.colour_jitter:
            image = transforms.random_colour(scene.image, self._key(sample, _COLOUR), data.colour_jitter)
            scene = scene._replace(image=image)
        if data.cutout:
            scene = cutout(scene, self._key(sample, _CUTOUT), data.cutout, mean)
        cuts = self._jitters or any((data.crop, data.overlap_crop, data.mosaic, data.cutout))
        return scene.seen(data.min_visible) if cuts else scene

    @property
    def _jitters(self) -> bool:
        return self._data.scale_jitter != (1.0, 1.0) or self._data.translate_jitter > 0

    def _key(self, sample: tf.Tensor, kind: int, slot: tf.Tensor | None = None) -> tf.Tensor:
        """The stateless seed, int64 (2,), of one kind of augmentation of one picture of a sample."""
        key = tf.stack([sample, tf.constant(self._seed * 3, tf.int64)])
        plain = key + [0, kind]
        if kind <= _COLOUR and (slot is None or not self.partners):
            return plain
        if slot is None:
            return tf.random.experimental.stateless_fold_in(key, np.int64(kind))
        folded = tf.random.experimental.stateless_fold_in(key, 16 * slot + kind)
        return tf.where((slot == 0) & (kind <= _COLOUR), plain, folded)

    @tf.function(autograph=False)  # traced once for all slots
    def _view(self, scene: Scene, sample: tf.Tensor, slot: tf.Tensor, tall: tf.Tensor) -> Scene:
        """What is taken of a picture, at its own scale."""
        data = self._data
        if data.crop:
            scene = square_crop(scene, self._key(sample, _CROP, slot), data.crop)
        image, boxes = transforms.random_flip(
            scene.image, scene.boxes, self._key(sample, _FLIP, slot), data.flip, data.vertical_flip
        )
        scene = scene._replace(image=image, boxes=boxes)
        if data.overlap_crop:
            orientation = None if self._square else tall
            scene = overlap_crop(scene, self._key(sample, _OVERLAP, slot), data.overlap_crop, orientation)
        return scene

    @tf.function(autograph=False)
    def _placed(
        self, scene: Scene, sample: tf.Tensor, slot: tf.Tensor, tall: tf.Tensor, frame: tf.Tensor | None = None
    ) -> Scene:
        """The picture at the model's scale, jittered, within `frame` or that of its canvas."""
        model, data = self._model, self._data
        sides = (model.image_size, model.max_size)
        if frame is None and not self._jitters:
            image, scale = transforms.resize(scene.image, *sides, model.resize)
            return scene._replace(image=image, boxes=transforms.scale_boxes(scene.boxes, scale))
        if frame is None and not self._square:
            frame = self._frame(tall)
        image, boxes, share = transforms.random_jitter(
            scene.image,
            scene.boxes,
            self._key(sample, _JITTER, slot),
            *sides,
            data.scale_jitter,
            data.translate_jitter,
            model.pixel_mean,
            model.resize,
            frame,
        )
        return Scene(image, boxes, scene.labels, scene.share * share)

    def _frame(self, tall: tf.Tensor) -> tf.Tensor:
        short, long = self._model.image_size, self._model.max_size
        return tf.where(tall, tf.constant([long, short]), tf.constant([short, long]))

    def _mosaic(self, views: Sequence[Scene], sample: tf.Tensor, slots: Sequence[tf.Tensor], tall: tf.Tensor) -> Scene:
        def window(number: int, size: tf.Tensor) -> Scene:
            return self._placed(views[number], sample, slots[number], tall, size)

        return mosaic(window, self._key(sample, _MOSAIC), self._frame(tall), self._model.pixel_mean)


def square_crop(scene: Scene, seed: tf.Tensor, side: int) -> Scene:
    """A random square of `side` pixels of the picture at its own scale; where the picture is smaller, so is the crop.

    It is then resized as a picture of its own, which is what `inference.tiles.TiledDetector` does to its tiles, so that
    objects have one size in training and detection. Half of the squares (`HOLDING_AN_OBJECT`) show an object chosen at
    random, as much of it as fits; the others lie anywhere.
    """
    size = tf.shape(scene.image)[:2]
    uniform = tf.random.stateless_uniform((4,), seed)
    count = tf.shape(scene.boxes)[0]
    chosen = tf.minimum(tf.cast(uniform[0] * tf.cast(count, tf.float32), tf.int32), count - 1)
    x1, y1, x2, y2 = tf.unstack(tf.pad(scene.boxes, [[1, 0], [0, 0]])[chosen + 1])
    begin, end = tf.stack([y1, x1]), tf.stack([y2, x2])
    room = tf.cast(tf.maximum(size - side, 0), tf.float32)
    aimed = (uniform[1] < HOLDING_AN_OBJECT) & (count > 0)
    low = tf.where(aimed, tf.clip_by_value(tf.minimum(end - side, begin), 0.0, room), 0.0)
    high = tf.where(aimed, tf.clip_by_value(tf.maximum(end - side, begin), 0.0, room), room)
    offset = tf.cast(tf.round(low + (high - low) * uniform[2:]), tf.int32)
    return scene.window(offset, tf.minimum(size, side))


def overlap_crop(scene: Scene, seed: tf.Tensor, probability: float, tall: tf.Tensor | None = None) -> Scene:
    """With `probability` a random patch as SSD takes it (Liu et al. 2016, §2.2), at the picture's own scale.

    One of seven is drawn: the whole picture; a patch whose IoU with some object is at least .1, .3, .5, .7 or .9
    (`MINIMUM_OVERLAPS`); any patch. A patch has .3 to 1 of the picture's sides and .5 to 2 of its aspect ratio. Where
    none of fifty serves, the picture stays whole. Unlike SSD's, boxes stay by the share that is seen, not by their
    centre.

    Args:
        scene: the picture.
        seed: stateless, (2,).
        probability: of the choice among the seven.
        tall: bool scalar; the patch is higher than wide, or isn't, so that it fits the canvas. None: as it comes.
    """
    height, width = tf.unstack(tf.cast(tf.shape(scene.image)[:2], tf.float32))
    which = tf.random.stateless_uniform((2,), seed)
    tries = tf.random.stateless_uniform(
        (_TRIES, 4), tf.random.experimental.stateless_fold_in(seed, tf.constant(1, seed.dtype))
    )
    scale = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * tries[:, 0]
    narrowest, widest = tf.maximum(_ASPECTS[0], scale**2), tf.minimum(_ASPECTS[1], scale**-2)
    aspect = tf.sqrt(narrowest + (widest - narrowest) * tries[:, 1])
    sides = tf.stack([width * scale * aspect, height * scale / aspect], axis=1)
    limits = tf.stack([width, height])
    sides = tf.clip_by_value(tf.round(sides), 1.0, limits)
    corners = tf.round((limits - sides) * tries[:, 2:])
    patches = tf.concat([corners, corners + sides], axis=1)

    choice = tf.cast(which[1] * (len(MINIMUM_OVERLAPS) + 2), tf.int32)  # 0: whole, 1 to 5: IoU, 6: any
    least = tf.constant([0.0, *MINIMUM_OVERLAPS, 0.0])[choice]
    overlaps = geometry.iou(patches[:, None], scene.boxes[None])
    serves = tf.reduce_any(overlaps >= least, axis=1) | (least == 0.0)
    if tall is not None:
        serves &= (sides[:, 1] > sides[:, 0]) == tall
    taken = (which[0] < probability) & (choice > 0) & tf.reduce_any(serves)
    first = patches[tf.argmax(tf.cast(serves, tf.int32))]
    x1, y1, x2, y2 = tf.unstack(tf.cast(tf.where(taken, first, tf.concat([[0.0, 0.0], limits], 0)), tf.int32))
    return scene.window(tf.stack([y1, x1]), tf.stack([y2 - y1, x2 - x1]))


def mosaic(
    window: Callable[[int, tf.Tensor], Scene], seed: tf.Tensor, frame: tf.Tensor, pixel_mean: Sequence[float]
) -> Scene:
    """Four pictures in the quarters around a random point of the frame (Bochkovskiy et al. 2020, §3.3).

    Args:
        window: from a number 0 to 3 and a size (height, width) to what the quarter of this size shows of a picture; a
            smaller one lies at its top left.
        seed: stateless, (2,).
        frame: int32 (height, width). The point lies at .25 to .75 of each.
        pixel_mean: colour where a picture doesn't fill its quarter.
    """
    centre = tf.random.stateless_uniform((2,), seed, *_CENTRES) * tf.cast(frame, tf.float32)
    first = tf.cast(tf.round(centre), tf.int32)
    quarters = []
    for number in range(4):
        below, right = divmod(number, 2)
        origin = first * [below, right]
        size = tf.where([bool(below), bool(right)], frame - first, first)
        part = window(number, size)
        y, x = tf.unstack(tf.cast(origin, tf.float32))
        image = transforms.pad_to(part.image, size[0], size[1], pixel_mean)
        quarters.append(part._replace(image=image, boxes=part.boxes + tf.stack([x, y, x, y])))
    images = [quarter.image for quarter in quarters]
    image = tf.concat([tf.concat(images[:2], 1), tf.concat(images[2:], 1)], 0)
    return Scene(image, *(tf.concat(values, 0) for values in list(zip(*quarters, strict=True))[1:]))


def mixup(scene: Scene, partner: Scene, seed: tf.Tensor, pixel_mean: Sequence[float]) -> Scene:
    """Two pictures blended, λ of the first and 1 − λ of the second, with the boxes of both (Zhang et al. 2019, §3.1).

    λ is from Beta(1.5, 1.5). Neither picture is resized: both lie at the top left of a canvas of `pixel_mean` that
    holds them. Boxes and labels are joined unchanged; unlike there, the losses of objects aren't weighted by λ.
    """
    gamma = tf.random.stateless_gamma((2,), seed, alpha=_BETA)
    first = gamma[0] / tf.reduce_sum(gamma)
    height, width = tf.unstack(tf.maximum(tf.shape(scene.image)[:2], tf.shape(partner.image)[:2]))
    mine, other = (transforms.pad_to(one.image, height, width, pixel_mean) for one in (scene, partner))
    joined = (tf.concat(values, 0) for values in list(zip(scene, partner, strict=True))[1:])
    return Scene(first * mine + (1.0 - first) * other, *joined)


def cutout(scene: Scene, seed: tf.Tensor, side: float, pixel_mean: Sequence[float]) -> Scene:
    """A square of `pixel_mean` over the picture (DeVries and Taylor 2017, §3.2), wherever objects are.

    Its side is `side` of the picture's shorter one; its centre is anywhere, so that a part may lie outside. Boxes keep
    their corners; what the square covers of them is no longer seen.
    """
    size = tf.shape(scene.image)[:2]
    shape = tf.cast(size, tf.float32)
    half = 0.5 * side * tf.reduce_min(shape)
    centre = tf.random.stateless_uniform((2,), seed) * shape
    low, high = (tf.clip_by_value(tf.round(centre + sign * half), 0.0, shape) for sign in (-1.0, 1.0))
    rows, columns = (tf.range(size[axis]) for axis in (0, 1))
    y1, x1, y2, x2 = tf.unstack(tf.cast(tf.concat([low, high], 0), tf.int32))
    hole = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
    image = tf.where(hole[..., None], tf.constant(pixel_mean, tf.float32), tf.cast(scene.image, tf.float32))
    begin, end = tf.maximum(scene.boxes[:, :2], low[::-1]), tf.minimum(scene.boxes[:, 2:], high[::-1])
    covered = tf.math.divide_no_nan(geometry.area(tf.concat([begin, end], 1)), geometry.area(scene.boxes))
    return scene._replace(image=image, share=scene.share * (1.0 - covered))
