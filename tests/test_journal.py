"""Blocks of a half-made folder are used again only where they are whole."""

from pathlib import Path

import pytest

from wsi_pipeline.errors import ExportError
from wsi_pipeline.journal import BlockJournal
from wsi_pipeline.publishing import KEPT, STAGING, clear_staging, staged
from wsi_pipeline.written import Written

KEY = "0123456789abcdef" * 4


def half_made(tmp_path: Path) -> tuple[Path, BlockJournal]:
    """A folder of three blocks, and one file of a fourth that was under way."""
    folder = tmp_path / "room" / "made"
    (folder / "c").mkdir(parents=True)
    journal = BlockJournal(folder)
    for name in ("plan", "c/1", "c/2"):
        (folder / name).write_bytes(name.encode() * 100)
        journal.add(name, [Written.of(folder / name)])
    (folder / "c" / "3").write_bytes(b"half")
    return folder, journal


def names(folder: Path) -> set[str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix() for p in files}


def test_whole_blocks_come_back_and_the_rest_is_deleted(tmp_path):
    folder, journal = half_made(tmp_path)
    found = BlockJournal(folder).resume()
    assert found == ["plan", "c/1", "c/2"]
    assert names(folder) == {"plan", "c/1", "c/2"}
    (folder / "c" / "3").write_bytes(b"whole")
    journal.add("c/3", [Written.of(folder / "c" / "3")])
    assert set(journal.resume()) == {"plan", "c/1", "c/2", "c/3"}


@pytest.mark.parametrize("change", ["flip", "cut", "lose", "grow"])
def test_a_block_that_changed_is_dropped_alone(tmp_path, change):
    folder, journal = half_made(tmp_path)
    path = folder / "c" / "1"
    data = bytearray(path.read_bytes())
    if change == "lose":
        path.unlink()
    else:
        data[7] ^= change == "flip"
        end = {"cut": -1, "flip": None, "grow": None}[change]
        path.write_bytes(bytes(data[:end]) + b"x" * (change == "grow"))
    assert set(journal.resume()) == {"plan", "c/2"}
    assert names(folder) == {"plan", "c/2"}


def test_without_the_first_block_nothing_is_kept(tmp_path):
    folder, journal = half_made(tmp_path)
    (folder / "plan").write_bytes(b"other")
    assert journal.resume() == []
    assert not folder.exists()
    assert [p.name for p in folder.parent.iterdir()] == []


def test_every_cut_of_the_journal_gives_whole_blocks_and_can_go_on(tmp_path):
    folder, journal = half_made(tmp_path)
    file = folder.with_name("journal")
    data = file.read_bytes()
    kept = {p: (folder / p).read_bytes() for p in ("plan", "c/1", "c/2")}
    found = set()
    for end in range(len(data)):
        for name, content in kept.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        file.write_bytes(data[:end])
        whole = journal.resume()
        assert whole == ["plan", "c/1", "c/2"][: len(whole)]
        assert names(folder) == set(whole)
        found.add(len(whole))
        if whole:
            journal.add("more", [Written.of(folder / "plan")])
            assert journal.resume() == [*whole, "more"]
    assert found == {0, 1, 2}


def test_no_flipped_bit_of_the_journal_makes_a_block_of_another_name(tmp_path):
    folder, journal = half_made(tmp_path)
    file = folder.with_name("journal")
    data = file.read_bytes()
    lines = data.splitlines(keepends=True)
    for place in range(len(lines[0]), len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        assert set(journal._read()) <= {"plan", "c/1", "c/2"}
        assert len(journal._read()) < 3


def test_an_interrupt_leaves_what_was_made_to_the_same_key_alone(tmp_path):
    def interrupted(key: str, name: str) -> set[str]:
        there: set[str] = set()
        with pytest.raises(KeyboardInterrupt), staged(tmp_path / "d", key) as path:
            there = {p.name for p in path.iterdir()} if path.exists() else set()
            path.mkdir(exist_ok=True)
            (path / name).touch()
            raise KeyboardInterrupt
        return there

    assert interrupted(KEY, "one") == set()
    assert interrupted(KEY, "two") == {"one"}
    clear_staging(tmp_path)
    assert interrupted(KEY, "three") == {"one", "two"}
    assert interrupted("f" * 64, "other") == set()
    assert interrupted(KEY, "anew") == set()
    assert [p.suffix for p in (tmp_path / STAGING).iterdir()] == [KEPT]
    clear_staging(tmp_path, finished=True)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing_under_a_key_either(tmp_path):
    with pytest.raises(ExportError), staged(tmp_path / "d", KEY) as path:
        path.mkdir()
        raise ExportError("full")
    assert list(tmp_path.iterdir()) == []


def test_a_kept_folder_is_published_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "d", KEY) as path:
        path.mkdir()
        (path / "one").write_text("1")
        raise KeyboardInterrupt
    with staged(tmp_path / "d", KEY) as path:
        (path / "two").write_text("2")
    assert names(tmp_path) == {"d/one", "d/two"}
