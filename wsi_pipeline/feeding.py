"""Feeds patches to a net: Pyramid and PatchGrid to batches, read block by block.

A block is a shard, or several small ones; the chunks of it that patches touch are
decoded once, and all patches that begin in it are cut from memory.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.chunks import ChunkReader
from wsi_pipeline.geometry import Box
from wsi_pipeline.process import cpu_count
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid

_LARGEST_BLOCK_PX = 4096

type Ids = NDArray[np.int64]
type Pixels = NDArray[np.uint8]
type Batch = tuple[Ids, NDArray[Any]]
"""Ids of k patches, (k,), and what the net takes of them: uint8 pixels, or features."""


class PatchSource(Protocol):
    """Where a selector's batches come from."""

    @property
    def order(self) -> Ids:
        """(n,) ids of all patches in the order in which they are read fastest."""
        ...

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """Yield patches in the order of `ids`, `size` at a time, last a rest."""
        ...

    def facts(self) -> dict[str, Any]:  # Any: JSON values
        """What was read so far, for records."""
        ...


class Reading(NamedTuple):
    """Bytes of pixels: decoded, and the part of it that lies in other blocks."""

    decoded_bytes: int = 0
    strip_bytes: int = 0

    def plus(self, more: "Reading") -> "Reading":
        """Both together."""
        return Reading(
            self.decoded_bytes + more.decoded_bytes, self.strip_bytes + more.strip_bytes
        )


class PyramidSource:
    """Pixels of patches, (k, 3, p, p) uint8; see `PatchSource`.

    Parameters
    ----------
    pyramid : Pyramid
        The slide.
    grid : PatchGrid
        The patches.
    queue_bytes : int
        Memory for pixels: half of it for blocks that are being decoded, half for
        batches that wait. It sets the side of a block and the number of readers.
    readers : int, optional
        Threads; left out, as many as there are CPUs and memory for blocks.

    Notes
    -----
    Memory: `queue_bytes`, or a block of one chunk and three batches where that is more.
    The pixels of a patch are those that `Pyramid.read` gives for it alone, whatever
    the block and the number of readers.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        grid: PatchGrid,
        queue_bytes: int,
        readers: int | None = None,
    ) -> None:
        self._pyramid, self._grid = pyramid, grid
        self._level = pyramid.level_for(grid.mpp)
        self._factor = int(pyramid.levels[self._level].downsample)
        array = pyramid.array(self._level)
        self._chunks = ChunkReader.of(pyramid.path / str(self._level), array)
        self._chunk_px = int(array.chunks[-1])
        self._half = queue_bytes // 2
        self._block_px = self._choose_block(pyramid.shard_px(self._level))
        self._cells = grid.corners // (self._block_px * self._factor)
        blocks = self._half // self._window_bytes(self._block_px)
        self._readers = readers or max(1, min(cpu_count(), blocks))
        self._reading = Reading()
        x, y = self._cells.T
        self.order: Ids = np.lexsort((np.arange(len(grid)), x, y))
        """See `PatchSource.order`: by block, in a block by id."""

    def facts(self) -> dict[str, Any]:  # Any: JSON values
        """See `PatchSource.facts`: how patches were read."""
        return {
            "queue_bytes": 2 * self._half,
            "block_px": self._block_px,
            **self._reading._asdict(),
        }

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """See `PatchSource.batches`.

        Raises
        ------
        PyramidError
            If the pyramid cannot be read.
        """
        runs = self._runs(ids)
        most = self._half // (3 * self._grid.patch_px**2)  # patches that may wait
        ready: dict[int, Pixels] = {}
        waiting: deque[tuple[int, Future[Reading]]] = deque()
        rooms: SimpleQueue[Pixels] = SimpleQueue()
        for _ in range(self._readers):
            rooms.put(np.empty(0, np.uint8))
        read = 0
        with ThreadPoolExecutor(self._readers) as pool:
            try:
                for start in range(0, len(ids), size):
                    stop = min(start + size, len(ids))
                    # the batch before this one is still in use
                    while runs and (
                        runs[0][0] < stop or runs[0][1] <= start + most - size
                    ):
                        first, last = runs.popleft()
                        rows = self._rows(ready, range(first, last), size, len(ids))
                        task = pool.submit(self._fill, ids[first:last], rows, rooms)
                        waiting.append((last, task))
                    while read < stop:
                        read, task = waiting.popleft()
                        self._reading = self._reading.plus(task.result())
                    yield ids[start:stop], ready.pop(start)
            finally:
                for _, task in waiting:
                    task.cancel()

    def _rows(
        self, ready: dict[int, Pixels], wanted: range, size: int, count: int
    ) -> list[Pixels]:
        """Places of patches in batches, (3, p, p) each; makes batches that are new.

        `ready` holds the batches by their first patch.
        """
        side = self._grid.patch_px
        for first in range(wanted[0] // size * size, wanted.stop, size):
            if first not in ready:
                shape = min(size, count - first), 3, side, side
                ready[first] = np.empty(shape, np.uint8)
        return [ready[row // size * size][row % size] for row in wanted]

    def _runs(self, ids: Ids) -> deque[tuple[int, int]]:
        """First and last row of each run of patches of one block."""
        cells = self._cells[ids]
        changes = np.flatnonzero((np.diff(cells, axis=0) != 0).any(axis=1)) + 1
        edges = [0, *changes.tolist(), len(ids)] if len(ids) else []
        return deque(pairwise(edges))

    def _fill(
        self, ids: Ids, rows: list[Pixels], rooms: SimpleQueue[Pixels]
    ) -> Reading:
        """Read patches of one block into rows of batches, each (3, p, p)."""
        grid, room = self._grid, rooms.get()
        try:
            chunks = self._touched(ids)
            box = _hull(chunks)
            if self._chunks is None:
                chunks = [box]
                pixels = self._pyramid.read_level(box, self._level)
            else:
                if room.size < 3 * box.area_px:
                    room = np.empty(self._window_bytes(self._block_px), np.uint8)
                pixels = room[: 3 * box.area_px].reshape(3, box.h, box.w)
                self._chunks.read(chunks, box.x, box.y, pixels)
            window = _Window(self._pyramid, box, pixels)
            size_px = grid.patch_px, grid.patch_px
            for patch, row in zip(ids.tolist(), rows, strict=True):
                row[:] = window.read(grid.box(patch), grid.mpp, size_px)
        finally:
            rooms.put(room)
        x, y = self._cells[ids[0]].tolist()
        side = self._block_px
        return _reading(chunks, Box(x * side, y * side, side, side))

    def _touched(self, ids: Ids) -> list[Box]:
        """Chunks, cut at the image's edge, that some patches touch."""
        w, h = self._pyramid.levels[self._level].size_px
        side = self._chunk_px
        last = np.array([-(-w // side), -(-h // side)]) - 1
        corners = self._grid.corners[ids]
        ends = corners + self._grid.size_px - 1
        starts = np.clip(corners // (side * self._factor), 0, last + 1).tolist()
        stops = np.clip(ends // (side * self._factor), -1, last).tolist()
        places = {
            (y, x)
            for (left, top), (right, bottom) in zip(starts, stops, strict=True)
            for y in range(top, bottom + 1)
            for x in range(left, right + 1)
        }
        image = Box(0, 0, w, h)
        return [
            Box(x * side, y * side, side, side).intersect(image)
            for y, x in sorted(places)
        ]

    def _choose_block(self, shard_px: int) -> int:
        """The largest block whose pixels and patches fit twice in their halves."""
        patch_bytes = 3 * self._grid.patch_px**2
        side = shard_px
        while 2 * side <= _LARGEST_BLOCK_PX:
            side *= 2
        while side // 2 % self._chunk_px == 0:
            cells = self._grid.corners // (side * self._factor)
            counts = np.unique(cells, axis=0, return_counts=True)[1]
            patches = patch_bytes * int(counts.max(initial=0))
            if 2 * max(patches, self._window_bytes(side)) <= self._half:
                break
            side //= 2
        return side

    def _window_bytes(self, block_px: int) -> int:
        """Bytes of a block with the chunks beyond it that its patches may touch."""
        patch_px = -(-self._grid.size_px // self._factor) + 1
        side = block_px + -(-patch_px // self._chunk_px) * self._chunk_px
        w, h = self._pyramid.levels[self._level].size_px
        return 3 * min(side, w) * min(side, h)


class _Window(Pyramid):
    """A pyramid of which one box of a level, (3, h, w), lies in memory."""

    def __init__(self, pyramid: Pyramid, box: Box, pixels: Pixels) -> None:
        self.__dict__.update(vars(pyramid))
        self._box, self._pixels = box, pixels

    def read_level(self, box: Box, level: int) -> Pixels:  # noqa: ARG002  # only one
        """As `Pyramid.read_level`, for boxes inside."""
        local = box.shift(-self._box.x, -self._box.y)
        return self._pixels[:, local.rows, local.columns]


def _hull(boxes: list[Box]) -> Box:
    """The smallest box that holds all."""
    if not boxes:
        return Box(0, 0, 0, 0)
    x, y = min(box.x for box in boxes), min(box.y for box in boxes)
    right, bottom = max(b.right for b in boxes), max(b.bottom for b in boxes)
    return Box(x, y, right - x, bottom - y)


def _reading(chunks: list[Box], block: Box) -> Reading:
    """Bytes of chunks that were read for a block."""
    decoded = sum(chunk.area_px for chunk in chunks)
    inside = sum(chunk.intersect(block).area_px for chunk in chunks)
    return Reading(3 * decoded, 3 * (decoded - inside))
