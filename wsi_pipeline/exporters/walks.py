"""Walks along the borders of a block's objects: rings, and fragments of rings.

Each walk has its object on the right hand and turns right where it can, so that pixels
which touch at a corner only are apart: 4-connectivity.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from wsi_pipeline.exporters.corners import Corners
from wsi_pipeline.exporters.outlines import Ints, offsets_of

Indices = NDArray[np.int32]


def _turns() -> NDArray[np.int8]:
    """(16, 4) where to go on by a corner's arms and the direction of arrival."""
    table = np.zeros((16, 4), np.int8)
    for arms in range(16):
        for heading in range(4):
            ways = [(heading + turn) % 4 for turn in (1, 0, 3)]
            table[arms, heading] = next((d for d in ways if arms >> d & 1), 0)
    return table


_TURNS = _turns()


@dataclass(frozen=True)
class Walks:
    """Steps from corner to corner, those of one walk after each other.

    Parameters
    ----------
    corner : (m,) int32 array
        Where each step starts.
    heading : (m,) int8 array
        Its direction.
    starts : (r + 1,) int64 array
        Where each walk starts in them.
    is_open : (r,) bool array
        The walk comes from another block and leads into one; else it is a ring.
    of_arm : (4, n) int32 array
        The walk that leaves each corner in each direction, -1 for none.
    """

    corner: Indices
    heading: NDArray[np.int8]
    starts: Ints
    is_open: NDArray[np.bool_]
    of_arm: Indices

    def __len__(self) -> int:
        return len(self.is_open)

    @property
    def of_step(self) -> Ints:
        """(m,) walk of each step."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def turns(self) -> NDArray[np.bool_]:
        """(m,) whether the walk turns where a step starts; true where it is open."""
        before = np.roll(self.heading, 1)
        before[self.starts[:-1]] = self.heading[self.starts[1:] - 1]
        turns = self.heading != before
        turns[self.starts[:-1][self.is_open]] = True
        return np.asarray(turns)

    def ends(self, corners: Corners) -> tuple[Indices, NDArray[np.int8]]:
        """(r,) corner that each walk leads to, and where it goes on from there."""
        last = self.starts[1:] - 1
        corner = corners.toward[self.heading[last], self.corner[last]]
        return corner, _TURNS[corners.arms[corner], self.heading[last]]


def walk_borders(corners: Corners) -> Walks:
    """Walk around all objects of a block.

    A ring that meets itself at a corner is split there, as valid polygons want it: the
    bay behind becomes a hole that touches the ring.

    Parameters
    ----------
    corners : Corners

    Notes
    -----
    Memory: about 60 bytes per step; there are one or two of them per corner.
    """
    heading, corner = (a.astype(np.int32) for a in np.nonzero(corners.inside))
    steps = np.full(corners.inside.shape, -1, np.int32)
    steps[heading, corner] = np.arange(len(corner), dtype=np.int32)
    to = corners.toward[heading, corner]
    after = steps[_TURNS[corners.arms[to], heading], to]
    _part(after, steps, corners.crossing)
    order, starts, is_open = follow(after)
    corner, heading = corner[order], heading[order]
    of_arm = np.full(steps.shape, -1, np.int32)
    of_arm[heading, corner] = np.repeat(np.arange(len(is_open)), np.diff(starts))
    return Walks(corner, heading.astype(np.int8), starts, is_open, of_arm)


def follow(after: Indices) -> tuple[Indices, Ints, NDArray[np.bool_]]:
    """Sort steps into walks.

    Parameters
    ----------
    after : (m,) int32 array
        The step after each; -1 where a walk ends.

    Returns
    -------
    order : (m,) int32 array
        The steps, walk by walk.
    starts : (r + 1,) int64 array
        Where each walk starts in `order`.
    is_open : (r,) bool array
        Walks that end. The others are rings and may start anywhere.
    """
    count = len(after)
    if not count:
        return after, np.zeros(1, np.int64), np.zeros(0, bool)
    goes_on, before = after >= 0, _before(after)
    total, walk = _number_walks(after)
    first = np.empty(total, np.int32)
    first[walk[::-1]] = np.arange(count - 1, -1, -1)
    heads, tails = np.flatnonzero(before < 0), np.flatnonzero(~goes_on)
    first[walk[heads]] = heads
    last = before[first]
    last[walk[tails]] = tails
    # all walks in a row are one path, which SciPy follows in compiled code
    path = after.copy()
    path[last[:-1]] = first[1:]
    goes_on = np.ones(count, bool)
    goes_on[last[-1]] = False
    order = depth_first_order(
        _graph(path, goes_on), first[0], directed=True, return_predecessors=False
    )
    is_open = np.zeros(total, bool)
    is_open[walk[heads]] = True
    return order, offsets_of(np.bincount(walk)), is_open


def _before(after: Indices) -> Indices:
    """(m,) the step before each; -1 where a walk starts."""
    before = np.full(len(after), -1, np.int32)
    goes_on = np.flatnonzero(after >= 0)
    before[after[goes_on]] = goes_on
    return before


def _number_walks(after: Indices) -> tuple[int, Indices]:
    """How many walks there are, and (m,) the walk of each step."""
    count, walk = connected_components(_graph(after, after >= 0), directed=False)
    return count, walk


def _graph(after: Indices, goes_on: NDArray[np.bool_]) -> csr_array:
    """The graph of steps in which each leads to the one after it."""
    ends = offsets_of(goes_on.astype(np.int64)).astype(np.int32)
    targets = after[goes_on]
    return csr_array((np.ones(len(targets)), targets, ends), (len(after), len(after)))


def _part(after: Indices, steps: Indices, crossing: NDArray[np.bool_]) -> None:
    """Part walks, in place, where they meet themselves.

    They do so on one side only, so that all partings are independent of each other: as
    chords of the ring, no two cross.
    """
    if not crossing.any():
        return
    before, (_, walk) = _before(after), _number_walks(after)
    for way in (0, 1):  # leaving right or left, down or up
        one, other = steps[way::2, crossing[way]]
        both = (one >= 0) & (other >= 0)  # not at the edge of the block
        one, other = one[both], other[both]
        meet = walk[one] == walk[other]
        one, other = one[meet], other[meet]
        after[before[one]], after[before[other]] = other, one
