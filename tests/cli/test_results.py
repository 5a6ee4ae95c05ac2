"""Commands that end well: what they write and print is what the library gives."""

import json

import numpy as np
import pytest
from datasets import CATEGORIES, write_coco
from PIL import Image
from small_detectors import clutter, small_detector

import retinanet_tf as rn
from retinanet_tf.data.sources import read_source
from retinanet_tf.data.sources.random_split import random_split
from retinanet_tf.inference import checkpoint
from retinanet_tf.inference.test_time_augmentation import AugmentedDetector
from retinanet_tf.inference.tiles import TiledDetector


@pytest.fixture
def retinanet(forked, tmp_path):
    """`retinanet COMMAND FLAGS` in tmp_path; what it prints."""

    def run(*command):
        status, printed = forked.run(command[0], command[1:], tmp_path)
        assert status == 0, printed
        return printed

    return run


@pytest.fixture
def detector(tmp_path):
    """That of the run directory `run`; and two pictures in `photos`."""
    label_map = rn.data.LabelMap([3, 7, 90], ["dog", "cat", "cup"])
    model = small_detector(label_map).model
    config = rn.Config(model=model.config, anchors=model.anchors.config).replace(score_threshold=0.9)
    for folder in ("run", "photos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"config": config.to_dict()}))
    label_map.save(tmp_path / "run/labels.json")
    checkpoint.save_weights(model, tmp_path / "run" / checkpoint.WEIGHTS)
    for seed in range(2):
        Image.fromarray(clutter(seed, 80, 112)).save(tmp_path / f"photos/{seed}.png")
    return rn.load_detector(tmp_path / "run")


@pytest.mark.once
def test_detections_are_saved_evaluated_and_drawn_from_the_best_score_on(retinanet, detector, tmp_path):
    """What predict saves is the ground truth of an evaluation, whose best score is what auto takes."""
    predict = ("predict", "--model=run", "--images=photos", "--output=found")
    retinanet(*predict, "--min_score=0.97", "--save=coco,csv,yolo")
    names = ("annotations.json", "annotations.csv", "labels")
    read = [read_source(tmp_path / "found" / name, images=str(tmp_path / "photos"))[0].images for name in names]
    for images in zip(*read, strict=True):
        for one in images[1:]:
            np.testing.assert_allclose(one.boxes, images[0].boxes, atol=0.02)
    assert sum(len(image.boxes) for image in read[0]) > 10

    truth = ("--annotations=found/annotations.json", "--images=photos")
    options = ("--tiles=64", "--test_sizes=48,64", "--test_flip")
    printed = retinanet("evaluate", "--model=run", *truth, *options, "--output=run/val")
    written = json.loads((tmp_path / "run/val/metrics.json").read_text())
    tiled = TiledDetector(AugmentedDetector(detector, [48, 64], flip=True), 64)
    metrics = rn.evaluate(tiled, tmp_path / "found/annotations.json", tmp_path / "photos", progress=False)
    assert {name: written[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)
    assert 0 < metrics["AP"] < 1 and f"AP {100 * metrics['AP']:5.1f}" in printed

    best = written["threshold"]
    printed = retinanet(*predict, *options, "--min_score=auto")
    scores = [row["score"] for row in json.loads((tmp_path / "found/detections.json").read_text())]
    assert f"min_score=auto: {best:g}" in printed
    assert f"{sum(score >= best for score in scores)} detections with a score of {best:g} or more" in printed


@pytest.mark.slow
def test_summary_counts_the_network_of_its_flags(retinanet, detector):
    flags = ("backbone", "num_classes", "fpn_channels", "subnet_channels")
    printed = retinanet(
        "summary", "--preset=mini", *(f"--{name}={getattr(detector.model.config, name)}" for name in flags)
    )
    assert f"{detector.model.count_params():,}" in printed


def test_prepare_takes_headers_stored_pixels_and_a_seed(retinanet, tmp_path):
    """Half a file has its header; a square picture's size doesn't say whether its boxes are of the turned one."""
    annotations, images = write_coco(tmp_path, [(64, 64)] * 8, boxes_an_image=1)
    cut, turned = images / "000001.jpg", images / "000002.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(turned).save(turned, exif=exif)
    flags = ("--verify=header", "--exif=stored", "--split_shares=0.5,0.5", "--split_seed=3", "--num_workers=1")
    printed = retinanet("prepare", f"--annotations={annotations}", f"--images={images}", "--output=out", *flags)
    assert "1 exif ambiguous" in printed
    source, _ = read_source(annotations, images=str(images))
    splits = [random_split(source, images, {"train": 0.5, "val": 0.5}, seed=seed) for seed in (3, 0)]
    assert splits[0]["val"].images != splits[1]["val"].images
    for name, split in splits[0].items():
        records = list(rn.data.read_records(tmp_path / f"out/{name}-*.tfrecord"))
        assert [(one.annotations.file_name, one.encoded) for one in records] == [
            (image.file_name, (images / image.file_name).read_bytes()) for image in split.images
        ]
    assert rn.data.LabelMap.load(tmp_path / "out/labels.json").to_json() == sorted(CATEGORIES, key=lambda c: c["id"])
