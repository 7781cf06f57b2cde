"""Where the pixels of a block come from: the slide, or the level below."""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import UnreadableError
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.slide import Slide
from wsi_pipeline.tiling.halving import halve

type Tiles = Mapping[tuple[int, int], bytes | None]
"""Chunks that can be copied, by their corner (x, y) on the level's grid."""


class Source(Protocol):
    """Pixels of the finest level of a round."""

    @property
    def piece_px(self) -> int:
        """Side of what is read at once: a power of two times a chunk."""
        ...

    @property
    def unreadable(self) -> set[Box]:
        """Tiles of the slide that could not be decoded so far, level-0 pixels."""
        ...

    def read(self, box: Box) -> tuple[NDArray[np.uint8], Tiles]:
        """(3, h, w) uint8 of a piece, and what of it can be copied."""
        ...


class SlideSource:
    """The base, read from the slide.

    Parameters
    ----------
    slide : Slide
        The slide.
    factor : int
        Level-0 pixels per pixel of the base, a power of two.
    chunk_px, block_px : int
        Side of a chunk and of a block: pieces lie between them.

    Notes
    -----
    A piece that cannot be decoded is read tile by tile of the slide; what is still bad
    gets the slide's background, and a place in `unreadable`.
    """

    def __init__(self, slide: Slide, factor: int, chunk_px: int, block_px: int) -> None:
        self._slide = slide
        self.unreadable: set[Box] = set()
        self._factor = factor
        self._chunk_px = chunk_px
        self._step_px = max(1, slide.info.read_px // factor)
        self.piece_px = chunk_px
        while self.piece_px * 2 <= min(self._step_px, block_px):
            self.piece_px *= 2

    def read(self, box: Box) -> tuple[NDArray[np.uint8], Tiles]:
        """See `Source.read`."""
        return self.gather(box), {}

    def gather(self, box: Box) -> NDArray[np.uint8]:
        """(3, h, w) pixels of a box of the base, read and reduced step by step."""
        if self._factor == 1:
            return self._read_sound(box)
        out = np.empty((3, box.h, box.w), np.uint8)
        for step in box.blocks(self._step_px):
            pixels = self._read_sound(_finer(step, self._factor, self._slide))
            for _ in range(self._factor.bit_length() - 1):
                pixels = halve(pixels)
            place = step.shift(-box.x, -box.y)
            out[:, place.rows, place.columns] = pixels
        return out

    def _read_sound(self, box: Box) -> NDArray[np.uint8]:
        """Pixels of level 0, background where tiles cannot be decoded."""
        try:
            return self._slide.read_planes(box)
        except UnreadableError:
            return self._each_tile(box, self._slide.read_planes)

    def _each_tile(
        self, box: Box, read: Callable[[Box], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        info = self._slide.info
        out = np.empty((3, box.h, box.w), np.uint8)
        for tile in info.tiles(box):
            part = tile.intersect(box)
            place = part.shift(-box.x, -box.y)
            pixels = out[:, place.rows, place.columns]
            try:
                pixels[:] = read(part)
            except UnreadableError:
                pixels[:] = np.array(info.background, np.uint8)[:, None, None]
                self.unreadable.add(tile)
        return out


class CopiedSource(SlideSource):
    """Level 0, whose chunks are the slide's own JPEG tiles."""

    def read(self, box: Box) -> tuple[NDArray[np.uint8], Tiles]:
        """See `Source.read`."""
        try:
            planes, tiles = self._slide.read_jpeg(box)
        except UnreadableError:
            return self._copy_sound(box)
        side = self._chunk_px
        rows, columns = range(box.y, box.bottom, side), range(box.x, box.right, side)
        corners = [(x, y) for y in rows for x in columns]
        return planes, dict(zip(corners, tiles, strict=True))

    def _copy_sound(self, box: Box) -> tuple[NDArray[np.uint8], Tiles]:
        """Copy the tiles that can be decoded; the others are encoded background."""
        copies: dict[tuple[int, int], bytes | None] = {}

        def copy(tile: Box) -> NDArray[np.uint8]:
            planes, (copies[tile.x, tile.y],) = self._slide.read_jpeg(tile)
            return planes

        return self._each_tile(box, copy), copies


class LevelSource:
    """A coarser level, from the level below, which is on disk.

    Parameters
    ----------
    pyramid : Pyramid
        The pyramid that is being written.
    level : int
        The level to make.
    chunk_px : int
        Side of a chunk.
    """

    def __init__(self, pyramid: Pyramid, level: int, chunk_px: int) -> None:
        self._pyramid = pyramid
        self._level = level
        self.piece_px = chunk_px
        self.unreadable: set[Box] = set()  # what is on disk can be read, or raises

    def read(self, box: Box) -> tuple[NDArray[np.uint8], Tiles]:
        """See `Source.read`."""
        finer = Box(box.x * 2, box.y * 2, box.w * 2, box.h * 2)
        return halve(self._pyramid.read_level(finer, self._level - 1)), {}


def _finer(box: Box, factor: int, slide: Slide) -> Box:
    wide = Box(box.x * factor, box.y * factor, box.w * factor, box.h * factor)
    return slide.info.box.intersect(wide)
