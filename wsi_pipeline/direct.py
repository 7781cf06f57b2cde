"""Writes a large new file past the page cache, while the caller computes.

Copying gigabytes into the cache costs a core as much as compressing them does.
"""

import errno
import fcntl
import os
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 4096  # of memory, offsets and sizes, at least the disk's block
_BUFFER_BYTES = 2**20
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)


class DirectFile:
    """A new file, written in order; a context manager.

    Parameters
    ----------
    path : Path
        Its name; what is there is replaced: a task may be run again.
    disk : Executor
        Runs the writes, one at a time.

    Raises
    ------
    OSError
        On any of the calls, if a write before it failed.

    Notes
    -----
    Memory: two buffers of 1 MiB. Where the file system knows no direct writes (tmpfs,
    some network disks, systems other than Linux), the same bytes go through the cache.

    References
    ----------
    open(2), O_DIRECT: memory, offset and length are multiples of the block size.
    """

    def __init__(self, path: Path, disk: Executor) -> None:
        self.path = path
        self._descriptor = _open_new(path)
        self._disk = disk
        self._buffers = [_aligned(_BUFFER_BYTES), _aligned(_BUFFER_BYTES)]
        self._used = 0
        self._size = 0
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if kind is None and self._used:
                padded = -(-self._used // _ALIGNMENT) * _ALIGNMENT
                self._buffers[0][self._used : padded] = 0
                self._send(padded)
            self._wait()
            if kind is None:
                os.ftruncate(self._descriptor, self._size)
        finally:
            os.close(self._descriptor)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._size += len(data)
        rest = np.frombuffer(data, np.uint8)  # its copies release the GIL
        while len(rest):
            part = rest[: _BUFFER_BYTES - self._used]
            self._buffers[0][self._used : self._used + len(part)] = part
            self._used += len(part)
            rest = rest[len(part) :]
            if self._used == _BUFFER_BYTES:
                self._send(_BUFFER_BYTES)

    def _send(self, count: int) -> None:
        """Hand the full buffer to the disk and go on with the other one."""
        self._wait()
        view = memoryview(self._buffers[0][:count])
        self._pending = self._disk.submit(_write_all, self._descriptor, view)
        self._buffers.reverse()
        self._used = 0

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _open_new(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return os.open(path, flags | direct, 0o666)
    except OSError as error:
        if not direct or error.errno not in _REFUSALS:
            raise
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o666)


def _aligned(size: int) -> NDArray[np.uint8]:
    """Memory from the heap, which comes back without the cost of new pages."""
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size]


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        try:
            written = os.write(descriptor, view)
        except OSError as error:
            if error.errno != errno.EINVAL or not _is_direct(descriptor):
                raise
            _leave_direct(descriptor)  # some network disks refuse only the write
            continue
        if written % _ALIGNMENT and _is_direct(descriptor):
            _leave_direct(descriptor)
        view = view[written:]


def _is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))


def _leave_direct(descriptor: int) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
