"""Image files in preparing: awkward ones, those outside the folder, devices, a full disk, odd names."""

import json
import os
import resource
import socket
from pathlib import Path

import pytest
from PIL import Image

from retinanet_tf.data.records.reader import read_records
from retinanet_tf.errors import InputError
from retinanet_tf.files import make_folder, read_bytes, read_json, read_text
from tests.data.test_images import OUTCOMES
from tests.data.test_prepare import SIZES, quiet
from tests.datasets import annotation, picture, write_coco


@pytest.mark.parametrize("path", ["gs://bucket/out", Path("gs://bucket/out"), ""])
def test_outputs_are_local(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the output folder '.*' must be a local folder or a mounted one"):
        make_folder(path)
    assert not list(tmp_path.iterdir())


def test_every_awkward_file_at_once(test_data, tmp_path):
    names = sorted(p.name for p in (test_data / "awkward").iterdir() if p.suffix in (".jpg", ".png", ".gif"))
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names, 1)],
        "annotations": [annotation(i, i, [0, 0, 1, 1], 7) for i in range(1, len(names) + 1)],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    summary = quiet(tmp_path / "a.json", test_data / "awkward", tmp_path / "o", on_bad_image="skip", exif="stored")
    outcomes = {name: outcome for name, (outcome, _) in OUTCOMES.items() if not outcome.startswith("EXIF")}
    assert {f["image"] for f in summary["findings"]["skipped_images"]} == {
        name for name, outcome in outcomes.items() if outcome not in ("kept", "png", "jpeg")
    }
    assert sorted(names) == sorted(OUTCOMES) and summary["images"] == 37 - 9
    assert summary["counts"]["exif_ambiguous"] == 3 and summary["counts"]["converted_images"] == 15
    with pytest.raises(InputError, match=f"image .*{names[0]}|image .*empty.jpg"):
        quiet(tmp_path / "a.json", test_data / "awkward", tmp_path / "p", exif="stored")
    assert not (tmp_path / "p").exists()


@pytest.fixture
def odd_names(tmp_path):
    """A function that prepares a data set whose second image has another name."""

    def prepared(name, **arguments):
        path, images = write_coco(tmp_path / "data", SIZES[:2])
        content = json.loads(path.read_text())
        content["images"][1]["file_name"] = name
        path.write_text(json.dumps(content))
        return quiet(path, images, tmp_path / "out", **arguments)

    return prepared


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/urandom", __file__, "../secret.jpg", "sub/../../secret.jpg"])
def test_files_outside_the_image_folder_are_not_read(tmp_path, odd_names, name):
    (tmp_path / "data" / "images" / "sub").mkdir(parents=True)
    Image.fromarray(picture(48, 64)).save(tmp_path / "data" / "secret.jpg")
    with pytest.raises(InputError, match="outside the image folder"):
        odd_names(name)
    assert not (tmp_path / "out").exists()
    assert odd_names(name, on_bad_image="skip")["counts"]["skipped_images"] == 1
    if name.endswith("jpg"):
        assert odd_names(name, allow_outside=True)["images"] == 2
    else:
        with pytest.raises(InputError, match="isn't a regular file|is no image|is empty"):
            odd_names(name, allow_outside=True)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "link to a device", "link to nothing", "link to itself"])
def test_what_is_no_regular_file_is_not_read(tmp_path, odd_names, kind, monkeypatch):
    place = tmp_path / "data" / "images" / "odd.jpg"
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            monkeypatch.chdir(place.parent)  # a socket's path must be short
            one.bind(place.name)
    else:
        place.symlink_to({"link to a device": "/dev/zero", "link to nothing": "none", "link to itself": place}[kind])
    with pytest.raises(InputError, match=r"odd\.jpg .*(isn't a regular file|isn't in|outside)"):
        odd_names("odd.jpg")
    for reader in (read_bytes, read_text, read_json):
        with pytest.raises(InputError, match="odd.jpg can't be read"):
            reader(place, "the file")


def test_links_out_of_the_image_folder_are_its_owners(tmp_path, odd_names):
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.fromarray(picture(48, 64)).save(tmp_path / "elsewhere.jpg")
    (tmp_path / "data" / "images" / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert odd_names("link.jpg")["images"] == 2
    assert odd_names(str(tmp_path / "data" / "images" / "link.jpg"))["images"] == 2


@pytest.mark.parametrize("size", [0, 800, 1600, 2000, 9000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, size):
    """A limit on the size of files makes writing fail as on a full disk: in shards or, above 1,700, in the summary."""
    path, images = write_coco(tmp_path, SIZES)
    content = json.loads(path.read_text())
    content["annotations"] += [annotation(number, 1, [1, 1, 0, 5]) for number in range(100, 300)]  # dropped and listed
    path.write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(InputError, match="can't be written"):
            quiet(path, images, tmp_path / "out", shards=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("letter", ["\x1b", "\n", "\r", "\x07", "\x9b", "\u202e"])
def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path, letter):
    path, images = write_coco(tmp_path, SIZES)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 1, "name": f"a{letter}b"})
    path.write_text(json.dumps(content))
    warnings = quiet(path, images, tmp_path / "out")["warnings"]
    assert any(f"a{letter}b" in warning for warning in warnings)  # JSON keeps it, `retinanet prepare` escapes it
    (images / "000001.jpg").rename(images / f"a{letter}b.jpg")
    content["images"][1]["file_name"] = f"a{letter}b.png"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        quiet(path, images, tmp_path / "out")
    assert letter not in str(caught.value) and str(caught.value).isprintable()


def test_bad_images_can_be_skipped_with_a_list(tmp_path):
    path, images = write_coco(tmp_path, SIZES)
    (images / "000001.jpg").write_bytes(b"")
    (images / "000003.jpg").unlink()
    summary = quiet(path, images, tmp_path / "out", on_bad_image="skip")
    assert [(f["image"], f["detail"].split(":")[0]) for f in summary["findings"]["skipped_images"]] == [
        ("000001.jpg", "is empty"),
        ("000003.jpg", f"isn't in {images}"),
    ]
    assert [r.annotations.image_id for r in read_records(str(tmp_path / "out" / "train-*"))] == [1, 21, 41]
