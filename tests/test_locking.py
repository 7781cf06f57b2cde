"""One run at a time holds a lock, whatever became of the one before."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from wsi_pipeline.errors import ExportError
from wsi_pipeline.locking import Lock, clear_dead

LEASE_S = 0.6


def foreign(path: Path, **facts: object) -> None:
    """A lock that somebody else left."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(orjson.dumps({"host": "elsewhere/1", "pid": 1, "id": "t"} | facts))


def own_host(path: Path) -> str:
    with Lock(path):
        return orjson.loads(path.read_bytes())["host"]


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path):
    path = tmp_path / ".staging" / "a.lock"
    with Lock(path) as first:
        assert not Lock(path).acquire()
        first.check()
        facts = orjson.loads(path.read_bytes())
        assert facts["pid"] == os.getpid()
        assert facts["host"].startswith(socket.gethostname())
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_is_taken_at_once(tmp_path):
    path = tmp_path / ".staging" / "a.lock"
    foreign(path, host=own_host(path), pid=dead_pid())
    lock = Lock(path)
    assert lock.acquire()
    lock.check()
    lock.release()


@pytest.mark.parametrize("ago_s", [-1e6, 0, 1e6])
def test_the_lock_of_another_host_is_taken_after_its_lease_whatever_the_clocks(
    tmp_path, ago_s
):
    path = tmp_path / ".staging" / "a.lock"
    foreign(path, pid=dead_pid())
    os.utime(path, (time.time() - ago_s,) * 2)
    lock, start = Lock(path, LEASE_S), time.monotonic()
    assert not lock.acquire()
    with lock:
        assert time.monotonic() - start >= LEASE_S
        lock.check()


def test_a_lock_that_stirs_is_not_taken(tmp_path):
    path = tmp_path / ".staging" / "a.lock"
    with Lock(path, LEASE_S):
        other, end = Lock(path, LEASE_S), time.monotonic() + 3 * LEASE_S
        while time.monotonic() < end:
            assert not other.acquire()
            time.sleep(LEASE_S / 10)


def test_a_lock_without_content_is_taken_after_a_lease(tmp_path):
    path = tmp_path / "a.lock"
    path.touch()
    with Lock(path, LEASE_S) as lock:
        lock.check()


def test_who_has_lost_a_lock_is_told_and_leaves_it_alone(tmp_path):
    path = tmp_path / ".staging" / "a.lock"
    first = Lock(path)
    assert first.acquire()
    path.unlink()
    with Lock(path) as second:
        with pytest.raises(ExportError, match="taken over"):
            first.check()
        first.release()
        second.check()


def test_a_stale_lock_that_another_run_has_replaced_is_given_back(tmp_path):
    path = tmp_path / "a.lock"
    foreign(path, id="new")
    Lock(path)._put_aside(b"old", tmp_path / "aside")
    assert orjson.loads(path.read_bytes())["id"] == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.lock"]


def test_many_who_want_a_stale_lock_get_it_one_by_one(tmp_path):
    """Each adds one to a number without any care for the others."""
    path, number = tmp_path / ".staging" / "a.lock", tmp_path / "number"
    foreign(path, host=own_host(path), pid=dead_pid())
    number.write_text("0")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from wsi_pipeline.locking import Lock\n"
        "number = Path(sys.argv[2])\n"
        "for _ in range(10):\n"
        "    with Lock(Path(sys.argv[1]), 2.0):\n"
        "        found = int(number.read_text()); time.sleep(0.002)\n"
        "        number.write_text(str(found + 1))\n"
    )
    command = [sys.executable, "-c", code, path, number]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert number.read_text() == "30"


@pytest.mark.parametrize("alive", [False, True])
def test_what_the_dead_left_is_removed_unless_others_are_at_work(tmp_path, alive):
    staging = tmp_path / ".staging"
    host = own_host(staging / "a.lock")
    foreign(staging / "dead.lock", host=host, pid=dead_pid())
    (staging / "room").mkdir()
    if alive:
        foreign(staging / "other.lock")
    with Lock(staging / "report.lock") as lock:
        clear_dead(staging)
        lock.check()
        names = {path.name for path in staging.iterdir()}
    kept = {"dead.lock", "room", "other.lock"} if alive else set()
    assert names == kept | {"report.lock"}
