"""Closes rings: fragments of borders from many blocks, linked to each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.outlines import Ints, offsets_of, per_part
from wsi_pipeline.exporters.pieces import Fragments
from wsi_pipeline.exporters.walks import follow


@dataclass(eq=False)
class Fragment:
    """One of the fragments of a block, linked to the one that begins where it ends.

    Parameters
    ----------
    source : Fragments
        Those of the block.
    index : int
        Its row among them.
    following : Fragment or None
        None as long as it is not known.
    """

    source: Fragments
    index: int
    following: "Fragment | None" = None

    def take_chain(self) -> list["Fragment"]:
        """The ring of this and all that follow; empty the second time."""
        chain: list[Fragment] = []
        fragment: Fragment | None = self
        while fragment is not None and fragment.following is not None:
            chain.append(fragment)
            fragment.following, fragment = None, fragment.following
        return chain

    @property
    def part(self) -> slice:
        """Its vertices among those of the block's fragments."""
        return slice(*self.source.starts[self.index : self.index + 2].tolist())


@dataclass(frozen=True)
class Rings:
    """Rings of several objects.

    Parameters
    ----------
    points : (k, 2) int32 array
        x, y of vertices; the last of a ring leads back to its first.
    starts : (r + 1,) int64 array
        Where each ring starts in them.
    owner : (r,) int64 array
        Object that each belongs to.
    area : (r,) int64 array
        Exact square pixels before simplification; below 0 for holes.
    """

    points: NDArray[np.int32]
    starts: Ints
    owner: Ints
    area: Ints

    @classmethod
    def close(cls, objects: Sequence[Sequence[Fragment]]) -> Self:
        """Rings of the fragments of each object, parted where they meet themselves."""
        chains, owner = [], []
        for number, fragments in enumerate(objects):
            found = [chain for f in fragments if (chain := f.take_chain())]
            chains += found
            owner += [number] * len(found)
        parts = [(f.source, f.part) for chain in chains for f in chain]
        points = _joined([s.points[p] for s, p in parts], np.empty((0, 2), np.int32))
        swept = _joined([s.swept[p] for s, p in parts], np.empty(0, np.int64))
        meets = _joined([s.may_meet[p] for s, p in parts], np.empty(0, bool))
        sizes = [sum(f.part.stop - f.part.start for f in chain) for chain in chains]
        starts = offsets_of(np.array(sizes, np.int64))
        ring = np.repeat(np.array(owner, np.int64), sizes)
        order, starts = _part(points, starts, np.flatnonzero(meets))
        area = per_part(np.add, swept[order], starts)
        return cls(points[order], starts, ring[order[starts[:-1]]], area)

    def straightened(self) -> Self:
        """Without the vertices at which a ring goes straight on."""
        before = np.roll(self.points, 1, axis=0)
        before[self.starts[:-1]] = self.points[self.starts[1:] - 1]
        after = np.roll(self.points, -1, axis=0)
        after[self.starts[1:] - 1] = self.points[self.starts[:-1]]
        # borders of pixels: straight on is the same x or the same y three times
        straight = ((self.points == before) & (self.points == after)).any(axis=1)
        starts = offsets_of(per_part(np.add, (~straight).astype(np.int64), self.starts))
        return replace(self, points=self.points[~straight], starts=starts)

    def first_points(self) -> NDArray[np.int32]:
        """(r, 2) first vertex of each ring in reading order."""
        key = self.points[:, 1].astype(np.int64) << 32 | self.points[:, 0]
        y, x = np.divmod(per_part(np.minimum, key, self.starts), 2**32)
        return np.stack([x, y], axis=1).astype(np.int32)


def _part(points: NDArray[np.int32], starts: Ints, meets: Ints) -> tuple[Ints, Ints]:
    """Part rings where they pass a vertex twice; `meets` are those that may be.

    Returns
    -------
    order : (k,) int array
        The vertices, ring by ring.
    starts : (r + 1,) int64 array
        Where each ring starts in `order`.
    """
    order = np.arange(len(points))
    ring = np.searchsorted(starts, meets, "right")
    x, y = points[meets].T
    by_place = meets[np.lexsort((x, y, ring))]
    one, other = by_place[:-1], by_place[1:]
    twice = (points[one] == points[other]).all(axis=1)
    twice &= np.searchsorted(starts, one, "right") == np.searchsorted(
        starts, other, "right"
    )
    one, other = one[twice], other[twice]
    if not len(one):
        return order, starts
    after = order.astype(np.int32) + 1
    after[starts[1:] - 1] = starts[:-1]
    before = np.empty_like(after)
    before[after] = order
    after[before[one]], after[before[other]] = other, one
    found, starts, _ = follow(after)
    return found.astype(np.int64), starts


def _joined[T: np.generic](parts: list[NDArray[T]], none: NDArray[T]) -> NDArray[T]:
    return np.concatenate([none, *parts])
