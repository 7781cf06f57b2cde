"""A journal gives back what is whole in it, whatever a kill left behind."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wsi_pipeline import resuming
from wsi_pipeline.errors import ExportError
from wsi_pipeline.resuming import LogitJournal

KEY = bytes(range(32))
BATCHES = [
    np.arange(12, dtype=np.float32).reshape(4, 3),
    -np.ones((4, 3), np.float32),
    np.full((2, 3), 7, np.float32),
]


def journal_of(folder: Path, every_s: float = 0) -> LogitJournal:
    return LogitJournal(folder / "a.journal", "slide", every_s)


def written(folder: Path, count: int = 3) -> LogitJournal:
    journal = journal_of(folder)
    journal.start(KEY, 3, 4, None)
    for number, batch in enumerate(BATCHES[:count]):
        journal.add(batch, 4 - number, lambda n=number: b"state" * n)
    journal.close()
    return journal


def rows(count: int) -> NDArray[np.float32]:
    return np.concatenate(BATCHES[:count])


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    done = written(tmp_path).load(KEY)
    assert done is not None
    assert (done.logits == rows(3)).all()
    assert (done.batch, done.batch_now, done.state) == (4, 2, b"statestate")


def test_every_cut_leaves_whole_records_and_can_be_continued(tmp_path: Path) -> None:
    journal = written(tmp_path)
    data = journal.path.read_bytes()
    found = set()
    for end in range(len(data)):
        journal.path.write_bytes(data[:end])
        done = journal.load(KEY)
        count = 0 if done is None else len(done.logits)
        assert count in (0, 4, 8)
        if count not in found and done is not None:
            assert (done.logits == rows(count // 4)).all()
            journal.start(KEY, 3, 4, done)
            for batch in BATCHES[count // 4 :]:
                journal.add(batch, 4)
            journal.close()
            whole = journal.load(KEY)
            assert whole is not None
            assert (whole.logits == rows(3)).all()
        found.add(count)
    assert found == {0, 4, 8}


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    journal = written(tmp_path)
    data = journal.path.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        journal.path.write_bytes(flipped)
        done = journal.load(KEY)
        # the planned batch and C stand in the head, which is checked by their use
        in_head = place < resuming._HEAD.size
        assert in_head or done is None or len(done.logits) < 10


def test_another_key_another_slide_and_no_file_give_nothing(tmp_path: Path) -> None:
    journal = written(tmp_path)
    assert journal.load(KEY[::-1]) is None
    assert LogitJournal(journal.path, "another").load(KEY) is None
    journal.path.write_bytes(b"something else that is long enough for a head" * 3)
    assert journal.load(KEY) is None
    journal.discard()
    assert not journal.path.exists()
    assert journal.load(KEY) is None


def test_a_new_start_drops_what_was_there(tmp_path: Path) -> None:
    journal = written(tmp_path)
    journal.start(KEY, 3, 8, None)
    journal.close()
    assert journal.load(KEY) is None


def test_batches_are_gathered_until_it_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []
    monkeypatch.setattr(resuming.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(resuming.os, "fsync", synced.append)
    journal = journal_of(tmp_path, every_s=5)
    journal.start(KEY, 3, 4, None)
    counts = []
    for second, batch in ((1, 0), (4, 1), (6, 2), (7, 0)):
        now[0] = second
        journal.add(BATCHES[batch], 4)
        done = journal.load(KEY)
        counts.append(0 if done is None else len(done.logits))
    assert counts == [0, 0, 10, 10]
    assert len(synced) == 1
    journal.close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    journal = LogitJournal(tmp_path / "gone" / "a.journal", "slide")
    with pytest.raises(ExportError, match=r"a\.journal: cannot write"):
        journal.start(KEY, 3, 4, None)
