"""The zoo: published weights by name, where their files are, and what is known of them.

A new model is a new row here. Nothing in this module imports TensorFlow or reads a network.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from retinanet_tf.errors import InputError
from retinanet_tf.files import read_json

_LABELS = Path(__file__).with_name("labels")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A published file of weights. Facts marked "(unconfirmed)" weren't found in the publisher's own sources."""

    name: str
    source: str
    """Of `import_weights`."""
    url: str
    backbone: str
    network: str
    data: str
    """What it was trained on."""
    licence: str
    origin: str
    """The publisher's page, or file in its repository, that the facts are from."""
    digest: str = ""
    """ "ALGORITHM:HEX", whose hex digits may be the first of a longer digest; '' where none is written here."""
    has_md5sum: bool = False
    """Whether a file at `url` + ".md5sum" holds the MD5, as the downloads of Detectron's own code expect."""
    megabytes: float | None = None
    member: str = ""
    """The file inside a zip file at `url`."""
    labels: str | tuple[str, ...] = ""
    """A file of labels/ without its ending, or the categories' names (ids from 1); '' for a backbone."""
    metric: str = "AP"
    value: float | None = None
    """The published value of `metric`, in per cent."""
    conditions: str = ""
    """Of the published value."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the configuration that neither the source nor the tensors determine."""
    expected: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that the tensors must determine so: the check of a file that no digest is published for."""
    tensors: str = ""
    """The network whose tensors, random in the publisher's layout, were all matched by name and shape."""
    outputs: str = ""
    """Which outputs equal those of the publisher's network, rebuilt independently, with those tensors."""
    notes: tuple[str, ...] = ()

    @property
    def detects(self) -> bool:
        """Whether it is a detector, not a backbone alone."""
        return bool(self.labels)

    @property
    def digest_url(self) -> tuple[str, str]:
        """The algorithm of a digest that the server knows and where it says it; ('', '') if nothing is known of one.

        Hugging Face's API lists a folder's large files with their SHA-256.
        """
        if self.has_md5sum:
            return "md5", f"{self.url}.md5sum"
        hub, _, path = self.url.partition("/resolve/")
        if not path:
            return "", ""
        server = urlsplit(hub)
        return "sha256", f"{server.scheme}://{server.netloc}/api/models{server.path}/tree/{path.partition('/')[0]}"

    @property
    def filename(self) -> str:
        """The file's name at its origin."""
        return PurePosixPath(urlsplit(self.url).path).name

    def categories(self) -> list[dict]:
        """The categories as labels.json has them: {"id", "name"}; [] for a backbone."""
        if isinstance(self.labels, str) and self.labels:
            return read_json(_LABELS / f"{self.labels}.json", "the label map")
        return [{"id": number, "name": name} for number, name in enumerate(self.labels, start=1)]

    def check_command(self) -> str:
        """The command that measures the published value; '' where none is published, or a backbone's."""
        if not self.detects or self.value is None:
            return ""
        files = {
            "coco": "--annotations=instances_val2017.json --images=val2017",
            "openimages_mlperf": "--annotations=openimages-mlperf.json --images=validation/data",
        }[str(self.labels)]
        return f"retinanet evaluate --model={self.name} {files}"


INPUTS = {
    "torchvision": "RGB scaled to 0–1, less ImageNet's mean, divided by its standard deviation",
    "detectron2": "BGR in 0–255 less 103.53, 116.28, 123.675",
    "detectron": "BGR in 0–255 less 102.9801, 115.9465, 122.7717",
    "keras": "BGR in 0–255 less 103.939, 116.779, 123.68",
}
"""What each source's networks take; the settings that `import_weights` keeps say the same."""
NEVER_RUN = "never run here with the original file"
"""Of every row: the files couldn't be downloaded where this was written."""
_FULL = "full size"
_BY_HAND = "full size, once by hand"
_DETECTIONS = "class logits, box deltas and detections, full size"
_SMALL_DETECTIONS = "class logits and box deltas, full size once by hand; detections with fewer blocks and channels"
_STAGES = "C3 to C5, full size, once by hand"
_STAGES_TESTED = "C3 to C5, full size"
_TESTED = ("resnet18", "resnet34")
"""Torchvision's classifiers that the tests compare."""
_VAL = "COCO val2017, shorter side 800, longer at most 1333"

_COCO = partial(Entry, data="COCO train2017", labels="coco", conditions=_VAL)
_TORCHVISION: dict[str, Any] = {
    "source": "torchvision",
    "licence": "BSD-3-Clause (the code's; none stated for the weights)",
}
_TORCHVISION_DETECTOR = partial(
    _COCO,
    **_TORCHVISION,
    backbone="resnet50",
    origin="https://github.com/pytorch/vision/blob/main/torchvision/models/detection/retinanet.py",
)
_DETECTRON = partial(_COCO, licence="CC BY-SA 3.0", expected={"p6_from": "c5", "subnet_norm": "none"})
_DEEPFOREST = partial(
    Entry,
    source="torchvision",
    backbone="resnet50",
    network="ResNet-50, P6 from P5",
    licence="MIT (unconfirmed)",
    origin="https://github.com/weecology/DeepForest/blob/main/docs/user_guide/02_prebuilt.md",
    # Of its src/deepforest/conf/config.yaml.
    settings={"score_threshold": 0.1, "nms_iou": 0.05, "max_detections": 300},
    expected={"p6_from": "p5", "subnet_norm": "none"},
    tensors=_BY_HAND,
    outputs=_SMALL_DETECTIONS,
)
_LARGE = "large pictures are meant to be cut into tiles of 400 pixels (patch_size in its conf/config.yaml)"
_AS_TREE = "the name of the file is that of deepforest/tree (unconfirmed)"
_BACKBONE = partial(Entry, data="ImageNet-1k", metric="top-1", conditions="ImageNet validation, the whole classifier")
_TORCH_HUB = "https://download.pytorch.org/models/"


def _detectron2(name: str, file: str, backbone: str, ap: float) -> Entry:
    return _DETECTRON(
        f"detectron2/{name}",
        source="detectron2",
        url=f"https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/{name}/{file}",
        backbone=backbone,
        network=f"{_written(backbone)}, P6 from C5",
        value=ap,
        origin="https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md",
        tensors=_FULL if backbone == "resnet101" else _BY_HAND,
        outputs="class logits and box deltas, full size; detections with fewer blocks and channels"
        if backbone == "resnet101"
        else _SMALL_DETECTIONS,
    )


def _detectron(name: str, number: int, job: str, backbone: str, ap: float) -> Entry:
    return _DETECTRON(
        f"detectron/retinanet_{name}",
        source="detectron",
        url=f"https://dl.fbaipublicfiles.com/detectron/{number}/12_2017_baselines/retinanet_{name}.yaml.{job}"
        "/output/train/coco_2014_train%3Acoco_2014_valminusminival/retinanet/model_final.pkl",
        backbone=backbone,
        network=f"{_written(backbone)}, P6 from C5",
        value=ap,
        origin="https://github.com/facebookresearch/Detectron/blob/main/MODEL_ZOO.md",
        tensors=_BY_HAND if backbone == "resnet101" else _FULL,
        outputs={
            "resnet50": _DETECTIONS,
            "resnet101": "class logits and box deltas, full size, once by hand; detections with ResNet-50",
        }.get(backbone, "class logits and box deltas, full size; detections with ResNet-50"),
        has_md5sum=True,
    )


def _classifier(file: str, top1: float, megabytes: float, version: str = "") -> Entry:
    backbone, _, digest = file.removesuffix(".pth").partition("-")
    return _BACKBONE(
        f"torchvision/{backbone}{version}",
        url=f"{_TORCH_HUB}{file}",
        digest=f"sha256:{digest}",
        backbone=backbone,
        network=_written(backbone),
        megabytes=megabytes,
        value=top1,
        origin="https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py",
        tensors=_FULL if backbone in _TESTED else _BY_HAND,
        outputs=_STAGES_TESTED if backbone in _TESTED else _STAGES,
        **_TORCHVISION,
    )


def _msra(file: str, backbone: str, notes: tuple[str, ...] = ()) -> Entry:
    return _BACKBONE(
        f"detectron/{PurePosixPath(file).stem}",
        source="detectron",
        url=f"https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/{file}",
        backbone=backbone,
        network=_written(backbone),
        conditions="",
        licence="CC BY-SA 3.0",
        origin="https://github.com/facebookresearch/Detectron/blob/main/MODEL_ZOO.md",
        tensors=_BY_HAND if backbone == "resnet101" else _FULL,
        outputs="C3 to C5 as part of the detectors, full size" + ", once by hand" * (backbone == "resnet101"),
        has_md5sum=True,
        notes=notes,
    )


def _keras(backbone: str, digest: str) -> Entry:
    return _BACKBONE(
        f"keras/{backbone}",
        source="keras",
        url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        f"{backbone}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        digest=f"md5:{digest}",
        backbone=backbone,
        network=_written(backbone),
        conditions="",
        licence="Apache-2.0 (the code's; none stated for the weights)",
        origin="https://github.com/keras-team/keras/blob/master/keras/src/applications/resnet.py",
        tensors=_FULL if backbone == "resnet50" else _BY_HAND,
        outputs=_STAGES_TESTED if backbone == "resnet50" else _STAGES,
    )


def _written(backbone: str) -> str:
    """`resnext50_32x4d` as ResNeXt-50-32x4d."""
    return backbone.replace("resnet", "ResNet-").replace("resnext", "ResNeXt-").replace("_", "-")


_ROWS = (
    _TORCHVISION_DETECTOR(
        "torchvision/retinanet_resnet50_fpn_v2",
        url=f"{_TORCH_HUB}retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
        digest="sha256:5905b1c5",
        megabytes=146.0,
        network="ResNet-50, P6 from C5, GroupNorm in the subnets",
        value=41.5,
        expected={"p6_from": "c5", "subnet_norm": "group"},
        tensors=_FULL,
        outputs="class logits and box deltas, full size; detections with the layout of retinanet_resnet50_fpn",
    ),
    _TORCHVISION_DETECTOR(
        "torchvision/retinanet_resnet50_fpn",
        url=f"{_TORCH_HUB}retinanet_resnet50_fpn_coco-eeacb38b.pth",
        digest="sha256:eeacb38b",
        megabytes=130.3,
        network="ResNet-50, P6 from P5",
        value=36.4,
        expected={"p6_from": "p5", "subnet_norm": "none"},
        tensors=_FULL,
        outputs=_DETECTIONS,
    ),
    _detectron2("retinanet_R_50_FPN_1x", "190397773/model_final_bfca0b.pkl", "resnet50", 37.4),
    _detectron2("retinanet_R_50_FPN_3x", "190397829/model_final_5bd44e.pkl", "resnet50", 38.7),
    _detectron2("retinanet_R_101_FPN_3x", "190397697/model_final_971ab9.pkl", "resnet101", 40.4),
    _detectron("R-50-FPN_1x", 36768636, "08_29_48.t4zc9clc", "resnet50", 35.7),
    _detectron("R-50-FPN_2x", 36768677, "08_30_38.sgZIQZQ5", "resnet50", 35.7),
    _detectron("R-101-FPN_1x", 36768744, "08_31_38.5poQe1ZB", "resnet101", 37.7),
    _detectron("R-101-FPN_2x", 36768840, "08_33_29.grtM0RTf", "resnet101", 37.8),
    _detectron("X-101-64x4d-FPN_1x", 36768875, "08_34_37.FSXgMpzP", "resnext101_64x4d", 39.8),
    _detectron("X-101-64x4d-FPN_2x", 36768907, "08_35_40.pF3nzPpu", "resnext101_64x4d", 39.2),
    _detectron("X-101-32x8d-FPN_1x", 36769563, "08_42_05.06JTK6vJ", "resnext101_32x8d", 39.5),
    _detectron("X-101-32x8d-FPN_2x", 36769641, "08_42_55.sUPnwXI5", "resnext101_32x8d", 38.6),
    Entry(
        "mlperf/retinanet_resnext50_32x4d",
        source="torchvision",
        url="https://zenodo.org/record/6605272/files/retinanet_model_10.zip",
        member="retinanet_model_10.pth",
        backbone="resnext50_32x4d",
        network="ResNeXt-50-32x4d, P6 from P5",
        data="MLPerf's part of Open Images v6",
        labels="openimages_mlperf",
        licence="none stated where it was read",
        origin="https://github.com/mlcommons/inference/tree/master/vision/classification_and_detection",
        value=37.55,
        conditions="MLPerf's validation images of Open Images, resized to 800x800 without keeping proportions",
        expected={"p6_from": "p5", "subnet_norm": "none"},
        settings={"resize": "stretch", "image_size": 800, "max_size": 800},
        tensors=_FULL,
        outputs=_DETECTIONS,
    ),
    _DEEPFOREST(
        "deepforest/tree",
        url="https://huggingface.co/weecology/deepforest-tree/resolve/main/model.safetensors",
        megabytes=129,
        data="tree crowns in airborne pictures",
        labels=("Tree",),
        notes=(_LARGE,),
    ),
    _DEEPFOREST(
        "deepforest/bird",
        url="https://huggingface.co/weecology/deepforest-bird/resolve/main/model.safetensors",
        data="birds in airborne pictures",
        labels=("Bird",),
        notes=(_LARGE, _AS_TREE),
    ),
    _DEEPFOREST(
        "deepforest/livestock",
        url="https://huggingface.co/weecology/deepforest-livestock/resolve/main/model.safetensors",
        data="livestock in drone pictures",
        labels=("Livestock",),
        notes=(_LARGE, _AS_TREE),
    ),
    _msra("MSRA/R-50.pkl", "resnet50", ("the paper's start: a copy of MSRA's ResNet-50",)),
    _msra("MSRA/R-101.pkl", "resnet101", ("the paper's start: a copy of MSRA's ResNet-101",)),
    _msra("FBResNeXt/X-101-64x4d.pkl", "resnext101_64x4d"),
    _msra("20171220/X-101-32x8d.pkl", "resnext101_32x8d"),
    _classifier("resnet18-f37072fd.pth", 69.76, 44.7),
    _classifier("resnet34-b627a593.pth", 73.31, 83.3),
    _classifier("resnet50-0676ba61.pth", 76.13, 97.8),
    _classifier("resnet50-11ad3fa6.pth", 80.86, 97.8, "_v2"),
    _classifier("resnet101-63fe2227.pth", 77.37, 170.5),
    _classifier("resnet101-cd907fc2.pth", 81.89, 170.5, "_v2"),
    _classifier("resnet152-394f9c45.pth", 78.31, 230.4),
    _classifier("resnet152-f82ba261.pth", 82.28, 230.5, "_v2"),
    _classifier("resnext50_32x4d-7cdf4587.pth", 77.62, 95.8),
    _classifier("resnext50_32x4d-1a0047aa.pth", 81.20, 95.8, "_v2"),
    _classifier("resnext101_32x8d-8ba56ff5.pth", 79.31, 339.6),
    _classifier("resnext101_32x8d-110c445d.pth", 82.83, 339.7, "_v2"),
    _classifier("resnext101_64x4d-173b62eb.pth", 83.25, 319.3),
    _BACKBONE(
        "timm/resnet50.a1_in1k",
        source="torchvision",
        url="https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights/"
        "resnet50_a1_0-14fe96d1.pth",
        digest="sha256:14fe96d1",
        backbone="resnet50",
        network=_written("resnet50"),
        value=81.21,
        conditions="ImageNet validation at 288 pixels, the whole classifier",
        licence="Apache-2.0 (the code's; none stated for the weights)",
        origin="https://github.com/huggingface/pytorch-image-models (timm/models/resnet.py, results/)",
        tensors=_BY_HAND,
        outputs=_STAGES,
        notes=("its tensors have torchvision's names (unconfirmed)",),
    ),
    _keras("resnet50", "4d473c1dd8becc155b73f8504c6f6626"),
    _keras("resnet101", "88cf7a10940856eca736dc7b7e228a21"),
    _keras("resnet152", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
)
ZOO: dict[str, Entry] = {entry.name: entry for entry in _ROWS}
"""All published models by name."""


def find(name: str) -> Entry:
    """The row of a name.

    Raises:
        InputError: no row has that name; a similar one is suggested.
    """
    if name in ZOO:
        return ZOO[name]
    close = [other for other in ZOO if name and other.startswith(name)] or difflib.get_close_matches(name, ZOO)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise InputError(f"there is no published model {name!r}.{hint} `retinanet models` lists them.")
