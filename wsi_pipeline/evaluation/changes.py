"""Finds the regions that were added or removed, block by block, in bounded memory."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wsi_pipeline.geometry import Box


@dataclass(frozen=True)
class Region:
    """A 4-connected region of one class.

    Parameters
    ----------
    value : int
        Its class.
    pixels : int
        How large it is.
    box : Box
        Around it, on the grid that was compared.
    """

    value: int
    pixels: int
    box: Box


class RegionCounter:
    """Collects the 4-connected regions of equal value of a mask.

    Parameters
    ----------
    width : int
        Of the whole mask, pixels.
    min_pixels : int
        Smaller regions are forgotten.

    Notes
    -----
    Memory: 6 bytes per pixel of a block, a row of the mask, and 60 bytes per region
    that is large enough or touches a block's edge.
    """

    def __init__(self, width: int, min_pixels: int) -> None:
        self._least = min_pixels
        self._rows: list[NDArray[np.int64]] = [np.empty((0, 6), np.int64)]
        self._pairs: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
        self._count = 0
        self._above = np.full((2, width), -1, np.int64)
        self._left = np.empty((2, 0), np.int64)

    def add(self, block: Box, values: NDArray[np.uint8]) -> None:
        """Take the next block of a lattice, row by row; 0 is no region.

        Parameters
        ----------
        block : Box
            Where it lies.
        values : (h, w) uint8 array
        """
        edges = {
            side: np.stack([np.full(values[at].size, -1), values[at].astype(np.int64)])
            for side, at in _EDGES.items()
        }
        for kind in range(1, int(values.max(initial=0)) + 1):
            mine = values == kind
            if mine.any():
                self._take(block, kind, mine, edges)
        if block.y:
            self._match(self._above[:, block.columns], edges["top"])
        if block.x:
            self._match(self._left, edges["left"])
        self._above[:, block.columns] = edges["bottom"]
        self._left = edges["right"]

    def regions(self) -> tuple[Region, ...]:
        """The regions, the largest first."""
        rows, pairs = np.concatenate(self._rows), np.concatenate(self._pairs)
        if not len(rows):
            return ()
        ones = np.ones(len(pairs), np.int8)
        graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), (self._count,) * 2)
        n, owner = connected_components(graph, directed=False)
        pixels = np.bincount(owner, weights=rows[:, 1], minlength=n).astype(np.int64)
        value = np.zeros(n, np.int64)
        value[owner] = rows[:, 0]
        near = np.full((n, 2), np.iinfo(np.int64).max)
        far = np.zeros((n, 2), np.int64)
        np.minimum.at(near, owner, rows[:, 2:4])
        np.maximum.at(far, owner, rows[:, 4:6])
        kept = np.flatnonzero(pixels >= self._least)
        order = kept[np.lexsort((near[kept, 0], near[kept, 1], -pixels[kept]))]
        return tuple(
            Region(int(value[i]), int(pixels[i]), _box(near[i], far[i]))
            for i in order.tolist()
        )

    def _take(
        self,
        block: Box,
        kind: int,
        mine: NDArray[np.bool_],
        edges: dict[str, NDArray[np.int64]],
    ) -> None:
        """Store the pieces of a class that may matter, and name them at the edges."""
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(
            mine.view(np.uint8), connectivity=4
        )
        wanted = stats[:, cv2.CC_STAT_AREA] >= self._least
        for at in _EDGES.values():
            wanted[numbers[at]] = True
        wanted[0] = False  # the rest of the block
        names = np.full(len(stats), -1, np.int64)
        names[wanted] = self._count + np.arange(wanted.sum())
        self._count += int(wanted.sum())
        for side, at in _EDGES.items():
            edges[side][0] = np.where(mine[at], names[numbers[at]], edges[side][0])
        rows = np.empty((int(wanted.sum()), 6), np.int64)
        rows[:, 0] = kind
        rows[:, 1] = stats[wanted, cv2.CC_STAT_AREA]
        near = stats[wanted][:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]]
        rows[:, 2:4] = near + np.array([block.x, block.y])
        size = stats[wanted][:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
        rows[:, 4:6] = rows[:, 2:4] + size
        self._rows.append(rows)

    def _match(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        same = (old[0] >= 0) & (new[0] >= 0) & (old[1] == new[1])
        pairs = np.stack([old[0][same], new[0][same]], axis=1)
        self._pairs.append(np.unique(pairs, axis=0))


_EDGES: dict[str, Any] = {  # Any: what NumPy takes as an index
    "top": np.s_[0],
    "bottom": np.s_[-1],
    "left": np.s_[:, 0],
    "right": np.s_[:, -1],
}


def _box(near: NDArray[np.int64], far: NDArray[np.int64]) -> Box:
    x, y = near.tolist()
    right, bottom = far.tolist()
    return Box(x, y, right - x, bottom - y)
