"""Outlines of many objects as flat arrays, with what it takes to go through them."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import shapely
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Points = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True)
class Outlines:
    """Polygons with holes, flat: shapely's ragged arrays, but with open rings.

    Seen with y down, every ring has its object on the right hand: in numbers, shells
    have an area above 0 and holes below 0.

    Parameters
    ----------
    points : (k, 2) int or float64 array
        x, y of the vertices of all rings; the last of a ring leads back to its first.
    rings : (r + 1,) int64 array
        Where each ring starts in `points`.
    polygons : (p + 1,) int64 array
        Where each polygon starts in `rings`; its first ring is the shell.
    objects : (n + 1,) int64 array
        Where each object starts in `polygons`.
    """

    points: Points
    rings: Ints
    polygons: Ints
    objects: Ints

    @classmethod
    def assemble(
        cls,
        points: NDArray[np.int32],
        rings: Ints,
        owner: Ints,
        is_shell: NDArray[np.bool_],
    ) -> Self:
        """Sort rings into polygons, one per object, the same whatever their order.

        Parameters
        ----------
        points, rings
            As above, rings in any order and starting anywhere.
        owner : (r,) int64 array
            Object of each ring, 0 to n - 1; each has one shell.
        is_shell : (r,) bool array

        Notes
        -----
        A ring starts at its first vertex in reading order, holes follow in that order.
        """
        lengths = np.diff(rings)
        key = points[:, 1].astype(np.int64) << 32 | points[:, 0]
        least = per_part(np.minimum, key, rings)
        # a ring passes each of its vertices once
        first = np.flatnonzero(key == np.repeat(least, lengths)) - rings[:-1]
        order = np.lexsort((least, ~is_shell, owner))
        sizes = lengths[order]
        starts = offsets_of(sizes)
        within = np.arange(len(points)) - np.repeat(starts[:-1], sizes)
        turned = (within + np.repeat(first[order], sizes)) % np.repeat(sizes, sizes)
        found = points[np.repeat(rings[:-1][order], sizes) + turned]
        count = int(is_shell.sum())
        polygons = offsets_of(np.bincount(owner, minlength=count))
        return cls(found, starts, polygons, np.arange(count + 1))

    @classmethod
    def of_rings(cls, points: Points, rings: Ints) -> Self:
        """One polygon per ring."""
        each = np.arange(len(rings))
        return cls(points, rings, each, each)

    @classmethod
    def of(cls, geometries: NDArray[np.object_]) -> Self:
        """From Polygons and MultiPolygons, none empty, oriented as above."""
        parts, owner = shapely.get_parts(geometries, return_index=True)
        _, points, (rings, polygons) = shapely.to_ragged_array(parts)
        last = np.zeros(len(points), bool)
        last[np.asarray(rings[1:]) - 1] = True
        opened = np.asarray(rings, np.int64) - np.arange(len(rings))
        objects = offsets_of(np.bincount(owner, minlength=len(geometries)))
        return cls(points[~last], opened, np.asarray(polygons, np.int64), objects)

    def __len__(self) -> int:
        return len(self.objects) - 1

    @property
    def ring_starts(self) -> Ints:
        """(n + 1,) where each object's rings start."""
        return self.polygons[self.objects]

    @property
    def point_starts(self) -> Ints:
        """(n + 1,) where each object's points start."""
        return self.rings[self.ring_starts]

    def to_shapely(self) -> NDArray[np.object_]:
        """(n,) Polygons, or MultiPolygons where an object has several."""
        points, rings = self.closed()
        parts = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON,
            points.astype(np.float64),
            (rings, self.polygons),
        )
        several = np.diff(self.objects) > 1
        made = np.asarray(parts, object)[self.objects[:-1]]
        for index in np.flatnonzero(several).tolist():
            mine = slice(self.objects[index], self.objects[index + 1])
            made[index] = shapely.MultiPolygon(list(parts[mine]))
        return made

    def closed(self) -> tuple[Points, Ints]:
        """Points with each ring's first repeated at its end, and where rings start."""
        firsts = self.points[self.rings[:-1]]
        points = np.insert(self.points, self.rings[1:], firsts, axis=0)
        return points, self.rings + np.arange(len(self.rings))

    def steps(self) -> Points:
        """(k, 2) vector from each point to the next of its ring."""
        following = np.roll(self.points, -1, axis=0)
        following[self.rings[1:] - 1] = self.points[self.rings[:-1]]
        return following - self.points

    def areas(self) -> NDArray[np.float64]:
        """(n,) square pixels, exact for whole numbers."""
        steps = self.steps()
        # between the y axis and the border, at its middle
        swept = (self.points[:, 0] + steps[:, 0] / 2) * steps[:, 1]
        return per_part(np.add, swept, self.point_starts)

    def lengths(self, scale: tuple[float, float]) -> NDArray[np.float64]:
        """(n,) perimeters, holes included, of pixels that are `scale` wide and high."""
        steps = self.steps() * np.array(scale)
        return per_part(np.add, np.hypot(steps[:, 0], steps[:, 1]), self.point_starts)

    def bounds(self) -> Points:
        """(n, 4) left, top, right, bottom."""
        starts = self.point_starts
        low = per_part(np.minimum, self.points, starts)
        return np.concatenate([low, per_part(np.maximum, self.points, starts)], axis=1)

    def hold(self, points: Points) -> NDArray[np.bool_]:
        """(n,) whether any of (q, 2) points lies in each, or on its border."""
        found = np.zeros(len(self), bool)
        tree = shapely.STRtree(np.asarray(shapely.points(points), object))
        found[tree.query(self.to_shapely(), predicate="intersects")[0]] = True
        return found

    def take(self, which: Ints) -> Self:
        """The outlines of some objects."""
        parts, objects = members(self.objects, which)
        rings, polygons = members(self.polygons, parts)
        points, starts = members(self.rings, rings)
        return type(self)(self.points[points], starts, polygons, objects)


def offsets_of(lengths: Ints) -> Ints:
    """(n + 1,) where parts of these lengths start, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def per_part[T: np.generic](
    reduce: np.ufunc, values: NDArray[T], starts: Ints
) -> NDArray[T]:
    """Reduce the values of each part, none empty, that starts where `starts` says."""
    if len(starts) == 1:
        return values[:0]
    return np.asarray(reduce.reduceat(values, starts[:-1], axis=0))


def members(starts: Ints, which: Ints) -> tuple[Ints, Ints]:
    """Indices of the members of some parts, and where each part starts among them.

    Parameters
    ----------
    starts : (n + 1,) int64 array
        Where each part starts.
    which : (k,) int64 array
        Parts, in the wanted order.
    """
    sizes = np.diff(starts)[which]
    offsets = offsets_of(sizes)
    shift = np.repeat(starts[:-1][which] - offsets[:-1], sizes)
    return np.arange(offsets[-1]) + shift, offsets
