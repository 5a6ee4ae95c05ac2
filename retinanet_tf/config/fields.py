"""The sections of the configuration: every field with its default, its meaning, its source and its allowed values.

Defaults are the paper's. Sections (§) are those of "Focal Loss for Dense Object Detection"; "authors' code" is
Detectron. Field names are unique over all sections, so that a flag needs no prefix.
"""

import dataclasses

from retinanet_tf.config.section import Section, setting
from retinanet_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class AnchorConfig(Section):
    """Pyramid levels and anchors (§4)."""

    max_level: int = setting(7, "Coarsest pyramid level: 5, 6 or 7; P7 has stride 128 (§4).", "[5, 7]")
    anchor_multiplier: float = setting(
        4.0, "Base anchor side over the level's stride: 4 gives 32 px on P3 to 512 px on P7 (§4).", "(0, inf)"
    )
    anchor_scales: tuple[float, ...] = setting(
        (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        "Factors on the base side at every level (§4: three per octave).",
        "(0, inf)",
    )
    anchor_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), "Aspect ratios, height over width (§4).", "(0, inf)")
    anchor_style: str = setting(
        "paper",
        "Whose anchors: 'paper' (exact sides, centred on the cell, scale-major), or as the weights of 'detectron' "
        "(rounded base sides; also no score threshold on the coarsest level), 'detectron2' (centred on the cell's "
        "corner) or 'torchvision' (that, integer sizes, ratio-major, strides of image size // grid size) need them.",
        ("paper", "detectron", "detectron2", "torchvision"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.anchors_per_cell:
            raise InputError("anchor_scales and anchor_ratios need at least one number each.")

    @property
    def levels(self) -> range:
        """The pyramid levels, finest first: from P3, stride 8 (§4: no P2)."""
        return range(3, self.max_level + 1)

    @property
    def anchors_per_cell(self) -> int:
        """A of the paper: 9 by default."""
        return len(self.anchor_scales) * len(self.anchor_ratios)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The network of §4."""

    num_classes: int = setting(80, "K, the number of categories; no background class (§3).", "[1, inf)")
    backbone: str = setting("resnet50", "A name of retinanet_tf.models.resnet.VARIANTS (§4: ResNet-50 and -101).")
    norm: str = setting(
        "frozen",
        "Normalization in the backbone: 'frozen' (statistics and affine fixed, authors' code), 'batch' (statistics of "
        "all devices' images) or 'group'.",
        ("frozen", "batch", "group"),
    )
    norm_epsilon: float = setting(1e-5, "Epsilon of the backbone's normalization.", "[0, inf)")
    stride_in: str = setting(
        "1x1",
        "Which convolution of a bottleneck carries the stride: '1x1' (the ResNet release, authors' code) or '3x3' "
        "(torchvision, ResNeXt).",
        ("1x1", "3x3"),
    )
    freeze_stages: int = setting(
        2,
        "Stages up to this one aren't trained: 0 none, 1 the stem, 2 the stem and stage 2 (authors' code).",
        "[0, 5]",
    )
    p6_from: str = setting("c5", "Input of P6: 'c5' (§4) or 'p5' (torchvision v1, Model Garden).", ("c5", "p5"))
    fpn_channels: int = setting(256, "C, channels of every pyramid level (§4).", "[1, inf)")
    subnet_depth: int = setting(4, "3x3 convolutions in each subnet before the last one (§4).", "[0, inf)")
    subnet_channels: int = setting(256, "Filters of those convolutions (§4).", "[1, inf)")
    subnet_norm: str = setting(
        "none",
        "Normalization in the subnets: 'none' (§4), 'group', or 'batch' (statistics and affine kept per level).",
        ("none", "group", "batch"),
    )
    subnet_init_std: float = setting(
        0.01,
        "Standard deviation of the subnets' initial kernels (§4.1, for 256 channels; narrow ones want more).",
        "[0, inf)",
    )
    prior: float = setting(0.01, "π: the foreground probability every anchor starts with (§3.3, §4.1).", "(0, 1)")
    pixel_mean: tuple[float, float, float] = setting(
        (123.68, 116.779, 103.939),
        "Subtracted from R, G, B in 0–255; the ResNet release's (keras.applications).",
        "(-inf, inf)",
    )
    pixel_std: tuple[float, float, float] = setting(
        (1.0, 1.0, 1.0), "Divides R, G, B after the mean is subtracted.", "(0, inf)"
    )
    channel_order: str = setting(
        "bgr", "Order in which the backbone sees the channels: 'bgr' (the ResNet release) or 'rgb'.", ("bgr", "rgb")
    )
    image_size: int = setting(
        600, "Shorter side in pixels, in training and detection alike (§4.1: 600 for the ablations).", "[1, 16384]"
    )
    max_size: int = setting(1000, "Longer side's limit in pixels (§5.2: 1.667 times the shorter).", "[1, 16384]")
    resize: str = setting(
        "shorter_side",
        "How images are resized: 'shorter_side' keeps their proportions (§4.1), 'stretch' makes every one a "
        "square of image_size, which max_size must equal (MLPerf's 800x800).",
        ("shorter_side", "stretch"),
    )
    weight_decay: float = setting(
        1e-4, "Coupled L2 on convolution kernels: their gradient gets weight_decay·w (§4.1).", "[0, inf)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size > self.max_size:
            raise InputError(f"image_size={self.image_size} must be at most max_size={self.max_size}; give both.")
        if self.resize == "stretch" and self.max_size != self.image_size:
            raise InputError(
                f"resize=stretch makes squares: max_size={self.max_size} must equal image_size={self.image_size}."
            )


@dataclasses.dataclass(frozen=True)
class AssignConfig(Section):
    """Assignment of anchors to objects (§4)."""

    positive_iou: float = setting(
        0.5, "Anchors with at least this IoU with an object are its positives (§4).", "(0, 1]"
    )
    negative_iou: float = setting(
        0.4, "Anchors below this IoU with every object are background; between, ignored.", "[0, 1]"
    )
    promote: str = setting(
        "never",
        "Whether each object's best anchor counts as positive below positive_iou: 'never' (§4's text), "
        "'above_negative' (what the authors' code does), 'always' (detectron2, torchvision).",
        ("never", "above_negative", "always"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_iou > self.positive_iou:
            raise InputError(f"negative_iou={self.negative_iou} must be at most positive_iou={self.positive_iou}.")


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
    """The losses of §3 and §4.1."""

    classification: str = setting(
        "focal",
        "'focal' (eq. 5), 'cross_entropy' (eq. 3: eq. 5 with γ = 0), 'focal_star' (eqs. 7, 8) or 'hinge' (§5.1).",
        ("focal", "cross_entropy", "focal_star", "hinge"),
    )
    gamma: float = setting(2.0, "γ, the focusing parameter (§3.2).", "[0, inf)")
    alpha: float = setting(0.25, "α, the weight of the foreground (eq. 3, §5.1).", "[0, 1]")
    class_alpha: str = setting(
        "",
        "α of single classes, NAME=NUMBER separated by commas (alpha is that of the others), or one number for each "
        "class in the order of labels.json. A class' objects weigh α, its background 1 − α.",
    )
    star_beta: float = setting(1.0, "β of FL* (eq. 7); used by classification=focal_star alone.", "(-inf, inf)")
    hinge_threshold: float = setting(
        0.5, "p_t from which on classification=hinge is zero; §5.1 has no number.", "(0, 1]"
    )
    box: str = setting(
        "smooth_l1", "'smooth_l1' (§4.1), 'l1' or 'giou' (detectron2's choices).", ("smooth_l1", "l1", "giou")
    )
    box_beta: float = setting(
        0.11, "Where smooth L1 turns from quadratic to linear (authors' code; §4.1 is silent).", "[0, inf)"
    )
    box_weight: float = setting(1.0, "Factor on the box loss (authors' code; §4.1: 1).", "[0, inf)")
    normalizer: str = setting(
        "image",
        "What the summed loss is divided by: 'image' (each image's positives, §4.1), 'replica' (Σ(positives + 1) over "
        "the device's images, authors' code) or 'global' (max(1, Σ positives) over the images of all devices).",
        ("image", "replica", "global"),
    )
    mining: str = setting(
        "none",
        "Which anchors the losses see: 'none' (all, §4.1), 'ohem' (the hardest after NMS, §5.1) or 'ohem_1_3' "
        "(the same with one positive to three negatives). The paper combines it with cross entropy.",
        ("none", "ohem", "ohem_1_3"),
    )
    mining_examples: int = setting(
        128, "Anchors per image that mining keeps at most (Table 1d: 128, 256, 512).", "[1, 1000000000]"
    )
    mining_nms: float = setting(
        0.5, "IoU above which mining drops the easier of two anchors (Table 1d: 0.5, 0.7).", "[0, 1]"
    )


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Batches and augmentation."""

    batch_size: int = setting(16, "Images per step over all devices (§4.1: 8 GPUs of 2 images).", "[1, 65536]")
    flip: float = setting(0.5, "Probability of a horizontal flip (§4.1: the only augmentation).", "[0, 1]")
    vertical_flip: float = setting(
        0.0, "Probability of a vertical flip; for images without an upright orientation.", "[0, 1]"
    )
    scale_jitter: tuple[float, float] = setting(
        (1.0, 1.0),
        "Range of a random factor on the resized image (Table 2's models use scale jitter).",
        "(0, inf)",
    )
    translate_jitter: float = setting(
        0.0, "Largest shift of an image into free room, as a share of its frame.", "[0, 1]"
    )
    colour_jitter: float = setting(0.0, "Largest change of brightness, contrast and saturation, as a share.", "[0, 1]")
    repeat_threshold: float | str = setting(
        0.0,
        "Repeat-factor sampling (LVIS, arXiv:1908.03195): an image of a category that is in a share f of the images "
        "comes max(1, sqrt(repeat_threshold / f)) times per epoch, by its rarest category. 0 is off, 'auto' the median "
        "of the categories' shares.",
        "[0, 1]",
        words=("auto",),
    )
    crop: int = setting(
        0,
        "Side in pixels of a random square of each picture as it is stored, which is then resized to image_size as a "
        "tile of that side is in detection; for large pictures. 0: whole pictures (§4.1).",
        "[0, 65536]",
    )
    overlap_crop: float = setting(
        0.0,
        "Probability of a random patch that overlaps an object by a minimum IoU, or of none, as SSD draws it (Liu et "
        "al. 2016, §2.2).",
        "[0, 1]",
    )
    mosaic: float = setting(
        0.0, "Probability of four pictures around a random point (Bochkovskiy et al. 2020, §3.3).", "[0, 1]"
    )
    mixup: float = setting(
        0.0,
        "Probability of blending with another picture, the boxes of both kept (Zhang et al. 2019, Bag of Freebies, "
        "§3.1).",
        "[0, 1]",
    )
    mix_until: float = setting(
        0.95,
        "Share of the steps after which mosaic and mixup end (Ge et al. 2021, YOLOX: 285 of 300 epochs).",
        "[0, 1]",
    )
    cutout: float = setting(
        0.0,
        "Side of a square of mean colour at a random place, as a share of the image's shorter side; 0: none (DeVries "
        "and Taylor 2017, §3.2).",
        "[0, 1]",
    )
    min_visible: float = setting(
        0.1,
        "Share of an object's area that must still be seen after all augmentation that cuts or covers, else its box is "
        "left out (0.1 as YOLOv5's box_candidates).",
        "[0, 1]",
    )
    shard_by: str = setting(
        "records",
        "How the machines of strategy=multi_worker share the data: parts of each batch ('records', the same batches on "
        "any number of machines), or 'files', each machine its own.",
        ("records", "files"),
    )
    on_bad_record: str = setting(
        "stop", "A damaged record ends the job ('stop') or another one takes its place ('skip').", ("stop", "skip")
    )
    data_service: str = setting("", "grpc://HOST:PORT of a tf.data service dispatcher that makes the batches.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_jitter[0] > self.scale_jitter[1]:
            raise InputError(f"scale_jitter={self.scale_jitter[0]},{self.scale_jitter[1]} must name the smaller first.")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Optimization and the training job (§4.1)."""

    steps: int = setting(90_000, "Training steps (§4.1: 90k at batch 16).", "[1, inf)")
    learning_rate: float = setting(0.01, "Initial learning rate at the configured batch_size (§4.1).", "[0, inf)")
    schedule: str = setting("step", "'step' (§4.1) or 'cosine' (to zero at the last step).", ("step", "cosine"))
    decay_steps: tuple[int, ...] = setting((60_000, 80_000), "Steps at which 'step' divides by ten (§4.1).", "[0, inf)")
    warmup_steps: int = setting(
        0, "Linear warm-up steps, from a third of the rate; the text has none, the authors' code 500.", "[0, inf)"
    )
    optimizer: str = setting(
        "sgd",
        "'sgd' with momentum (§4.1), 'adamw', or one of TensorFlow Addons (Python 3.10 and 3.11).",
        ("sgd", "adamw", "lamb", "novograd", "rectified_adam", "lazy_adam", "lookahead_sgd", "sgdw"),
    )
    bias_lr_factor: float = setting(
        1.0, "Factor on the biases' learning rate: 1 (§4.1) or 2 (authors' code).", "(0, inf)"
    )
    momentum: float = setting(0.9, "Momentum of SGD (§4.1).", "[0, 1)")
    adamw_decay: float = setting(
        0.0,
        "Decoupled weight decay of 'adamw', 'lamb', 'novograd', 'rectified_adam' and 'sgdw'; for the others there is "
        "the model's weight_decay.",
        "[0, inf)",
    )
    clip_norm: float = setting(
        0.0, "Clip gradients, weight_decay's included, to this global norm; 0 is off (authors' code).", "[0, inf)"
    )
    accumulation: int = setting(
        1,
        "Parts that a step cuts each device's images into, one after the other: less memory, the same gradients; but "
        "norm=batch and subnet_norm=batch normalise each part by itself.",
        "[1, 65536]",
    )
    ema_decay: float = setting(
        0.0,
        "Evaluate and export an exponential moving average of the weights with this decay; 0 is off.",
        "[0, 1)",
    )
    precision: str = setting(
        "float32",
        "'float32', or the layers in 'float16' (with loss scaling) or 'bfloat16'; losses stay in float32.",
        ("float32", "float16", "bfloat16"),
    )
    xla: str = setting(
        "auto",
        "Compile the training step with XLA: 'auto' (on GPUs and TPUs, not on CPUs), 'true' or 'false'.",
        ("auto", "true", "false"),
    )
    strategy: str = setting(
        "mirrored",
        "'mirrored' (all devices of this machine), 'one_device', 'multi_worker' (machines named by TF_CONFIG or Slurm) "
        "or 'tpu'.",
        ("mirrored", "one_device", "multi_worker", "tpu"),
    )
    devices: int = setting(
        0,
        "Devices that strategy=mirrored uses; 0 is all. Without a GPU they are logical CPU devices, to try things.",
        "[0, inf)",
    )
    seed: int = setting(0, "Seed of initialization, shuffling and augmentation.", "[0, 4294967295]")
    checkpoint_steps: int = setting(1_000, "Steps between checkpoints, which are also Keras' epochs.", "[1, inf)")
    eval_steps: int = setting(
        0,
        "Steps between evaluations on the validation data, at the next checkpoint; 0: only at the end.",
        "[0, inf)",
    )
    patience: int = setting(
        0,
        "Evaluations (eval_steps) in a row without a higher AP that end the job; those during warm-up don't count, and "
        "an AP of 0 is allowed five times as many. 0: the job runs to its last step.",
        "[0, inf)",
    )
    validation_loss: bool = setting(
        False,
        "Every evaluation also computes the losses on the validation data (val_loss), without augmentation and weight "
        "decay.",
    )


@dataclasses.dataclass(frozen=True)
class DetectConfig(Section):
    """From network outputs to detections (§4.1)."""

    score_threshold: float = setting(0.05, "Predictions must score above this (§4.1).", "[0, 1)")
    pre_nms_top_k: int = setting(1_000, "Highest scoring predictions kept per pyramid level (§4.1).", "[1, 2147483647]")
    nms_iou: float = setting(
        0.5, "Same-class boxes overlapping a better one by more than this are dropped (§4.1).", "[0, 1]"
    )
    max_detections: int = setting(100, "Detections per image at most (authors' code, COCO's limit).", "[1, 100000]")
