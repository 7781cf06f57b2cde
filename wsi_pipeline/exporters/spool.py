"""Keeps parts of a file on the disk until their order is known."""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import numpy as np

_PIECE_BYTES = 1 << 20


class Spool:
    """Parts of a file, sorted by two numbers; a context manager.

    Parameters
    ----------
    folder : Path
        Where there is room for all of them; nothing is left there.

    Notes
    -----
    Memory: 32 bytes per part, and 1 MiB.
    """

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  # closed on exit
        self._rows = array("q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, major: int, minor: int, pieces: Iterable[bytes]) -> None:
        """Append a part; parts with the same numbers stay in this order."""
        start = self._file.tell()
        self._file.writelines(pieces)
        self._rows.extend((major, minor, start, self._file.tell() - start))

    def parts(self) -> Iterator[Iterable[bytes]]:
        """Each part in pieces, in their order."""
        self._file.flush()
        rows = np.array(self._rows, np.int64).reshape(-1, 4)
        descriptor = self._file.fileno()
        for row in np.lexsort((rows[:, 1], rows[:, 0])):
            start, length = rows[row, 2:].tolist()
            if length <= _PIECE_BYTES:
                yield [os.pread(descriptor, length, start)]
            else:
                yield self._read(start, length)

    def _read(self, start: int, length: int) -> Iterator[bytes]:
        end = start + length
        for at in range(start, end, _PIECE_BYTES):
            yield os.pread(self._file.fileno(), min(_PIECE_BYTES, end - at), at)
