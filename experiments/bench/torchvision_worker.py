"""torchvision's RetinaNet in a process of its own, since PyTorch and TensorFlow don't always live in one.

Each line on the standard input is answered by one forward pass of the network up to logits and deltas, and a line.
"""

import sys

import torch
from torchvision.models.detection import retinanet_resnet50_fpn


def main() -> None:
    """Serves passes on one image of noise, `sys.argv[1]` pixels per side, until the input ends."""
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None).eval()
    images = torch.rand(1, 3, int(sys.argv[1]), int(sys.argv[1]))
    with torch.inference_mode():
        for _ in sys.stdin:
            model.head(list(model.backbone(images).values()))
            print("done", flush=True)


if __name__ == "__main__":
    main()
