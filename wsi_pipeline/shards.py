"""Writes the chunks of a block: one shard per level, or one file per chunk.

The inverse is zarr's: a plain `zarr.open_array` reads what is written here.
"""

from concurrent.futures import Executor
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.direct import DirectFile
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout

_ABSENT = 2**64 - 1


class BlockLevel:
    """A block's share of one level, written chunk by chunk; a context manager.

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
    disk : Executor
        Runs the writes beside the work.

    Notes
    -----
    Memory: 2 MiB and one compressed chunk; each is written as it comes.

    References
    ----------
    Zarr v3 codec "sharding_indexed", index at the end; Zarr v2 chunk keys with "/".
    """

    def __init__(
        self, path: Path, layout: Layout, level: int, box: Box, disk: Executor
    ) -> None:
        self._path = path
        self._layout = layout
        self._codec = layout.codec_of(level)
        self._corner = box.x, box.y
        self._side = layout.shard_px(level)
        across = self._side // layout.chunk_px
        self._index = np.full((across, across, 2), _ABSENT, "<u8")
        self._size = 0
        self._disk = disk
        self.files: list[Path] = []
        """Files written, not yet flushed to the disk."""

    def __enter__(self) -> Self:
        if self._layout.version == "0.5":
            x, y = self._corner
            key = f"c/0/{y // self._side}/{x // self._side}"
            self._shard = DirectFile(self._new(key), self._disk)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._layout.version == "0.5":
            with self._shard:
                if kind is None:
                    index = self._index.tobytes()
                    self._shard.write(index)
                    check = google_crc32c.value(index)
                    self._shard.write(check.to_bytes(4, "little"))

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
            key = f"{colour}/{y // side}/{x // side}"
            self._new(key).write_bytes(self._codec.encode(plane))

    def put_encoded(self, x: int, y: int, data: bytes) -> None:
        """Add a chunk of the shard that is compressed already."""
        side = self._layout.chunk_px
        row, column = (y - self._corner[1]) // side, (x - self._corner[0]) // side
        self._index[row, column] = self._size, len(data)
        self._shard.write(data)
        self._size += len(data)

    def _new(self, key: str) -> Path:
        """Path of a new file, in a folder that is there."""
        file = self._path / key
        file.parent.mkdir(parents=True, exist_ok=True)
        self.files.append(file)
        return file
