"""Keeps two runs off the same folder: a file with host, process and a heartbeat.

A lock is stale when its process is dead, or when it has not stirred for a lease. Both
are seen by watching the file, so that no two clocks have to agree.
"""

import logging
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import orjson

from wsi_pipeline.errors import ExportError
from wsi_pipeline.publishing import make_folder, remove

LEASE_S = 60.0
_BEATS = 6
"""Heartbeats per lease: a machine that stalls for one or two does not lose its lock."""
_log = logging.getLogger(__name__)


class Lock:
    """A lock on what a run writes; a context manager that waits for it.

    Parameters
    ----------
    path : Path
        The lock's file; its folder is made, and removed when it is empty.
    lease_s : float
        Seconds without a heartbeat after which others take a lock over; the same for
        all who use it.

    Notes
    -----
    Where a lease lapses although its run lives (a machine that slept), two runs may
    write for a moment: each publishes whole results only, the same bytes, and `check`
    stops the one that has lost its lock.
    """

    def __init__(self, path: Path, lease_s: float = LEASE_S) -> None:
        self.path, self._lease_s = path, lease_s
        self._content = b""
        self._over = Event()
        self._beat: Thread | None = None
        self._seen: tuple[object, float] = (None, 0.0)

    def acquire(self) -> bool:
        """Take the lock if it is free or stale; False while another run holds it.

        Raises
        ------
        ExportError
            If its file cannot be written.
        """
        if self._beat is not None:
            return True
        token = uuid.uuid4().hex
        content = orjson.dumps({"host": _host(), "pid": os.getpid(), "id": token})
        if not self._create(content):
            stale = self._read()
            if not self._is_stale():
                return False
            aside = self.path.with_name(f"{self.path.name}.{token}")
            try:
                self._put_aside(stale, aside)
            except OSError as error:
                raise ExportError(
                    f"{self.path}: left by a run that died, cannot be removed "
                    f"({error.strerror})"
                ) from error
            if not self._create(content):
                return False
        self._content = content
        self._over.clear()
        self._beat = Thread(target=self._stir, daemon=True)
        self._beat.start()
        return True

    def release(self) -> None:
        """Give the lock back, unless another run has taken it over."""
        self._over.set()
        if self._beat is not None:
            self._beat.join()
            self._beat = None
        with suppress(OSError):  # a lock that stays is a dead one soon
            if self._read() == self._content:
                self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises
        ------
        ExportError
            If another run has taken it over.
        """
        if self._read() != self._content:
            raise ExportError(
                f"{self.path}: another run has taken over, since this one did not "
                f"stir for {self._lease_s:g} s"
            )

    def is_own(self) -> bool:
        """Whether this process holds it."""
        facts = self._facts()
        return facts.get("pid") == os.getpid() and facts.get("host") == _host()

    def owner(self) -> str:
        """Who holds it, in words."""
        facts = self._facts()
        if not facts:
            return "another run"
        return f"process {facts['pid']} on {facts['host'].partition('/')[0]}"

    def __enter__(self) -> Self:
        told = False
        while not self.acquire():
            if not told:
                _log.warning("%s: waits for %s", self.path.stem, self.owner())
                told = True
            time.sleep(self._lease_s / (_BEATS * 4))
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _create(self, content: bytes) -> bool:
        while True:
            make_folder(self.path.parent)
            try:
                with self.path.open("xb") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
            except FileNotFoundError:  # another run has just left, and the folder
                continue
            except OSError as error:
                raise ExportError(
                    f"{self.path}: cannot write ({error.strerror})"
                ) from error
            return True

    def _put_aside(self, stale: bytes, aside: Path) -> None:
        """Remove a stale lock, but not that of another run which was faster."""
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if aside.read_bytes() != stale:
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def _is_stale(self) -> bool:
        """Whether whoever holds the lock is dead, or has not stirred for a lease."""
        try:
            state: object = (self.path.stat().st_mtime_ns, self._read())
        except OSError:
            return False  # it has just been given back
        seen, since = self._seen
        if state != seen:
            self._seen = state, time.monotonic()
        elif time.monotonic() - since > self._lease_s:
            return True
        return self.is_dead()

    def is_dead(self) -> bool:
        """Whether the lock is of a process of this machine that is no more."""
        facts = self._facts()
        if facts.get("host") != _host():
            return False
        try:
            os.kill(facts["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # of another user
            pass
        return False

    def _facts(self) -> dict[str, Any]:
        """Host and pid, where they can be read."""
        try:
            facts = orjson.loads(self._read())
        except orjson.JSONDecodeError:
            return {}
        return facts if isinstance(facts, dict) else {}

    def _stir(self) -> None:
        while not self._over.wait(self._lease_s / _BEATS):
            with suppress(OSError):
                if self._read() == self._content:
                    os.utime(self.path)


def clear_dead(staging: Path) -> None:
    """Remove what killed runs left in a staging folder, unless others are at work.

    Parameters
    ----------
    staging : Path
        Who writes there holds a lock in it, as the caller does.
    """
    found = list(staging.iterdir())  # what comes later is of runs that live
    locks = [Lock(path) for path in found if path.suffix == ".lock"]
    others = [lock for lock in locks if not lock.is_own()]
    if all(lock.is_dead() for lock in others):
        for path in found:
            if path.suffix != ".lock" or not Lock(path).is_own():
                remove(path)


def _host() -> str:
    """Name of the machine, and of the space in which its process numbers count."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}/{space}"
