"""Files and folders that are written: nothing of a failed block is left, names of any bytes."""

import json

import pytest

from retinanet_tf import files


def test_a_failed_block_leaves_no_new_folder(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(KeyboardInterrupt), files.output_folder(tmp_path / "old/a/b"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), files.output_folder(tmp_path / "new/a/b"):
        (tmp_path / "new/mine").touch()
        raise KeyboardInterrupt
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"old", "new", "new/mine"}


def test_a_file_name_that_is_not_utf8_comes_back_from_json(tmp_path):
    names = [b"a\xff.jpg".decode(errors="surrogateescape"), "żółw ☕.jpg"]
    files.write_json(tmp_path / "a.json", names)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == names and names[1] in text
