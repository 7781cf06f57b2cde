"""Turns the pixels of a block into the corners of the borders between its classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RIGHT, DOWN, LEFT, UP = range(4)
STRIP_ROWS = 64
"""Rows at a time, so that what is compared stays in the cache."""


@dataclass(frozen=True)
class Corners:
    """Where borders turn or meet, or reach the edge of the block.

    In reading order, on the lattice of pixels' corners: x from 0 to the block's width,
    y from 0 to its height. Arms lead along borders to the next corner; whoever follows
    one has a pixel on the right hand.

    Parameters
    ----------
    size_px : tuple of int
        (width, height) of the block.
    x, y : (n,) int32 arrays
    arms : (n,) uint8 array
        Bit d is set where an arm leads in direction d.
    toward : (4, n) int32 array
        The corner at the end of each arm.
    inside : (4, n) uint8 array
        The class on the right hand of each arm; 0 where there is no arm, where it is
        background, and where that pixel belongs to another block.
    crossing : (2, n) bool array
        Four arms meet, and the pixels right of the arms right and left, or down and
        up, are of one class and touch there only.
    columns : (n,) int32 array
        The corners column by column, top to bottom.
    """

    size_px: tuple[int, int]
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    arms: NDArray[np.uint8]
    toward: NDArray[np.int32]
    inside: NDArray[np.uint8]
    crossing: NDArray[np.bool_]
    columns: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.x)


def find_corners(pixels: NDArray[np.uint8], most: int) -> Corners | None:
    """Find the corners of a block; None if there are more than `most`.

    Parameters
    ----------
    pixels : (h + 2, w + 2) uint8 array
        The block and the pixels around it; 0 is no object. w, h at most 16384.
    most : int

    Notes
    -----
    Memory: 60 bytes per corner.
    """
    h, w = pixels.shape[0] - 2, pixels.shape[1] - 2
    found = _find(pixels, most)
    if found is None:
        return None
    x, y = found
    around = _around(pixels, x, y)
    nw, ne, sw, se = around
    bits = np.stack([ne != se, se != sw, sw != nw, nw != ne])
    arms = np.packbits(bits, axis=0, bitorder="little")[0]
    left, right, top, bottom = x > 0, x < w, y > 0, y < h
    mine = np.stack([right & bottom, left & bottom, left & top, right & top])
    inside = np.stack([se, sw, nw, ne]) * (bits & mine)
    columns = np.argsort(x.astype(np.uint16), kind="stable").astype(np.int32)
    index = np.arange(len(x), dtype=np.int32)
    below, above = np.zeros((2, len(x)), np.int32)
    below[columns[:-1]] = columns[1:]
    above[columns[1:]] = columns[:-1]
    return Corners(
        (w, h),
        x,
        y,
        arms,
        np.stack([index + 1, below, index - 1, above]),
        inside,
        (arms == 15) & np.stack([nw == se, ne == sw]),
        columns,
    )


def _find(
    pixels: NDArray[np.uint8], most: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """(n,) x and y of the corners, in reading order."""
    rows, columns = pixels.shape[0] - 1, pixels.shape[1] - 1
    room = np.empty((min(STRIP_ROWS, rows), columns), bool)
    found, count = [], 0
    for top in range(0, rows, STRIP_ROWS):
        part = pixels[top : top + STRIP_ROWS + 1]
        upright, level = part[:, 1:] != part[:, :-1], part[1:] != part[:-1]
        is_corner = room[: len(level)]
        # borders that do not go straight on, or cross
        np.not_equal(upright[1:], upright[:-1], out=is_corner)
        is_corner |= level[:, 1:] != level[:, :-1]
        is_corner |= upright[1:] & level[:, 1:]
        # borders that reach the edge of the block
        for edge in (0, -1):
            is_corner[:, edge] |= level[:, edge] | level[:, edge - 1 if edge else 1]
        if top == 0:
            is_corner[0] |= upright[0] | upright[1]
        if top + len(level) == rows:
            is_corner[-1] |= upright[-1] | upright[-2]
        found.append(np.flatnonzero(is_corner) + top * columns)
        count += len(found[-1])
        if count > most:
            return None
    at = np.concatenate(found)
    y, x = np.divmod(at.astype(np.int32), np.int32(columns))
    return x, y


def _around(
    pixels: NDArray[np.uint8], x: NDArray[np.int32], y: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], ...]:
    """The four pixels at each corner: above left, above right, below left and right."""
    flat, width = pixels.reshape(-1), pixels.shape[1]
    at = y * np.int32(width) + x
    return flat[at], flat[at + 1], flat[at + width], flat[at + width + 1]
