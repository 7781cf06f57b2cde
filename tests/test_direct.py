import errno
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline import direct
from wsi_pipeline.direct import DirectFile

MIB = 2**20
SIZES = st.sampled_from([0, 1, 511, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 3 * MIB])
BYTES = np.random.default_rng(0).bytes(12 * MIB)


def write(path: Path, parts: list[bytes]) -> None:
    with ThreadPoolExecutor(1) as disk, DirectFile(path, disk) as file:
        for part in parts:
            file.write(part)


def cut(sizes: list[int]) -> list[bytes]:
    ends = np.cumsum([0, *sizes])
    return [BYTES[start:end] for start, end in pairwise(ends)]


@settings(max_examples=30, deadline=None)
@given(st.lists(SIZES, max_size=4))
def test_what_is_written_is_in_the_file(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("direct") / "a"
    write(path, cut(sizes))
    assert path.read_bytes() == BYTES[: sum(sizes)]


def test_a_file_system_without_direct_writes_gets_the_same_bytes(tmp_path, monkeypatch):
    real, asked = os.open, []

    def refusing(path, flags, *rest):
        asked.append(bool(flags & os.O_DIRECT))
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    write(tmp_path / "a", cut([MIB, 4097, 5]))
    assert asked == [True, False]
    assert (tmp_path / "a").read_bytes() == BYTES[: MIB + 4102]


def test_a_disk_that_refuses_the_first_direct_write_gets_the_same_bytes(
    tmp_path, monkeypatch
):
    real = os.write

    def refusing(descriptor, data):
        if direct._is_direct(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", refusing)
    write(tmp_path / "a", cut([2 * MIB, 100]))
    assert (tmp_path / "a").read_bytes() == BYTES[: 2 * MIB + 100]


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: 300 * 1024 + 7]))
    write(tmp_path / "a", cut([2 * MIB, 100]))
    assert (tmp_path / "a").read_bytes() == BYTES[: 2 * MIB + 100]


def test_a_full_disk_is_an_error_of_a_later_call(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a", cut([MIB]))
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "b", cut([5]))


def test_a_task_that_is_run_again_replaces_what_it_left(tmp_path):
    (tmp_path / "a").write_bytes(b"half a shard")
    write(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"new"


def test_the_descriptor_is_closed_after_an_error(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with (
        ThreadPoolExecutor(1) as disk,
        pytest.raises(ZeroDivisionError),
        DirectFile(tmp_path / "a", disk) as file,
    ):
        file.write(BYTES[:MIB])
        1 / 0  # noqa: B018
    assert len(list(Path("/proc/self/fd").iterdir())) == before
