"""Turns the base of a mask into polygons: one per 4-connected component of equal value.

Outlines follow pixel edges exactly, block by block, and are joined across the seams.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label

from wsi_pipeline.classes import CERTAIN, NOT_COMPUTED
from wsi_pipeline.geometry import Box

Read = Callable[[Box], NDArray[np.uint8]]
"""Reads a box of the mask's base as (h, w) uint8."""


@dataclass(frozen=True)
class MaskObject:
    """A 4-connected component of one class.

    Parameters
    ----------
    value : int
        Value in the mask.
    outline : shapely.Polygon
        Pixel edges, valid, holes kept; pixels of the mask's base. Corners of
        neighbouring objects are vertices of this outline too.
    pixels : int
        Pixels of the base in the component.
    confidence : float or None
        Mean probability of the class over these pixels, 0 to 1.
    """

    value: int
    outline: shapely.Polygon
    pixels: int
    confidence: float | None = None


@dataclass(frozen=True)
class ClassCount:
    """What of one class was found, and what was too small to keep.

    Parameters
    ----------
    value : int
        Value in the mask.
    objects, pixels : int
        Components of the class and their pixels, all of them.
    dropped_objects, dropped_pixels : int
        Those among them below the smallest size.
    """

    value: int
    objects: int
    pixels: int
    dropped_objects: int
    dropped_pixels: int


@dataclass(frozen=True)
class Trace:
    """Objects of a mask, sorted by class and first pixel, and counts per class."""

    objects: tuple[MaskObject, ...]
    counts: tuple[ClassCount, ...]


def trace_objects(
    read: Read,
    whole: Box,
    *,
    block_px: int,
    min_pixels: int = 1,
    read_confidence: Read | None = None,
) -> Trace:
    """Find the outline of every object in a mask.

    Parameters
    ----------
    read : callable
        Reads a box of the mask; 0 and 255 are no objects.
    whole : Box
        The mask's grid; starts at (0, 0).
    block_px : int
        Side of a block, pixels. Changes memory and speed, never the result.
    min_pixels : int
        Smaller components are counted, not returned.
    read_confidence : callable, optional
        Reads 254 * probability on the same grid.

    Returns
    -------
    Trace

    Notes
    -----
    Memory: about 25 bytes per pixel of a block (100 MB at 2048 px), one row of pixels
    of the whole mask, and about 100 bytes per vertex of outlines that are kept; small
    pieces inside a block are let go at once.
    """
    pieces = _Pieces(min_pixels)
    seams = _Seams(whole.w)
    for block in whole.blocks(block_px):
        values = read(block)
        confidence = None if read_confidence is None else read_confidence(block)
        names = pieces.add(block, values, confidence)
        seams.add(block, names, np.where(names < 0, 0, values))
    return pieces.join(seams.pairs(), whole)


@dataclass
class _Pieces:
    """Pieces of components, one per block and component; the row number names one."""

    min_pixels: int
    values: list[NDArray[np.int64]] = field(default_factory=list)
    pixels: list[NDArray[np.int64]] = field(default_factory=list)
    sums: list[NDArray[np.float64]] = field(default_factory=list)
    names: list[NDArray[np.int64]] = field(default_factory=list)
    outlines: list[NDArray[np.object_]] = field(default_factory=list)
    count: int = 0
    has_confidence: bool = False

    def add(
        self,
        block: Box,
        values: NDArray[np.uint8],
        confidence: NDArray[np.uint8] | None,
    ) -> NDArray[np.int64]:
        """Trace a block; returns the piece of each pixel, -1 where there is none."""
        self.has_confidence = confidence is not None
        objects = np.where(values == NOT_COMPUTED, 0, values)
        if not objects.any():
            return np.full(values.shape, -1, np.int64)
        labels = _labelled(objects)
        flat = labels.ravel()
        n = int(flat.max(initial=0))
        pixels = np.bincount(flat, minlength=n + 1)[1:]
        value = np.zeros(n + 1, np.int64)
        value[flat] = objects.ravel()
        names = labels.astype(np.int64) + (self.count - 1)
        names[labels == 0] = -1
        self.values.append(value[1:])
        self.pixels.append(pixels)
        if confidence is not None:
            sums = np.bincount(flat, weights=confidence.ravel(), minlength=n + 1)
            self.sums.append(sums[1:])
        wanted = pixels >= self.min_pixels
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            wanted[edge[edge > 0] - 1] = True
        kept = np.flatnonzero(wanted)
        self.names.append(kept + self.count)
        self.outlines.append(_outlines(labels, wanted, block))
        self.count += n
        return names

    def join(self, pairs: NDArray[np.int64], whole: Box) -> Trace:
        """Unite pieces that share a seam, drop the small, sort what is left."""
        if not self.count:
            return Trace((), ())
        values, pixels = _joined(self.values), _joined(self.pixels)
        ones = np.ones(len(pairs), np.int8)
        graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), (self.count, self.count))
        n, component = connected_components(graph, directed=False)
        totals = np.bincount(component, weights=pixels, minlength=n).astype(np.int64)
        value = np.zeros(n, np.int64)
        value[component] = values
        kept = totals >= self.min_pixels
        outlines = self._united(component, kept, n)
        order, polygons = _canonical(np.flatnonzero(kept), outlines[kept], value, whole)
        means: list[float | None] = [None] * n
        if self.has_confidence:
            sums = np.bincount(component, weights=_joined(self.sums), minlength=n)
            means = (sums / (totals * CERTAIN)).tolist()
        objects = tuple(
            MaskObject(int(value[i]), polygon, int(totals[i]), means[i])
            for i, polygon in zip(order, polygons, strict=True)
        )
        return Trace(objects, tuple(_counts(value, totals, kept)))

    def _united(
        self, component: NDArray[np.int64], kept: NDArray[np.bool_], n: int
    ) -> NDArray[np.object_]:
        """Outline per component; None for those not kept."""
        owner = component[_joined(self.names)]
        parts = np.concatenate([np.empty(0, object), *self.outlines])
        parts, owner = parts[kept[owner]], owner[kept[owner]]
        order = np.argsort(owner, kind="stable")
        parts, owner = parts[order], owner[order]
        outlines = np.full(n, None, object)
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        for start, stop in pairwise([*starts.tolist(), len(owner)]):
            group = parts[start:stop]
            # along seams every lattice point is a vertex, so equal edges cancel exactly
            outlines[owner[start]] = (
                group[0] if len(group) == 1 else shapely.coverage_union_all(group)
            )
        return outlines


class _Seams:
    """Remembers the last pixels of each block to find pieces that go on in the next."""

    def __init__(self, width: int) -> None:
        self._above = np.full((2, width), -1, np.int64)
        self._left = np.empty((2, 0), np.int64)
        self._pairs: list[NDArray[np.int64]] = []

    def add(
        self, block: Box, names: NDArray[np.int64], values: NDArray[np.uint8]
    ) -> None:
        if block.y:
            self._match(self._above[:, block.columns], names[0], values[0])
        if block.x:
            self._match(self._left, names[:, 0], values[:, 0])
        self._above[:, block.columns] = names[-1], values[-1]
        self._left = np.stack([names[:, -1], values[:, -1].astype(np.int64)])

    def pairs(self) -> NDArray[np.int64]:
        """(k, 2) names of pieces that belong together."""
        return np.concatenate([np.empty((0, 2), np.int64), *self._pairs])

    def _match(
        self,
        old: NDArray[np.int64],
        names: NDArray[np.int64],
        values: NDArray[np.uint8],
    ) -> None:
        same = (old[0] >= 0) & (names >= 0) & (old[1] == values)
        pairs = np.stack([old[0][same], names[same]], axis=1)
        self._pairs.append(np.unique(pairs, axis=0))


@dataclass(frozen=True)
class _Rings:
    """Rings of axis-parallel polygons, open: the first point is not repeated.

    `points` is (n, 2) int64 x, y; `rings` (r + 1,) offsets into points; `polygons`
    (p + 1,) offsets into rings.
    """

    points: NDArray[np.int64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]

    @classmethod
    def of(cls, polygons: NDArray[np.object_]) -> "_Rings":
        _, points, offsets = shapely.to_ragged_array(list(polygons))
        rings, parts = (np.asarray(o, np.int64) for o in offsets)
        closing = np.ones(len(points), bool)
        closing[rings[1:] - 1] = False
        opened = rings - np.arange(len(rings))
        return cls(np.rint(points[closing]).astype(np.int64), opened, parts)

    def steps(self) -> NDArray[np.int64]:
        """(n, 2) vector from each point to the next of its ring."""
        following = np.roll(self.points, -1, axis=0)
        following[self.rings[1:] - 1] = self.points[self.rings[:-1]]
        return following - self.points

    def turns(self) -> NDArray[np.bool_]:
        """(n,) whether the ring changes direction at the point."""
        out = np.sign(self.steps())
        into = np.roll(out, 1, axis=0)
        into[self.rings[:-1]] = out[self.rings[1:] - 1]
        return np.asarray((out != into).any(axis=1))

    def on_lattice(self) -> "_Rings":
        """The same rings with every pixel corner that they pass as a point."""
        steps = self.steps()
        lengths = np.abs(steps).max(axis=1)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        source = np.repeat(np.arange(len(lengths)), lengths)
        nth = np.arange(ends[-1]) - ends[source]
        points = self.points[source] + np.sign(steps)[source] * nth[:, None]
        return _Rings(points, ends[self.rings], self.polygons)

    def only(self, keep: NDArray[np.bool_]) -> "_Rings":
        """The rings without the other points."""
        before = np.concatenate([[0], np.cumsum(keep)])
        return _Rings(self.points[keep], before[self.rings], self.polygons)

    def to_polygons(self) -> NDArray[np.object_]:
        """Closed shapely polygons."""
        starts = self.rings[:-1]
        points = np.insert(self.points, self.rings[1:], self.points[starts], axis=0)
        offsets = self.rings + np.arange(len(self.rings))
        polygons = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON,
            points.astype(np.float64),
            (offsets, self.polygons),
        )
        return np.asarray(polygons, dtype=object)


def _labelled(values: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number the 4-connected components of equal value from 1; 0 stays 0."""
    numbers = label(values, connectivity=1, background=0)  # type: ignore[no-untyped-call]
    return np.asarray(numbers, np.int32)


def _outlines(
    labels: NDArray[np.int32], wanted: NDArray[np.bool_], block: Box
) -> NDArray[np.object_]:
    """Polygons of the wanted labels of a block, in the order of the labels.

    Vertices are the corners, the corners of neighbours, and all points on a seam.
    """
    if not wanted.any():
        return np.empty(0, object)
    mask = np.concatenate([[False], wanted])[labels]
    rings_of: dict[int, list[list[tuple[float, float]]]] = {}
    for shape, name in shapes(labels, mask=mask, connectivity=4):
        rings_of[int(name)] = shape["coordinates"]
    ordered = [rings_of[name] for name in sorted(rings_of)]
    lengths = [len(ring) - 1 for rings in ordered for ring in rings]
    points = np.array([p for rings in ordered for ring in rings for p in ring[:-1]])
    rings = _Rings(
        points.astype(np.int64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([[0], np.cumsum([len(r) for r in ordered])]).astype(np.int64),
    )
    corner = np.zeros((block.h + 1, block.w + 1), bool)
    corner[rings.points[:, 1], rings.points[:, 0]] = True
    corner[0] = corner[-1] = True
    corner[:, 0] = corner[:, -1] = True
    dense = rings.on_lattice()
    sparse = dense.only(corner[dense.points[:, 1], dense.points[:, 0]])
    moved = sparse.points + np.array([block.x, block.y])
    return _Rings(moved, sparse.rings, sparse.polygons).to_polygons()


def _canonical(
    found: NDArray[np.int64],
    outlines: NDArray[np.object_],
    value: NDArray[np.int64],
    whole: Box,
) -> tuple[list[int], list[shapely.Polygon]]:
    """Components sorted by class and first pixel, and their outlines.

    The same for any size of blocks: points on a straight edge stay only where another
    outline has a corner.
    """
    if not len(found):
        return [], []
    rings = _Rings.of(outlines)
    turns = rings.turns()
    key = rings.points[:, 1] * (whole.w + 1) + rings.points[:, 0]
    keep = turns.copy()
    keep[~turns] = np.isin(key[~turns], key[turns])
    polygons = shapely.normalize(rings.only(keep).to_polygons())
    # the smallest corner in reading order is that of the component's first pixel
    first = np.minimum.reduceat(key, rings.rings[rings.polygons[:-1]])
    order = np.lexsort((first, value[found]))
    return found[order].tolist(), polygons[order].tolist()


def _counts(
    value: NDArray[np.int64], totals: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Iterable[ClassCount]:
    for one in np.unique(value):
        mine = value == one
        lost = mine & ~kept
        yield ClassCount(
            int(one),
            int(mine.sum()),
            int(totals[mine].sum()),
            int(lost.sum()),
            int(totals[lost].sum()),
        )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:  # Any: int64 or float64
    return np.concatenate(parts)
