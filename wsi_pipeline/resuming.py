"""Keeps what a long pass over a slide's patches has found, in case it is killed.

A file of records that are only appended, each with a checksum: a kill can spoil the
last one, which is then left out.
"""

import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ExportError

_HEAD = struct.Struct("<8s32sII")  # kind of file, key, planned batch, channels
_KIND = b"wsisel01"
_RECORD = struct.Struct("<IIII")  # rows, batch in use, bytes of state, crc32 of all


@dataclass(frozen=True)
class Done:
    """What a killed pass had found.

    Parameters
    ----------
    batch : int
        The batch that was planned.
    batch_now : int
        The batch in use at the end, smaller where memory ran out.
    logits : (k, C) float32 array
        Of the first k patches in reading order: whole batches.
    state : bytes
        What the pass carried from batch to batch at that point.
    size_bytes : int
        Length of the file as far as it is whole.
    """

    batch: int
    batch_now: int
    logits: NDArray[np.float32]
    state: bytes
    size_bytes: int


class LogitJournal:
    """A file that a killed pass is resumed from.

    Parameters
    ----------
    path : Path
        The file, in a folder that is there.
    origin : str
        Names the slide and the patches: what was found on others is not used.
    every_s : float
        Seconds of work that a kill may cost.
    """

    def __init__(self, path: Path, origin: str, every_s: float = 5.0) -> None:
        self.path, self.origin, self.every_s = path, origin, every_s
        self._file: BinaryIO | None = None
        self._parts: list[NDArray[np.float32]] = []
        self._last = 0.0

    def load(self, key: bytes) -> Done | None:
        """What was found under a key, if anything.

        Parameters
        ----------
        key : bytes of length 32
            Digest of all that decides the logits, but `origin` and the batch.
        """
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        if len(data) < _HEAD.size:
            return None
        *found, batch, channels = _HEAD.unpack_from(data)
        if found != [_KIND, self._mixed(key)]:
            return None
        parts, state, batch_now, end = [], b"", batch, _HEAD.size
        while end + _RECORD.size <= len(data):
            rows, size, extra, crc = _RECORD.unpack_from(data, end)
            start = end + _RECORD.size
            middle = start + rows * channels * 4
            body = data[start : middle + extra]
            if len(body) < middle - start + extra or crc != _crc(rows, size, body):
                break
            parts.append(np.frombuffer(body, "<f4", rows * channels))
            state, batch_now, end = body[middle - start :], size, middle + extra
        if not parts:
            return None
        logits = np.concatenate(parts).reshape(-1, channels)
        return Done(batch, batch_now, logits, state, end)

    def start(self, key: bytes, channels: int, batch: int, done: Done | None) -> None:
        """Go on behind what was done, or begin anew.

        Raises
        ------
        ExportError
            If the file cannot be written.
        """
        try:
            self._file = self.path.open("r+b" if done else "wb")
            if done:
                self._file.truncate(done.size_bytes)
                self._file.seek(done.size_bytes)
            else:
                head = _HEAD.pack(_KIND, self._mixed(key), batch, channels)
                self._file.write(head)
        except OSError as error:
            raise ExportError(f"{self.path}: cannot write ({error})") from error
        self._last = time.monotonic()

    def add(
        self,
        logits: NDArray[np.float32],
        batch_now: int,
        state: Callable[[], bytes] = bytes,
    ) -> None:
        """Add a batch; what came since the last time is written every few seconds.

        Parameters
        ----------
        logits : (b, C) float32 array
            Of a whole batch; of the rest at the end.
        batch_now : int
            See `Done`.
        state : callable
            Gives the state after this batch; called when it is written.

        Raises
        ------
        ExportError
            If the file cannot be written.
        """
        self._parts.append(logits)
        if time.monotonic() - self._last < self.every_s:
            return
        rows = np.concatenate(self._parts)
        self._parts.clear()
        extra = state()
        body = rows.astype("<f4").tobytes() + extra
        crc = _crc(len(rows), batch_now, body)
        record = _RECORD.pack(len(rows), batch_now, len(extra), crc)
        try:
            assert self._file is not None  # noqa: S101  # narrows the type only
            self._file.write(record + body)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ExportError(f"{self.path}: cannot write ({error})") from error
        self._last = time.monotonic()

    def close(self) -> None:
        """Close the file; what was not written yet is not kept."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove the file: the results that it led to are published."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _mixed(self, key: bytes) -> bytes:
        return hashlib.sha256(key + self.origin.encode()).digest()


def _crc(rows: int, batch_now: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<II", rows, batch_now)))
