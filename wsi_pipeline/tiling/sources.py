"""Where the pixels of a block come from: the slide, or the level below."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.slide import Slide
from wsi_pipeline.tiling.halving import halve


class Source(Protocol):
    """Pixels of the finest level of a round."""

    def read(self, box: Box) -> tuple[NDArray[np.uint8], bytes | None]:
        """(3, h, w) uint8 of a chunk, and its bytes where they can be copied."""
        ...


class SlideSource:
    """A block of the base, read from the slide in pieces.

    Parameters
    ----------
    slide : Slide
        The slide.
    factor : int
        Level-0 pixels per pixel of the base, a power of two.
    block : Box
        The block, on the base's grid.
    chunk_px : int
        Side of a chunk.

    Notes
    -----
    Memory: one piece of `SlideInfo.read_px` squared, or a chunk if that is larger.
    """

    def __init__(self, slide: Slide, factor: int, block: Box, chunk_px: int) -> None:
        self._slide = slide
        self._factor = factor
        self._block = block
        self._chunk_px = chunk_px
        self._step_px = max(1, slide.info.read_px // factor)
        self._piece_px = chunk_px
        while self._piece_px * 2 <= min(self._step_px, max(block.w, block.h)):
            self._piece_px *= 2
        self._piece = Box(0, 0, 0, 0)
        self._planes = np.empty((3, 0, 0), np.uint8)

    def read(self, box: Box) -> tuple[NDArray[np.uint8], bytes | None]:
        """See `Source.read`."""
        x, y = box.x - self._piece.x, box.y - self._piece.y
        if not (0 <= x < self._piece.w and 0 <= y < self._piece.h):
            self._piece = self._around(box)
            del self._planes  # its memory is in the cache: take it again
            self._planes = self._gather(self._piece)
            x, y = box.x - self._piece.x, box.y - self._piece.y
        return self._planes[:, y : y + box.h, x : x + box.w], None

    def _around(self, box: Box) -> Box:
        """The piece of the lattice that a chunk lies in."""
        side = self._piece_px
        x, y = box.x // side * side, box.y // side * side
        return Box(x, y, side, side).intersect(self._block)

    def _gather(self, box: Box) -> NDArray[np.uint8]:
        """(3, h, w) pixels of a box of the base, read and reduced step by step."""
        if self._factor == 1:
            return self._slide.read_planes(box)
        out = np.empty((3, box.h, box.w), np.uint8)
        for step in box.blocks(self._step_px):
            pixels = self._slide.read_planes(_finer(step, self._factor, self._slide))
            for _ in range(self._factor.bit_length() - 1):
                pixels = halve(pixels)
            place = step.shift(-box.x, -box.y)
            out[:, place.rows, place.columns] = pixels
        return out


class CopiedSource(SlideSource):
    """A block of level 0 whose chunks are the slide's own JPEG tiles."""

    _tiles: Mapping[tuple[int, int], bytes | None]

    def read(self, box: Box) -> tuple[NDArray[np.uint8], bytes | None]:
        """See `Source.read`."""
        planes, _ = super().read(box)
        return planes, self._tiles[box.x, box.y]

    def _gather(self, box: Box) -> NDArray[np.uint8]:
        planes, tiles = self._slide.read_jpeg(box)
        side = self._chunk_px
        rows, columns = range(box.y, box.bottom, side), range(box.x, box.right, side)
        corners = [(x, y) for y in rows for x in columns]
        self._tiles = dict(zip(corners, tiles, strict=True))
        return planes


class LevelSource:
    """A block of a coarser level, from the level below, which is on disk.

    Parameters
    ----------
    pyramid : Pyramid
        The pyramid that is being written.
    level : int
        The level to make.
    """

    def __init__(self, pyramid: Pyramid, level: int) -> None:
        self._pyramid = pyramid
        self._level = level

    def read(self, box: Box) -> tuple[NDArray[np.uint8], bytes | None]:
        """See `Source.read`."""
        finer = Box(box.x * 2, box.y * 2, box.w * 2, box.h * 2)
        return halve(self._pyramid.read_level(finer, self._level - 1)), None


def _finer(box: Box, factor: int, slide: Slide) -> Box:
    wide = Box(box.x * factor, box.y * factor, box.w * factor, box.h * factor)
    return slide.info.box.intersect(wide)
