"""Joins pieces of objects across the edges of blocks, where their borders cross them.

Blocks come left before right and top before bottom; an object is let go once closed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.measuring import Measured
from wsi_pipeline.exporters.objects import Objects, tally_objects
from wsi_pipeline.exporters.outlines import Ints, Outlines, Points, members, offsets_of
from wsi_pipeline.exporters.pieces import (
    NOBODY,
    SAME,
    BlockTrace,
    Pieces,
    Rules,
)
from wsi_pipeline.exporters.rings import Fragment, Rings
from wsi_pipeline.geometry import Box

_COUNTED = ("value", "pixels", "first", "holes", "filled")
_MEASURED = ("weight", "peak", "score")


@dataclass(frozen=True)
class Traced:
    """Objects that were finished together.

    Parameters
    ----------
    objects : Objects
        Those that are kept.
    tally : (256, 6) int64 array
        Counts of all of them, see `ClassCount`.
    """

    objects: Objects
    tally: Ints


@dataclass
class _Component:
    """What was found of an object; `ends` of its fragments are not joined yet."""

    value: int
    pixels: int
    first: int
    holes: int
    filled: int
    weight: float
    peak: int
    score: float
    ends: int = 0
    closed: list[tuple[NDArray[np.int32], Ints]] = field(default_factory=list)
    fragments: list[Fragment] = field(default_factory=list)

    def take(self, other: "_Component") -> None:
        self.pixels += other.pixels
        self.first = min(self.first, other.first)
        self.holes += other.holes
        self.filled += other.filled
        self.measure(other.weight, other.peak, other.score)
        self.ends += other.ends
        self.closed += other.closed
        self.fragments += other.fragments

    def measure(self, weight: float, peak: int, score: float) -> None:
        """Add what was measured over other pixels."""
        self.weight += weight
        self.peak = max(self.peak, peak)
        self.score = max(self.score, score)


class Joiner:
    """Takes the traces of blocks in order and gives back objects that are complete.

    Parameters
    ----------
    whole : Box
        The mask's grid.
    rules : Rules

    Notes
    -----
    Memory: 8 bytes per pixel of the mask's height, and 30 per vertex of objects that
    are not closed yet.
    """

    def __init__(self, whole: Box, rules: Rules) -> None:
        self._rules = rules
        self._parent: list[int] = []
        self._components: dict[int, _Component] = {}
        # fragments whose predecessor or successor is missing, by the place
        self._begins: dict[int, tuple[int, Fragment]] = {}
        self._ends: dict[int, tuple[int, Fragment]] = {}
        # the piece that goes on to the right in each row, of the last block there
        self._left = np.full(whole.h, NOBODY, np.int64)
        self._starts: list[
            NDArray[np.float64]
        ] = []  # of kept objects that may lie in small holes

    def add(self, block: BlockTrace) -> Iterator[Traced]:
        """Yield the objects that are complete with this block."""
        base = len(self._parent)
        self._begin(block.pieces, base)
        self._connect_rows(block, base)
        fragments = block.pieces.fragments
        for index in range(len(fragments.begin)):
            self._join(Fragment(fragments, index), base)
        roots = {self._find(piece) for piece in range(base, len(self._parent))}
        ready = [root for root in sorted(roots) if not self._components[root].ends]
        outlines = block.objects.outlines
        self._note(outlines.points[outlines.point_starts[:-1]], block.objects.pixels)
        yield Traced(block.objects, block.tally)
        if ready:
            yield self._finish([self._components.pop(root) for root in ready])

    def _begin(self, pieces: Pieces, base: int) -> None:
        """Start a component per piece."""
        columns = (
            *(getattr(pieces, name) for name in _COUNTED),
            *pieces.measured.columns,
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for index, row in enumerate(rows):
            component = _Component(*row)
            low, high = pieces.holes_of[index : index + 2].tolist()
            if low < high:
                rings = pieces.rings[low : high + 1]
                points = pieces.points[rings[0] : rings[-1]]
                component.closed.append((points, np.diff(rings)))
            self._parent.append(base + index)
            self._components[base + index] = component

    def _connect_rows(self, block: BlockTrace, base: int) -> None:
        """Unite pieces that lie beside those of the block on the left."""
        left_row = block.pieces.left_row
        for piece in np.flatnonzero(left_row >= 0).tolist():
            self._unite(base + piece, int(self._left[left_row[piece]]))
        left = self._left[block.box.rows]
        owners, owner = np.unique(left[block.left_rows], return_inverse=True)
        found = block.from_left.grouped(owner, len(owners))
        columns = (column.tolist() for column in (owners, *found.columns))
        for piece, *measured in zip(*columns, strict=True):
            self._components[self._find(piece)].measure(*measured)
        right = np.where(block.at_right >= 0, block.at_right + base, NOBODY)
        self._left[block.box.rows] = np.where(block.at_right == SAME, left, right)

    def _find(self, piece: int) -> int:
        """The piece that stands for all that are united with one."""
        parent = self._parent
        while parent[piece] != piece:
            parent[piece] = parent[parent[piece]]
            piece = parent[piece]
        return piece

    def _unite(self, one: int, other: int) -> int:
        one, other = self._find(one), self._find(other)
        if one != other:
            larger = self._components[one].fragments, self._components[other].fragments
            if len(larger[0]) < len(larger[1]):
                one, other = other, one
            self._parent[other] = one
            self._components[one].take(self._components.pop(other))
        return one

    def _join(self, fragment: Fragment, base: int) -> None:
        """Link a fragment with those before and after it, as far as they are known."""
        source, index = fragment.source, fragment.index
        piece = base + int(source.owner[index])
        component = self._components[self._find(piece)]
        component.fragments.append(fragment)
        component.ends += 2
        begin, end = int(source.begin[index]), int(source.end[index])
        if end in self._begins:
            self._link((piece, fragment), self._begins.pop(end))
        else:
            self._ends[end] = piece, fragment
        if begin in self._ends:
            self._link(self._ends.pop(begin), (piece, fragment))
        else:
            self._begins[begin] = piece, fragment

    def _link(self, one: tuple[int, Fragment], other: tuple[int, Fragment]) -> None:
        one[1].following = other[1]
        self._components[self._unite(one[0], other[0])].ends -= 2

    def _note(self, points: Points, pixels: Ints) -> None:
        """Keep the first vertices of objects that may lie in a small hole."""
        if self._rules.may_fill_objects:
            small = points[pixels < self._rules.min_hole_pixels]
            # the middle of the first pixel, unless that may be simplified away
            shift = 0.0 if self._rules.limit else 0.5
            self._starts.append(small.astype(np.float64) + shift)

    def _finish(self, complete: list[_Component]) -> Traced:
        """Components all of whose fragments are joined."""
        size = np.array([component.pixels for component in complete], np.int64)
        is_kept = size >= self._rules.min_pixels
        kept = [complete[index] for index in np.flatnonzero(is_kept).tolist()]
        rings = Rings.close([component.fragments for component in kept])
        if not self._rules.limit:
            rings = rings.straightened()
        is_shell = rings.area > 0
        self._note(rings.first_points()[is_shell], size[is_kept][rings.owner[is_shell]])
        is_filled = self._is_filled(rings)
        filled = zip(rings.owner[is_filled], rings.area[is_filled], strict=True)
        for owner, area in filled:
            kept[owner].holes += 1
            kept[owner].filled -= int(area)
        columns = (
            np.array([getattr(component, name) for component in complete])
            for name in _COUNTED + _MEASURED
        )
        value, pixels, first, holes, fill, weight, peak, score = columns
        value = value.astype(np.uint8)
        measured = Measured(weight, peak, score).take(is_kept)
        objects = Objects(
            value[is_kept],
            pixels[is_kept],
            fill[is_kept],
            first[is_kept],
            *measured.told(pixels[is_kept]),
            _assemble(rings, ~is_filled, kept),
        )
        return Traced(objects, tally_objects(value, pixels, is_kept, holes, fill))

    def _is_filled(self, rings: Rings) -> NDArray[np.bool_]:
        """(r,) small holes in which no object starts that is kept."""
        is_filled = (rings.area < 0) & (-rings.area < self._rules.min_hole_pixels)
        if self._rules.may_fill_objects and is_filled.any():
            small = np.flatnonzero(is_filled)
            vertices, starts = members(rings.starts, small)
            holes = Outlines.of_rings(rings.points[vertices], starts)
            top, bottom = holes.points[:, 1].min(), holes.points[:, 1].max()
            objects = np.concatenate(self._starts)
            near = (objects[:, 1] >= top) & (objects[:, 1] <= bottom)
            is_filled[small] = ~holes.hold(objects[near])
        return is_filled


def _assemble(
    rings: Rings, which: NDArray[np.bool_], objects: list[_Component]
) -> Outlines:
    """Outlines from some of the rings and the holes that were closed in blocks."""
    vertices, starts = members(rings.starts, np.flatnonzero(which))
    points, sizes = [rings.points[vertices]], [np.diff(starts)]
    owners = [rings.owner[which]]
    for number, component in enumerate(objects):
        for hole_points, hole_sizes in component.closed:
            points.append(hole_points)
            sizes.append(hole_sizes)
            owners.append(np.full(len(hole_sizes), number))
    owner = np.concatenate(owners)
    is_shell = np.zeros(len(owner), bool)
    is_shell[: len(owners[0])] = rings.area[which] > 0
    return Outlines.assemble(
        np.concatenate(points), offsets_of(np.concatenate(sizes)), owner, is_shell
    )
