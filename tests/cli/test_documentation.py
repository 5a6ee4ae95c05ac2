"""The documentation against the code: what it tells people to type works, what it names is there."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import documents
import numpy as np
import pytest
from datasets import write_coco
from documents import PAGES, ROOT
from published import Published

import retinanet_tf as rn
from experiments.paper import study

README = (ROOT / "README.md").read_text()
FINE_TUNING, BLOOD_CELLS, DEVICES, LIBRARY = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("fine_tuning", "blood_cells", "devices", "library")
)
RECIPE = "--flagfile=experiments/recipes/bccd.flags"
TINY_NETWORK = ("--backbone=resnet10_w16", "--fpn_channels=16", "--subnet_channels=16", "--subnet_depth=1")
TINY_JOB = ("--image_size=64", "--max_size=96", "--batch_size=2", "--steps=2", "--warmup_steps=1", "--eval_steps=0")
TINY = ("--preset=mini", "--max_level=5", *TINY_NETWORK, *TINY_JOB, "--checkpoint_steps=2")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture
def folder(tmp_path):
    """Where a user with a checkout of the project would type commands."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    return tmp_path


def texts():
    """Every page, every recipe, and the docstrings of the commands' and the experiments' modules."""
    found = {page: page.read_text() for page in PAGES}
    for path in (*(ROOT / "experiments").rglob("*.py"), *(ROOT / "retinanet_tf" / "cli").glob("*.py")):
        found[path] = ast.get_docstring(ast.parse(path.read_text())) or ""
    for path in (ROOT / "experiments").rglob("*.flags"):
        found[path] = re.sub(r"\n# +(?=--)", " ", path.read_text())
    return {str(path.relative_to(ROOT)): text for path, text in found.items()}


@pytest.mark.once
def test_every_command_parses(forked):
    """By the real flags of the command itself: an unknown module, flag or value of a flag fails."""
    found = {(command, name) for name, text in texts().items() for command in documents.commands(text)}
    assert len({command for command, _ in found}) > 50
    for command, name in sorted(found, key=str):
        # What earlier commands of the page write isn't there yet.
        arguments = [word for word in command.arguments if not re.match("--flagfile=(runs|weights)/", word)]
        status, output = forked.flags(command.module, arguments)
        expected = 2 if command.open and "must have a value" in output else 0
        assert status == expected, f"{name}: {command}\n{output[-1500:]}"


@pages
def test_the_blocks_are_of_their_languages(page):
    """bash reads every block of commands, whatever programs it names."""
    for language, content in documents.blocks(page.read_text()):
        assert language in documents.LANGUAGES, content
        if language == "python":
            compile(content, page.name, "exec")
        elif language == "yaml":
            yaml = pytest.importorskip("yaml", reason="PyYAML reads the YAML blocks and isn't installed")
            assert all(part["kind"] and part["metadata"]["name"] for part in yaml.safe_load_all(content))
        elif language == "bash":
            done = subprocess.run(["bash", "-n"], input=content, text=True, capture_output=True, check=False)
            assert done.returncode == 0 and not done.stderr, content + done.stderr


@pages
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_in_the_sites_contents():
    contents = (ROOT / "docs/index.md").read_text()
    for page in set(PAGES) - {ROOT / "docs/index.md"}:
        assert f"\n{os.path.relpath(page, ROOT / 'docs').removesuffix('.md')}\n" in contents, page


def test_the_version_is_the_same_wherever_it_is_said():
    assert f"\nversion: {rn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {rn.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.once
def test_the_papers_commands_print_their_jobs(forked, folder):
    """Every table's command of experiments/README.md, at the scales it names, with --dry_run."""
    found = documents.commands((ROOT / "experiments" / "README.md").read_text())
    printed = 0
    for command in found:
        if command.module.removeprefix("experiments.paper.") in study.STUDIES:
            status, output = forked.run(command.module, [*command.arguments, "--dry_run"], folder)
            assert status == 0 and "--steps=" in output, output[-2000:]
            printed += 1
    assert printed and not (folder / "runs").exists()


def run_block(forked, block, folder, changes, names):
    """Runs those of a block's commands that are named, in their order, with the flags of `changes` after their own."""
    done = []
    for command in documents.commands(block.replace("$PWD", str(folder))):
        if (name := command.module) in names:
            status, output = forked.run(command.module, [*command.arguments, *changes.get(name, ())], folder)
            assert status == 0, f"{command}\n{output[-3000:]}"
            done.append(name)
    assert done == names, "the block has other commands than this test knows"


def own_data(folder):
    """photos/ and annotations.json of three categories."""
    path, _ = write_coco(folder, [(96, 64), (64, 96), (90, 60), (64, 64)])
    (folder / "images").rename(folder / "photos")
    shutil.copy(path, folder / "annotations.json")


ONE = ("--num_workers=1",)


@pytest.mark.once
def test_your_own_data_as_the_readme_has_it(forked, folder):
    """On COCO's photos where they are: 80 classes, sparse ids, crowds, images without objects. Then the library.

    The training has a small network and the settings of the blood cells' recipe in place of published weights.
    """
    source = os.environ.get("RETINANET_TF_TEST_DATA")
    if source:
        (folder / "photos").symlink_to(Path(source) / "coco_ccby" / "images")
        (folder / "annotations.json").symlink_to(Path(source) / "coco_ccby" / "instances_train.json")
    else:
        own_data(folder)
    content = json.loads((folder / "annotations.json").read_text())
    ids = [category["id"] for category in content["categories"]]
    block = documents.block_after(README, "Your own data")
    photos = f"--images=photos/{content['images'][0]['file_name']}"
    tiny = (*TINY, f"--num_classes={len(ids)}")
    # After two steps nothing is found, and there is no best score.
    changes = {
        **{"prepare": ONE, "inspect": tiny, "train": ("--init_weights=", RECIPE, *tiny)},
        "predict": (photos, "--min_score=0.3"),
    }
    names = ["prepare", "inspect", "train", "evaluate", "predict"]
    run_block(forked, block, folder, changes, names)
    assert (folder / "runs/inspection/report.html").exists() and (folder / "runs/mine/flags.txt").exists()
    flags = (folder / "runs/mine/flags.txt").read_text()
    assert "--ema_decay=0.998" in flags and "--colour_jitter=0.3" in flags, "the recipe's own settings were used"
    assert 0.0 <= json.loads((folder / "runs/mine/val/metrics.json").read_text())["AP"] <= 1.0
    detections = json.loads((folder / "runs/mine/val/detections.json").read_text())
    assert {row["category_id"] for row in detections} <= set(ids)
    assert [row["id"] for row in json.loads((folder / "runs/mine/labels.json").read_text())] == sorted(ids)
    assert len(list((folder / "runs/mine/pictures/pictures").iterdir())) == 1
    arguments = ["--model=runs/mine", "--data=data/val-*.tfrecord", "--output=runs/mine/loss", "--limit=4"]
    status, output = forked.run("diagnose", arguments, folder)
    assert status == 0 and (folder / "runs/mine/loss/loss_distribution.json").exists(), output[-3000:]
    check_library(folder, len(ids))


def check_library(folder, num_classes):
    """The library's page, as it stands but for sizes, on the shards that the README's commands have just written."""
    text = documents.block_after(LIBRARY, "As a library", "python")
    smaller = {
        'backbone="resnet50"': 'backbone="resnet10_w16", fpn_channels=16, subnet_channels=16, subnet_depth=1',
        "num_classes=80": f"num_classes={num_classes}",
        "batch_size=2": "batch_size=2, image_size=64, max_size=96",
        "steps_per_epoch=1000": "steps_per_epoch=1",
    }
    for whole, part in smaller.items():
        assert whole in text
        text = text.replace(whole, part)
    text = text.replace('"data/', f'"{folder}/data/').replace('"export/', f'"{folder}/export/')
    space = {"images": [np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)]}
    exec(compile(text, "library.md", "exec"), space)
    assert (folder / "export/retinanet/1/saved_model.pb").exists()


@pytest.mark.once
def test_a_published_checkpoint_as_the_guide_has_it(forked, folder):
    """A network of the published names and shapes; its file a pickle, since PyTorch's format needs PyTorch."""
    own_data(folder)
    theirs = Published("torchvision", "resnet18", 91, channels=32)
    theirs.outputs(np.full((1, 64, 64, 3), 128, np.float32))
    (folder / "published.pkl").write_bytes(pickle.dumps(theirs.tensors, protocol=2))
    for name in ("train", "val"):
        rn.data.prepare(folder / "annotations.json", folder / "photos", folder / "data", name, progress=False)
    block = documents.block_after(FINE_TUNING, "From a file")
    # Of the checkpoint's 91 columns, those of the photos' three categories.
    (folder / "labels.json").write_text((folder / "data/labels.json").read_text())
    changes = {"import-weights": ("--file=published.pkl", "--image_size=64", "--max_size=96", "--labels=labels.json")}
    run_block(forked, block, folder, changes, ["import-weights", "predict", "evaluate", "export"])
    assert json.loads((folder / "weights/tv/import.json").read_text())["unused"] == []
    assert (folder / "pictures/detections.json").exists() and (folder / "export/tv/1/saved_model.pb").exists()
    assert 0.0 <= json.loads((folder / "weights/tv/val/metrics.json").read_text())["AP"] <= 1.0
    # Fine-tuning, from the flags.txt that the import wrote; then, as dry runs, jobs that take longer than a test.
    _, _, rest = FINE_TUNING.partition("To fine-tune on your own data")
    (fine_tune,) = documents.commands(documents.blocks(rest)[0][1])
    blood = documents.commands(documents.block_after(BLOOD_CELLS, "A detector from scratch: blood cells"))
    (recipe,) = [command for command in blood if command.module == fine_tune.module]
    eight = documents.commands(documents.block_after(DEVICES, "Many devices, long jobs"))[0]
    for command, changes, said in (
        (fine_tune, (), "--init_weights=weights/tv\n"),
        (recipe, ("--data=data/train-*.tfrecord", "--validation="), "2500 steps of 4 images on 1 device(s); adamw"),
        (eight, ("--num_classes=3", "--init_weights="), "90000 steps of 16 images on 1 device(s); sgd"),
    ):
        status, output = forked.run(command.module, [*command.arguments, *changes, "--dry_run"], folder)
        assert status == 0 and said in output, f"{command}\n{output}"
    # The four machines' command on one, which there is.
    block = documents.blocks(DEVICES.partition("**Four machines.**")[2])[0][1]
    (four,) = documents.commands(block)
    place = {"cluster": {"worker": ["localhost:0"]}, "task": {"type": "worker", "index": 0}}
    changes = ("--data=data/train-*.tfrecord", f"--run_dir={folder}/runs/r50", "--num_classes=3", "--dry_run")
    status, output = forked.run(four.module, [*four.arguments, *changes], folder, {"TF_CONFIG": json.dumps(place)})
    assert status == 0 and "steps of 64 images on 1 device(s); sgd, learning rate 0.04" in output, output
    assert not (folder / "runs").exists()
