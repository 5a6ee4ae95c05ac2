"""torchvision's RetinaNet on a GPU, for `accelerator`, in a process of its own that gives its memory back.

Eager, channels last, under autocast, with TF32; stem and first stage frozen, as ours. Reads a JSON list of jobs and
prints a line of JSON, {"name", "seconds"}, for each, of `sys.argv[1]` rounds; one that runs out of memory is left out.
"""

import json
import sys
import time

import torch
from torchvision.models.detection import retinanet_resnet50_fpn

_OBJECTS = 8


def main() -> None:
    """Times the jobs, if PyTorch has a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    for job in json.load(sys.stdin) if torch.cuda.is_available() else []:
        try:
            print(json.dumps({"name": job["name"], "seconds": _seconds(job, int(sys.argv[1]))}), flush=True)
        except torch.cuda.OutOfMemoryError:
            print(f"{job['name']}: out of memory.", file=sys.stderr)
        torch.cuda.empty_cache()


def _seconds(job: dict, rounds: int) -> list[float]:
    call, times = (_train if job["kind"] == "train" else _infer)(job), []
    for _ in range(rounds + 3):  # three to warm up
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[3:]


def _network(job: dict):
    short, long = sorted((job["height"], job["width"]))
    sizes = {"min_size": short, "max_size": long}
    network = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=80, **sizes)
    for name, parameter in network.backbone.body.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    return network.cuda().to(memory_format=torch.channels_last)


def _autocast(job: dict):
    precision = job["precision"]
    return torch.autocast("cuda", getattr(torch, precision), enabled=precision != "float32")


def _train(job: dict):
    network, batch = _network(job).train(), job["batch"]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=job["precision"] == "float16")
    canvas = torch.tensor([job["width"], job["height"]], device="cuda")
    corner = torch.rand(batch, _OBJECTS, 2, device="cuda") * 0.6
    sides = torch.rand(batch, _OBJECTS, 2, device="cuda") * 0.34 + 0.05
    boxes = torch.cat([corner * canvas, (corner + sides) * canvas], dim=2)
    labels = torch.randint(0, 80, (batch, _OBJECTS), device="cuda")
    targets = [{"boxes": boxes[index], "labels": labels[index]} for index in range(batch)]
    images = list(torch.rand(batch, 3, job["height"], job["width"], device="cuda"))

    def step() -> None:
        with _autocast(job):
            loss = sum(network(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _infer(job: dict):
    network = _network(job).eval()
    torch.nn.init.zeros_(network.head.classification_head.cls_logits.bias)  # all scores above the threshold, as ours
    images = torch.rand(job["batch"], 3, job["height"], job["width"], device="cuda")
    images = images.to(memory_format=torch.channels_last)

    def call() -> None:
        with torch.inference_mode(), _autocast(job):
            if job["kind"] == "network":
                network.head(list(network.backbone(images).values()))
            else:
                network(list(images))

    return call


if __name__ == "__main__":
    main()
