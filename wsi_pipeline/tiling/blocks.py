"""Fills one block of a pyramid: reads each chunk once, reduces, compresses, writes.

Depth first: four chunks make their parent while they are in the cache.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Level
from wsi_pipeline.layout import Layout
from wsi_pipeline.publishing import Upload
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.shards import BlockLevel
from wsi_pipeline.tiling.halving import halve
from wsi_pipeline.tiling.sources import Source


def fill_block(
    source: Source, pyramid: Pyramid, layout: Layout, first: int, block: Box
) -> list[Path | Upload]:
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
    list of Path or Upload
        Files written, for `settle` to bring home.

    Notes
    -----
    Memory: one chunk per level and one piece of the source; less than 20 MB at 512 px
    chunks, 60 MB where a slide is read in pieces of 2048 px.
    """
    last = min(first + layout.depth, len(pyramid.levels)) - 1
    with ThreadPoolExecutor(1) as disk, ExitStack() as stack:
        shares = {}
        for level in range(first, last + 1):
            folder, part = (
                pyramid.path / str(level),
                block.scaled_down(2 ** (level - first)),
            )
            share = BlockLevel(folder, layout, level, part, disk)
            shares[level] = stack.enter_context(share)
        filler = _Filler(source, layout.chunk_px, pyramid.levels, shares)
        for chunk in block.scaled_down(2 ** (last - first)).blocks(layout.chunk_px):
            filler.fill(last, chunk)
    return [file for share in shares.values() for file in share.files]


class _Filler:
    """Makes chunks from the four below them; `shares` go from fine to coarse."""

    def __init__(
        self,
        source: Source,
        chunk_px: int,
        levels: Sequence[Level],
        shares: Mapping[int, BlockLevel],
    ) -> None:
        self._source = source
        self._chunk_px = chunk_px
        self._levels = levels
        self._shares = shares
        self._first = min(shares)

    def fill(self, level: int, chunk: Box) -> NDArray[np.uint8]:
        """Write a chunk and all that it is made of; returns its pixels."""
        share = self._shares[level]
        if level == self._first:
            planes, copied = self._source.read(chunk)
            if copied is None:
                share.put(chunk.x, chunk.y, planes)
            else:
                share.put_encoded(chunk.x, chunk.y, copied)
            return planes
        planes = np.empty((3, chunk.h, chunk.w), np.uint8)
        side, half = self._chunk_px, self._chunk_px // 2
        width, height = self._levels[level - 1].size_px
        for y in range(chunk.y * 2, min(chunk.bottom * 2, height), side):
            for x in range(chunk.x * 2, min(chunk.right * 2, width), side):
                part = Box(x, y, min(side, width - x), min(side, height - y))
                across, down = x // 2 - chunk.x, y // 2 - chunk.y
                place = planes[:, down : down + half, across : across + half]
                halve(self.fill(level - 1, part), place)
        share.put(chunk.x, chunk.y, planes)
        return planes
