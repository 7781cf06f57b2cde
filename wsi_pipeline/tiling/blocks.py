"""Fills one block of a pyramid: reads each chunk once, reduces, compresses, writes.

Depth first: four chunks make their parent while they are in the cache.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.shards import BlockLevel
from wsi_pipeline.tiling.halving import halve
from wsi_pipeline.tiling.sources import Source


def fill_block(
    source: Source, pyramid: Pyramid, layout: Layout, first: int, block: Box
) -> list[Path]:
    """Write one block of level `first` and its share of the levels above it.

    Parameters
    ----------
    source : Source
        Pixels of level `first`.
    pyramid : Pyramid
        Where to write.
    layout : Layout
        How its arrays lie on disk.
    first : int
        Finest level of the round.
    block : Box
        On the grid of level `first`.

    Returns
    -------
    list of Path
        Files written, not yet flushed to the disk.

    Notes
    -----
    Memory: one chunk per level and one piece of the source; less than 20 MB at 512 px
    chunks, 60 MB where a slide is read in pieces of 2048 px.
    """
    last = min(first + layout.depth, len(pyramid.levels)) - 1
    with ThreadPoolExecutor(1) as disk, ExitStack() as stack:
        shares = {}
        for level in range(first, last + 1):
            folder, part = pyramid.path / str(level), _above(block, level - first)
            share = BlockLevel(folder, layout, level, part, disk)
            shares[level] = stack.enter_context(share)
        filler = _Filler(source, layout.chunk_px, first, shares)
        for chunk in _above(block, last - first).blocks(layout.chunk_px):
            filler.fill(last, chunk, block)
    return [file for share in shares.values() for file in share.files]


class _Filler:
    def __init__(
        self, source: Source, chunk_px: int, first: int, shares: dict[int, BlockLevel]
    ) -> None:
        self._source = source
        self._chunk_px = chunk_px
        self._first = first
        self._shares = shares

    def fill(self, level: int, chunk: Box, block: Box) -> NDArray[np.uint8]:
        """Write a chunk and all that it is made of; returns its pixels."""
        copied = None
        if level == self._first:
            planes, copied = self._source.read(chunk)
        else:
            planes = np.empty((3, chunk.h, chunk.w), np.uint8)
            whole = _above(block, level - 1 - self._first)
            below = Box(chunk.x * 2, chunk.y * 2, chunk.w * 2, chunk.h * 2)
            for part in below.intersect(whole).blocks(self._chunk_px):
                half = halve(self.fill(level - 1, part, block))
                x, y = part.x // 2 - chunk.x, part.y // 2 - chunk.y
                planes[:, y : y + half.shape[1], x : x + half.shape[2]] = half
        share = self._shares[level]
        if copied is None:
            share.put(chunk.x, chunk.y, planes)
        else:
            share.put_encoded(chunk.x, chunk.y, copied)
        return planes


def _above(block: Box, steps: int) -> Box:
    """A block's share of the level so many steps above, odd edges rounded up."""
    return block.scaled_down(2**steps)
