"""Decides which corners of a block's borders stay when outlines are simplified.

Corners and not outlines: a border that two objects share loses the same on both sides.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.corners import DOWN, LEFT, RIGHT, UP, Corners
from wsi_pipeline.exporters.outlines import Ints, offsets_of, per_part

Indices = NDArray[np.int32]
_NEVER = np.int64(2**62)
_STEP = 4  # from one threshold to the next; 2 takes longer for the same outlines


def simplify(
    corners: Corners, arms: NDArray[np.uint8], limit: int
) -> NDArray[np.bool_]:
    """Take corners away as long as the triangle with both neighbours is small.

    Corners where borders meet, and those at the edge of the block, stay.

    Parameters
    ----------
    corners : Corners
    arms : (n,) uint8 array
        Bit d is set where a border that counts leads in direction d.
    limit : int
        Twice the area of the largest triangle that goes, square pixels.

    Returns
    -------
    (n,) bool array
        Corners that stay; false where no border counts.

    Notes
    -----
    All corners whose triangle is smaller than those of both neighbours go at once. None
    goes whose triangle holds another corner, or whose neighbours have a border between
    them already: so no border ever touches or crosses another, in whole numbers, and
    no object vanishes. Triangles grow from threshold to threshold, so that the order
    is nearly that of the smallest first.

    Memory: 40 bytes per corner, and 50 per row of the triangles looked at.

    References
    ----------
    Visvalingam and Whyatt 1993, line simplification by triangle area.
    """
    borders = _Borders.of(corners, arms, min(limit, 2**31 - 1))
    threshold = 1
    while True:
        while len(small := borders.smallest(threshold)):
            borders.remove(small)
        if threshold >= limit:
            return borders.stays
        threshold = min(threshold * _STEP, limit)


@dataclass
class _Borders:
    """Corners linked to their neighbours; fixed ones to themselves.

    `weight` is twice the area of a corner's triangle above 31 bits that break ties, or
    `_NEVER`; `direct` are pairs of fixed corners with a border and no corner between.
    """

    corners: Corners
    limit: int
    is_fixed: NDArray[np.bool_]
    one: Indices
    other: Indices
    stays: NDArray[np.bool_]
    key: Ints
    tie: Ints
    weight: Ints
    direct: Ints

    @classmethod
    def of(cls, corners: Corners, arms: NDArray[np.uint8], limit: int) -> "_Borders":
        w, h = corners.size_px
        x, y = corners.x, corners.y
        at_edge = (x == 0) | (y == 0) | (x == w) | (y == h)
        is_fixed = (np.bitwise_count(arms) != 2) | at_edge
        index = np.arange(len(corners), dtype=np.int32)
        has = [(arms >> d & 1).astype(bool) & ~is_fixed for d in range(4)]
        one, other = index.copy(), index.copy()
        for heading in (RIGHT, DOWN, LEFT, UP):
            second = has[heading] & (one != index)
            first = has[heading] & ~second
            other[second] = corners.toward[heading, second]
            one[first] = corners.toward[heading, first]
        key = y * np.int64(w + 1) + x
        # on stairs of single pixels every second corner, else as if by lot; the product
        # with an odd number is another for each key
        parity = (x + y).astype(np.int64) & 1
        tie = parity << 30 | (key * 0x27D4EB2F & 0x3FFFFFFF)
        borders = cls(
            corners,
            limit,
            is_fixed,
            one,
            other,
            arms > 0,
            key,
            tie,
            np.full(len(corners), _NEVER),
            np.empty(0, np.int64),
        )
        ends = []
        for heading in (RIGHT, DOWN):
            here = np.flatnonzero(is_fixed & (arms >> heading & 1).astype(bool))
            there = corners.toward[heading, here]
            far = is_fixed[there]
            ends.append(borders.pairs(here[far], there[far]))
        borders.direct = np.sort(np.concatenate(ends))
        borders.weigh(np.flatnonzero(~is_fixed))
        return borders

    def pairs(self, one: NDArray[np.integer], other: NDArray[np.integer]) -> Ints:
        """A number for each pair of corners, whichever comes first."""
        low, high = np.minimum(one, other), np.maximum(one, other)
        return np.asarray(low.astype(np.int64) * len(self.corners) + high)

    def weigh(self, which: NDArray[np.integer]) -> None:
        """Measure the triangles of corners that are not fixed."""
        x, y = self.corners.x, self.corners.y
        one, other = self.one[which], self.other[which]
        here_x, here_y = x[which], y[which]
        twice = np.abs(
            (here_x - x[one]) * (y[other] - here_y)
            - (x[other] - here_x) * (here_y - y[one])
        ).astype(np.int64)
        weight = twice << 31 | self.tie[which]
        self.weight[which] = np.where(twice <= self.limit, weight, _NEVER)

    def smallest(self, threshold: int) -> NDArray[np.int64]:
        """Corners whose triangle is within the threshold and least among neighbours."""
        found = np.flatnonzero(self.weight < (threshold + 1) << 31)
        weight = self.weight[found]
        least = (weight < self.weight[self.one[found]]) & (
            weight < self.weight[self.other[found]]
        )
        return np.asarray(found[least])

    def remove(self, which: NDArray[np.int64]) -> None:
        """Take away those of some corners, no two neighbours, that can go."""
        goes = ~self._close_something(which)
        wide = np.flatnonzero(goes & (self.weight[which] >= 2 << 31))
        goes[wide] = self._is_empty(which[wide])
        self.weight[which] = _NEVER
        gone = which[goes]
        one, other = self.one[gone], self.other[gone]
        self.stays[gone] = False
        both = self.is_fixed[one] & self.is_fixed[other]
        if both.any():
            new = self.pairs(one[both], other[both])
            self.direct = np.sort(np.concatenate([self.direct, new]))
        for near, far in ((one, other), (other, one)):
            free = ~self.is_fixed[near]
            near, far, removed = near[free], far[free], gone[free]
            first = self.one[near] == removed
            self.one[near[first]] = far[first]
            self.other[near[~first]] = far[~first]
        ends = np.concatenate([one, other])
        self.weigh(ends[~self.is_fixed[ends]])

    def _close_something(self, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a border between the neighbours is there, or comes at once, too."""
        one, other = self.one[which], self.other[which]
        closes = (self.one[one] == other) | (self.other[one] == other)
        closes |= (self.one[other] == one) | (self.other[other] == one)
        goes = np.zeros(len(self.corners), bool)
        goes[which] = True
        for near, far in ((one, other), (other, one)):
            beyond = np.where(self.is_fixed[near], near, self._past(near, which))
            opposite = goes[beyond] & (self._past(beyond, near) == far)
            closes |= opposite & (beyond < which)
        fixed = np.flatnonzero(self.is_fixed[one] & self.is_fixed[other])
        if len(fixed):
            closes[fixed] |= self._meets_fixed(one[fixed], other[fixed])
        return np.asarray(closes)

    def _past(self, near: Indices, start: NDArray[np.integer]) -> Indices:
        """The neighbour of `near` that is not `start`."""
        return np.where(self.one[near] == start, self.other[near], self.one[near])

    def _meets_fixed(self, one: Indices, other: Indices) -> NDArray[np.bool_]:
        """`_close_something` for neighbours that are fixed, and the block's edge."""
        pairs = self.pairs(one, other)
        again = np.ones(len(pairs), bool)
        again[np.unique(pairs, return_index=True)[1]] = False
        there = np.isin(pairs, self.direct)
        # the block behind the edge may draw the same line
        (w, h), x, y = self.corners.size_px, self.corners.x, self.corners.y
        upright = (x[one] == x[other]) & ((x[one] == 0) | (x[one] == w))
        level = (y[one] == y[other]) & ((y[one] == 0) | (y[one] == h))
        return np.asarray(again | there | upright | level)

    def _is_empty(self, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a triangle, its sides included, holds its own three corners only."""
        if not len(which):
            return np.zeros(0, bool)
        ends = np.stack([self.one[which], which, self.other[which]])
        top, middle, bottom = np.sort(ends, axis=0)  # corners are in reading order
        x, y = self.corners.x.astype(np.float64), self.corners.y
        rows = y[bottom] - y[top] + 1
        starts = offsets_of(rows)
        of_row = np.repeat(np.arange(len(which)), rows)
        row = np.arange(starts[-1]) - starts[of_row] + y[top][of_row]

        def across(
            a: NDArray[np.integer], b: NDArray[np.integer]
        ) -> NDArray[np.float64]:
            """Where the line from a to b is in each row; exact where that is whole."""
            run, rise = x[b] - x[a], np.maximum(y[b] - y[a], 1)
            down = row - y[a][of_row]
            return np.asarray(x[a][of_row] + down * run[of_row] / rise[of_row])

        long = across(top, bottom)
        short = np.where(
            row < y[middle][of_row], across(top, middle), across(middle, bottom)
        )
        base = row * (self.corners.size_px[0] + 1)
        first = base + np.ceil(np.minimum(long, short)).astype(np.int64)
        last = base + np.floor(np.maximum(long, short)).astype(np.int64)
        keys = self.key[self.stays]
        inside = np.searchsorted(keys, last, "right") - np.searchsorted(keys, first)
        return np.asarray(per_part(np.add, inside, starts) == 3)
