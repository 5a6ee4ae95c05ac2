"""The peer of the input benchmark: a torch DataLoader that does with Pillow what `data.load` does.

Alone in a module without TensorFlow, so that the loader's worker processes start without it.
"""

import io

import numpy as np
import torch
from PIL import Image

IMAGE_SIZE, MAX_SIZE, MULTIPLE = 600, 1000, 128


class Photos(torch.utils.data.Dataset):
    """Encoded photos with boxes; items are a padded (3, H, W) float32 image and its boxes, flipped half the time."""

    def __init__(self, encoded: list[bytes], boxes: list[np.ndarray], pixel_mean: tuple[float, float, float]):
        self.encoded, self.boxes, self.mean = encoded, boxes, np.array(pixel_mean, np.float32)

    def __len__(self) -> int:
        """How many photos there are."""
        return len(self.encoded)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes, flips, resizes by the paper's rule and pads one photo."""
        image = Image.open(io.BytesIO(self.encoded[number])).convert("RGB")
        boxes = self.boxes[number].astype(np.float32)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = boxes.copy()
            boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
        scale = min(IMAGE_SIZE / min(image.size), MAX_SIZE / max(image.size))
        width, height = round(image.width * scale), round(image.height * scale)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        sides = [-(-side // MULTIPLE) * MULTIPLE for side in (IMAGE_SIZE, MAX_SIZE)]
        canvas = np.empty((*(sides if width >= height else sides[::-1]), 3), np.float32)
        canvas[:] = self.mean
        canvas[:height, :width] = pixels
        return torch.from_numpy(canvas).permute(2, 0, 1), torch.from_numpy(boxes * scale)


def batches(photos: Photos, batch_size: int, workers: int, wide: list[int], tall: list[int]):
    """An endless iterator of batches of one orientation each, made by `workers` processes."""

    def groups():
        generator = np.random.default_rng(0)
        while True:
            for pool in (wide, tall):
                order = generator.permutation(pool).tolist()
                yield from (order[at : at + batch_size] for at in range(0, len(order) - batch_size + 1, batch_size))

    return torch.utils.data.DataLoader(
        photos,
        batch_sampler=_Endless(groups),
        num_workers=workers,
        collate_fn=_Collate(),
        multiprocessing_context="forkserver" if workers else None,
    )


class _Endless:
    def __init__(self, groups):
        self.groups = groups

    def __iter__(self):
        return self.groups()


class _Collate:
    def __call__(self, items):
        return torch.stack([image for image, _ in items]), [boxes for _, boxes in items]
