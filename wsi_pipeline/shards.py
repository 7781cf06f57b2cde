"""Writes the chunks of a block: one shard per level, or one file per chunk.

The inverse is zarr's: a plain `zarr.open_array` reads what is written here.
"""

from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout

_ABSENT = 2**64 - 1


class BlockLevel:
    """A block's share of one level, chunk by chunk.

    Parameters
    ----------
    path : Path
        Folder of the level's array.
    layout : Layout
        How it lies on disk.
    level : int
        Its index.
    box : Box
        The share, on the level's grid; it starts at a shard's corner and is no larger
        than a shard.

    Notes
    -----
    Memory: the compressed shard (at most the pixels of the share).

    References
    ----------
    Zarr v3 codec "sharding_indexed", index at the end; Zarr v2 chunk keys with "/".
    """

    def __init__(self, path: Path, layout: Layout, level: int, box: Box) -> None:
        self._path = path
        self._layout = layout
        self._codec = layout.codec_of(level)
        self._corner = box.x, box.y
        self._side = layout.shard_px(level)
        across = self._side // layout.chunk_px
        self._index = np.full((across, across, 2), _ABSENT, np.uint64)
        self._parts: list[bytes] = []
        self._size = 0
        self._written: list[Path] = []

    def put(self, x: int, y: int, planes: NDArray[np.uint8]) -> None:
        """Compress the chunk whose corner is (x, y) on the level's grid.

        Parameters
        ----------
        planes : (3, h, w) uint8 array
            A whole chunk, or less at the image's right and lower edge.
        """
        side = self._layout.chunk_px
        planes = np.ascontiguousarray(planes)
        _, h, w = planes.shape
        if (h, w) != (side, side):
            missing = ((0, 0), (0, side - h), (0, side - w))
            planes = np.pad(planes, missing, mode=self._codec.padding)  # type: ignore[call-overload]  # one of two names that NumPy knows
        if self._layout.version == "0.5":
            self.put_encoded(x, y, self._codec.encode(planes))
            return
        for colour, plane in enumerate(planes):
            file = self._path / str(colour) / str(y // side) / str(x // side)
            self._write(file, [self._codec.encode(plane)])

    def put_encoded(self, x: int, y: int, data: bytes) -> None:
        """Add a chunk of the shard that is compressed already."""
        side = self._layout.chunk_px
        row, column = (y - self._corner[1]) // side, (x - self._corner[0]) // side
        self._index[row, column] = self._size, len(data)
        self._parts.append(data)
        self._size += len(data)

    def finish(self) -> list[Path]:
        """Write the shard; returns the files written, not yet flushed to the disk."""
        if self._layout.version == "0.5":
            index = self._index.astype("<u8").tobytes()
            check = google_crc32c.value(index).to_bytes(4, "little")
            x, y = self._corner
            key = f"c/0/{y // self._side}/{x // self._side}"
            self._write(self._path / key, [*self._parts, index, check])
            self._parts.clear()
        return self._written

    def _write(self, file: Path, parts: list[bytes]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb", buffering=0) as stream:
            for part in parts:
                stream.write(part)
        self._written.append(file)
