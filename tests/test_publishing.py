import hashlib

import pytest

from wsi_pipeline.errors import ExportError
from wsi_pipeline.publishing import (
    list_files,
    make_folder,
    publish_bytes,
    publish_json,
    sha256_file,
    staged,
)


def test_nothing_appears_when_the_block_fails(tmp_path):
    publish_bytes(tmp_path / "a.txt", b"old")
    with pytest.raises(RuntimeError), staged(tmp_path / "a.txt") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "d") as path:
        path.mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_folders_replace_folders(tmp_path):
    for text in ("one", "two"):
        with staged(tmp_path / "d") as path:
            path.mkdir()
            (path / text).write_text(text)
    assert [p.name for p in list_files(tmp_path)] == ["two"]


def test_writing_nothing_is_an_error(tmp_path):
    with (
        pytest.raises(ExportError, match="nothing was written"),
        staged(tmp_path / "a"),
    ):
        pass


def test_a_name_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "f").write_text("file")
    with pytest.raises(ExportError, match="choose another folder"):
        publish_bytes(tmp_path / "f" / "g", b"")
    with pytest.raises(ExportError, match="choose another folder"):
        make_folder(tmp_path / "f" / "g")


def test_json_has_the_same_bytes_for_the_same_value(tmp_path):
    publish_json(tmp_path / "a", {"b": 1, "a": [1.5, None]})
    publish_json(tmp_path / "b", {"a": [1.5, None], "b": 1})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


def test_checksums_are_those_of_the_content(tmp_path):
    publish_bytes(tmp_path / "a", b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
