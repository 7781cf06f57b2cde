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
from wsi_pipeline.tiling.sources import Source, Tiles


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
    Memory: one piece of the source with its reductions and two chunks per level; less
    than 30 MB, 60 MB where a slide is read in pieces of 2048 px.
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
        whole = block.scaled_down(2 ** (last - first))
        for box in whole.blocks(filler.span_px(last)):
            filler.fill(last, box)
    return [file for share in shares.values() for file in share.files]


class _Filler:
    """Makes boxes of a level from those below; `shares` go from fine to coarse."""

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

    def span_px(self, level: int) -> int:
        """Side of what is made at once: a piece and its reductions, then a chunk."""
        return max(self._chunk_px, self._source.piece_px >> (level - self._first))

    def fill(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Write the chunks of a box and all that it is made of; returns its pixels."""
        copies: Tiles = {}
        if level == self._first:
            planes, copies = self._source.read(box)
        else:
            planes = np.empty((3, box.h, box.w), np.uint8)
            width, height = self._levels[level - 1].size_px
            span = self.span_px(level - 1)
            for y in range(box.y * 2, min(box.bottom * 2, height), span):
                for x in range(box.x * 2, min(box.right * 2, width), span):
                    part = Box(x, y, min(span, width - x), min(span, height - y))
                    across, down = x // 2 - box.x, y // 2 - box.y
                    place = planes[:, down : down + (part.h + 1) // 2]
                    place = place[:, :, across : across + (part.w + 1) // 2]
                    halve(self.fill(level - 1, part), place)
        share, side = self._shares[level], self._chunk_px
        for y in range(0, box.h, side):
            for x in range(0, box.w, side):
                corner = box.x + x, box.y + y
                copied = copies.get(corner)
                if copied is None:
                    share.put(*corner, planes[:, y : y + side, x : x + side])
                else:
                    share.put_encoded(*corner, copied)
        return planes
