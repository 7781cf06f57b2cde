"""Writes the chunks of a block: one shard per level, or one file per chunk.

The inverse is zarr's: a plain `zarr.open_array` reads what is written here.
"""

import errno
import hashlib
from concurrent.futures import Executor
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.direct import DirectFile
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout
from wsi_pipeline.places import Place
from wsi_pipeline.written import Upload, Written

_ABSENT = 2**64 - 1


class BlockLevel:
    """A block's share of one level, written chunk by chunk; a context manager.

    Parameters
    ----------
    path : Path or UPath
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
    Memory: 2 MiB and one compressed chunk; each is written as it comes. Where the
    folder is remote, all of the share, compressed.

    References
    ----------
    Zarr v3 codec "sharding_indexed", index at the end; Zarr v2 chunk keys with "/".
    """

    def __init__(
        self, path: Place, layout: Layout, level: int, box: Box, disk: Executor
    ) -> None:
        self._path = path
        self._layout = layout
        self._codec = layout.codec_of(level)
        self._corner = box.x, box.y
        self._side = layout.shard_px(level)
        across = self._side // layout.chunk_px
        self._index = np.full((across, across, 2), _ABSENT, "<u8")
        self._size_px = box.h, box.w
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._disk = disk
        self.files: list[Written | Upload] = []
        """Files written, for `settle` to bring home; whole at the end of the block."""

    def __enter__(self) -> Self:
        if self._layout.version == "0.5":
            x, y = self._corner
            lead = "c/0" if self._layout.colours else "c"
            place = self._new(f"{lead}/{y // self._side}/{x // self._side}")
            self._shard = (
                DirectFile(place, self._disk)
                if isinstance(place, Path)
                else Upload(place)
            )
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._layout.version == "0.4":
            return
        if kind is not None:
            self._shard.__exit__(kind, *rest)
            return
        with self._shard:
            self._check_complete()
            index = self._index.tobytes()
            self._append(index)
            self._append(google_crc32c.value(index).to_bytes(4, "little"))
        if isinstance(self._shard, Upload):
            self.files.append(self._shard)
        else:
            digest = self._sha256.hexdigest()
            self.files.append(Written(self._shard.path, self._size, digest))

    def _append(self, data: bytes) -> None:
        self._shard.write(data)
        if isinstance(self._shard, DirectFile):
            self._sha256.update(data)
        self._size += len(data)

    def _check_complete(self) -> None:
        """A chunk that is missing inside a shard would read as black."""
        rows, columns = (-(-side // self._layout.chunk_px) for side in self._size_px)
        missing = int((self._index[:rows, :columns, 0] == _ABSENT).sum())
        if missing:
            raise PyramidError(f"{self._path}: {missing} chunks were not written")

    def put(self, x: int, y: int, planes: NDArray[np.uint8]) -> None:
        """Compress the chunk whose corner is (x, y) on the level's grid.

        Parameters
        ----------
        planes : (3, h, w) or, of a label, (h, w) uint8 array
            A whole chunk, or less at the image's right and lower edge.
        """
        side = self._layout.chunk_px
        planes = np.ascontiguousarray(planes)
        *lead, h, w = planes.shape
        if (h, w) != (side, side):
            missing = (*((0, 0) for _ in lead), (0, side - h), (0, side - w))
            planes = np.pad(planes, missing, mode=self._codec.padding)  # type: ignore[call-overload]  # one of two names that NumPy knows
        if self._layout.version == "0.5" or not self._layout.colours:
            self.put_encoded(x, y, self._codec.encode(planes))
            return
        for colour, plane in enumerate(planes):
            key = f"{colour}/{y // side}/{x // side}"
            self._put_file(key, self._codec.encode(plane))

    def put_encoded(self, x: int, y: int, data: bytes) -> None:
        """Add a chunk that is compressed already: of a shard, or of a label."""
        side = self._layout.chunk_px
        if self._layout.version == "0.4":
            self._put_file(f"{y // side}/{x // side}", data)
            return
        row, column = (y - self._corner[1]) // side, (x - self._corner[0]) // side
        data = self._codec.seal(data)
        self._index[row, column] = self._size, len(data)
        self._append(data)

    def _put_file(self, key: str, data: bytes) -> None:
        place = self._new(key)
        if isinstance(place, Path):
            place.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            self.files.append(Written(place, len(data), digest))
        else:
            upload = Upload(place)
            upload.write(data)
            self.files.append(upload)

    def _new(self, key: str) -> Place:
        """A new name, in a folder that is there."""
        place = self._path / key
        if isinstance(place, Path):
            if not self._path.is_dir():  # never made here: it may be another machine's
                raise FileNotFoundError(
                    errno.ENOENT, "the folder is gone, or this worker cannot see it"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
        return place
