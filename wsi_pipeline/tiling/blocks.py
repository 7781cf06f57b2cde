"""Fills one block of a pyramid: reads each chunk once, reduces, compresses, writes.

Depth first: four chunks make their parent while they are in the cache.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Level
from wsi_pipeline.layout import Layout
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.shards import BlockLevel
from wsi_pipeline.tiling.halving import halve
from wsi_pipeline.tiling.sources import Source, Tiles
from wsi_pipeline.tiling.unreadable import note_unreadable
from wsi_pipeline.written import Upload, Written


def fill_block(
    source: Source, pyramid: Pyramid, layout: Layout, first: int, block: Box
) -> list[Written | Upload]:
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
    list of Written or Upload
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
        for box in _z_order(whole, filler.span_px(last)):
            filler.fill(last, box)
    noted = note_unreadable(pyramid, block, source.unreadable)
    return [file for share in shares.values() for file in share.files] + noted


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
        for chunk in _z_order(box, side):
            copied = copies.get((chunk.x, chunk.y))
            if copied is None:
                x, y = chunk.x - box.x, chunk.y - box.y
                share.put(chunk.x, chunk.y, planes[:, y : y + side, x : x + side])
            else:
                share.put_encoded(chunk.x, chunk.y, copied)
        return planes


def _z_order(box: Box, side: int) -> Iterator[Box]:
    """Cells of a box in an order that does not depend on how it is cut into pieces."""
    cells = max(-(-box.w // side), -(-box.h // side))
    for row, column in _z_curve(1 << (cells - 1).bit_length()):
        x, y = column * side, row * side
        if x < box.w and y < box.h:
            w, h = min(side, box.w - x), min(side, box.h - y)
            yield Box(box.x + x, box.y + y, w, h)


@functools.cache
def _z_curve(cells: int) -> tuple[tuple[int, int], ...]:
    """(row, column) of a square of cells, quarter by quarter (Morton order)."""
    if cells == 1:
        return ((0, 0),)
    half = cells // 2
    return tuple(
        (row + down, column + across)
        for down in (0, half)
        for across in (0, half)
        for row, column in _z_curve(half)
    )
