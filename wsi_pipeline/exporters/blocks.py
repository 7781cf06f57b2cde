"""Traces the objects of one block of a mask: whole ones, and pieces of larger ones."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.corners import DOWN, Corners, find_corners
from wsi_pipeline.exporters.measuring import Layers, Measured
from wsi_pipeline.exporters.objects import Objects, tally_objects
from wsi_pipeline.exporters.outlines import (
    Ints,
    Outlines,
    members,
    offsets_of,
    per_part,
)
from wsi_pipeline.exporters.pieces import (
    NOBODY,
    SAME,
    BlockTrace,
    Fragments,
    Pieces,
    Rules,
)
from wsi_pipeline.exporters.runs import BEYOND, Runs
from wsi_pipeline.exporters.simplifying import simplify
from wsi_pipeline.exporters.walks import walk_borders
from wsi_pipeline.geometry import Box

Pixels = NDArray[np.uint8]
Flags = NDArray[np.bool_]
_MOST_CORNERS = 2**20  # of a block: 300 MB; one of noise is traced in quarters


def trace_block(
    box: Box,
    pixels: Pixels,
    layers: Layers,
    rules: Rules,
    stride: int,
) -> Iterator[BlockTrace]:
    """Trace a block; one of very many objects in quarters.

    Parameters
    ----------
    box : Box
        Of the mask.
    pixels : (h + 2, w + 2) uint8 array
        The block and the pixels around it; 0 is no object.
    layers : Layers
        What is measured there.
    rules : Rules
    stride : int
        Corners in a row of the mask: its width + 1.

    Yields
    ------
    BlockTrace
        Left before right, top before bottom.

    Notes
    -----
    Memory: 3 bytes per pixel, and 300 per corner of which there are a million at most.
    """
    corners = find_corners(pixels, _MOST_CORNERS)
    if corners is not None:
        yield _Tracer(box, pixels, corners, layers, rules, stride).trace()
        return
    half = -(-max(box.w, box.h) // 2)
    for part in Box(0, 0, box.w, box.h).blocks(half):
        around = pixels[part.y : part.bottom + 2, part.x : part.right + 2]
        place = part.shift(box.x, box.y)
        yield from trace_block(place, around.copy(), layers.crop(part), rules, stride)


class _Tracer:
    """One block: walks, grouped by object, measured, and cut to what is kept."""

    def __init__(
        self,
        box: Box,
        pixels: Pixels,
        corners: Corners,
        layers: Layers,
        rules: Rules,
        stride: int,
    ) -> None:
        self.box, self.rules, self.stride = box, rules, stride
        self.around, self.layers = pixels, layers
        self.corners = corners
        self.walks = walks = walk_borders(corners)
        self.runs = Runs(pixels, corners, walks)
        self.x = corners.x.astype(np.int64) + box.x
        self.y = corners.y.astype(np.int64) + box.y
        to = corners.toward[walks.heading, walks.corner]
        self.swept = self.x[walks.corner] * (self.y[to] - self.y[walks.corner])
        self.area = per_part(np.add, self.swept, walks.starts)
        self._measure()

    def trace(self) -> BlockTrace:
        """See `trace_block`."""
        is_kept = ~self.is_whole | (self.pixels >= self.rules.min_pixels)
        is_filled = self._fill(is_kept)
        group = self.group[is_filled]
        holes = self._sum(group, np.ones(len(group)))
        filled = self._sum(group, -self.area[is_filled])
        shown = is_kept[self.group] & ~is_filled
        self.vertices = np.flatnonzero(self._is_vertex(shown))
        self.vertex_starts = np.searchsorted(self.vertices, self.walks.starts)
        whole = self.is_whole
        return BlockTrace(
            self.box,
            self._objects(np.flatnonzero(whole & is_kept), filled, shown),
            tally_objects(
                self.value[whole],
                self.pixels[whole],
                is_kept[whole],
                holes[whole],
                filled[whole],
            ),
            self._pieces(holes, filled, shown),
            self._at_right(),
            self.left_rows,
            self.from_left,
        )

    def _measure(self) -> None:
        """Class, size, first pixel and what is measured of each group."""
        walks = self.walks
        # the end counts, too: so links lead upwards, and never in a circle
        top = per_part(np.minimum, walks.corner, walks.starts)
        top = np.minimum(top, walks.ends(self.corners)[0])
        self.group, root, self.left_row = self._group(top)
        self.count = len(root)
        at = walks.starts[root]
        self.value = self.corners.inside[walks.heading[at], walks.corner[at]]
        self.pixels = self._sum(self.group, self.area)
        self.first = self.y[top[root]] * self.stride + self.x[top[root]]
        self.is_whole = ~walks.is_open[root] & (self.left_row < 0)
        # those that go on elsewhere, by number
        self.piece = np.where(self.is_whole, NOBODY, np.cumsum(~self.is_whole) - 1)
        self.measured, self.left_rows, self.from_left = self._measured()

    def _group(self, top: NDArray[np.int32]) -> tuple[Ints, Ints, Ints]:
        """Bring walks around the same object together.

        A walk whose first corner has its object on the left lies inside another walk
        around that object: the one at the left end of the pixels there.

        Parameters
        ----------
        top : (r,) int32 array
            First corner of each walk in reading order.

        Returns
        -------
        group : (r,) int64 array
            Group of each walk.
        root : (g,) int64 array
            The walk in each group that lies in no other.
        left_row : (g,) int64 array
            Row of the block in which it goes on to the left, as a row of the mask.
        """
        walks, corners = self.walks, self.corners
        is_top = (walks.corner == top[walks.of_step]) & (walks.heading == DOWN)
        inner = walks.of_step[is_top]
        x, y = (a[top[inner]].astype(np.int64) for a in (corners.x, corners.y))
        outer = self.runs.walk_before(x, y)
        link = np.arange(len(walks))
        is_here = outer != BEYOND
        link[inner[is_here]] = outer[is_here]
        while not np.array_equal(link, following := link[link]):
            link = following
        root, group = np.unique(link, return_inverse=True)
        left_row = np.full(len(walks), -1, np.int64)
        left_row[inner[~is_here]] = y[~is_here] + self.box.y
        return group, root, left_row[root]

    def _measured(self) -> tuple[Measured, Ints, Measured]:
        """Of groups, and of rows that came from the left."""
        if self.layers.is_empty:
            return Measured.nothing(self.count), np.empty(0, int), Measured.nothing(0)
        of_walks, rows, of_rows = self.runs.measure(self.layers)
        return of_walks.grouped(self.group, self.count), rows, of_rows

    def _sum(self, group: Ints, values: Ints | NDArray[np.float64]) -> Ints:
        """(g,) sums per group; exact below 2**53."""
        sums = np.bincount(group, weights=values, minlength=self.count)
        return sums.astype(np.int64)

    def _fill(self, is_kept: Flags) -> Flags:
        """(r,) walks around holes that are filled."""
        area, rules = self.area, self.rules
        is_hole = ~self.walks.is_open & (area < 0)
        small = np.flatnonzero(is_hole & (-area < rules.min_hole_pixels))
        if rules.may_fill_objects:
            within, starts = members(self.walks.starts, small)
            corner = self.walks.corner[within]
            holes = Outlines.of_rings(np.stack([self.x, self.y], 1)[corner], starts)
            y, x = np.divmod(self.first[is_kept & self.is_whole], self.stride)
            small = small[~holes.hold(np.stack([x, y], axis=1) + 0.5)]
        is_filled = np.zeros(len(area), bool)
        is_filled[small] = True
        return is_filled

    def _is_vertex(self, shown: Flags) -> Flags:
        """(m,) steps that start at a vertex of an outline, if it is shown."""
        walks = self.walks
        if not self.rules.limit:
            return walks.turns()
        on_shown = shown[walks.of_step]
        corner, heading = walks.corner[on_shown], walks.heading[on_shown]
        leads = np.zeros((4, len(self.corners)), bool)
        leads[heading, corner] = True
        leads[(heading + 2) % 4, self.corners.toward[heading, corner]] = True
        arms = np.packbits(leads, axis=0, bitorder="little")[0]
        stays = simplify(self.corners, arms, self.rules.limit)
        return stays[walks.corner]

    def _rings(self, which: Ints) -> tuple[NDArray[np.int32], Ints]:
        """Vertices of some walks, and where each walk starts in them."""
        within, starts = members(self.vertex_starts, which)
        corner = self.walks.corner[self.vertices[within]]
        points = np.stack([self.x[corner], self.y[corner]], axis=1)
        return points.astype(np.int32), starts

    def _objects(self, groups: Ints, filled: Ints, shown: Flags) -> Objects:
        """Groups that are whole and kept."""
        number = np.full(self.count, -1, np.int64)
        number[groups] = np.arange(len(groups))
        owner = number[self.group]
        which = np.flatnonzero((owner >= 0) & shown)
        points, rings = self._rings(which)
        return Objects(
            self.value[groups],
            self.pixels[groups],
            filled[groups],
            self.first[groups],
            *self.measured.take(groups).told(self.pixels[groups]),
            Outlines.assemble(points, rings, owner[which], self.area[which] > 0),
        )

    def _pieces(self, holes: Ints, filled: Ints, shown: Flags) -> Pieces:
        """Groups that go on in other blocks."""
        parts = ~self.is_whole
        rings = np.flatnonzero(~self.walks.is_open & shown & parts[self.group])
        owner = self.piece[self.group[rings]]
        points, starts = self._rings(rings[np.argsort(owner, kind="stable")])
        return Pieces(
            self.value[parts],
            self.pixels[parts],
            self.first[parts],
            self.measured.take(parts),
            holes[parts],
            filled[parts],
            self.left_row[parts],
            points,
            starts,
            offsets_of(np.bincount(owner, minlength=int(parts.sum()))),
            self._fragments(),
        )

    def _fragments(self) -> Fragments:
        """Walks that are open, with the names of their ends."""
        walks, corners = self.walks, self.corners
        which = np.flatnonzero(walks.is_open)
        points, starts = self._rings(which)
        mine = np.flatnonzero(walks.is_open[walks.of_step])
        step = self.vertices[members(self.vertex_starts, which)[0]]
        # an open walk starts at a vertex
        swept = np.add.reduceat(self.swept[mine], np.searchsorted(mine, step))
        first = walks.starts[which]
        return Fragments(
            points,
            swept,
            corners.crossing[walks.heading[step] % 2, walks.corner[step]],
            starts,
            self.piece[self.group[which]],
            self._name(walks.corner[first], walks.heading[first]),
            self._name(*walks.ends(corners))[which],
        )

    def _name(self, corner: NDArray[np.int32], heading: NDArray[np.int8]) -> Ints:
        """A number for leaving a corner in a direction."""
        return (self.y[corner] * self.stride + self.x[corner]) * 4 + heading

    def _at_right(self) -> Ints:
        """See `BlockTrace.at_right`."""
        last, following = self.around[1:-1, -2], self.around[1:-1, -1]
        rows = np.flatnonzero((last == following) & (last > 0))
        walk = self.runs.walk_before(np.full(len(rows), self.box.w), rows)
        found = np.full(self.box.h, NOBODY, np.int64)
        here = walk != BEYOND
        found[rows[here]] = self.piece[self.group[walk[here]]]
        found[rows[~here]] = SAME
        return found
