"""Where regions lie on a raster of pixels, and with which weights they are blended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box
from wsi_pipeline.regions import COARSE, DETAIL

RAMP = 0.125
"""Share of a region's side over which its weight falls towards the border."""

MIN_WEIGHT = 1e-3
"""Weight at a region's border: one region alone still counts there."""

BAND_PX = 128
"""Most rows that are blended at once: bounds the sums of probabilities."""


@dataclass(frozen=True)
class Raster:
    """Pixels whose classes are wanted.

    Parameters
    ----------
    box : Box
        On a grid `step` times coarser than the base that regions are given on.
    step : int
        Base pixels per pixel. The centre of pixel k is ``(k + 0.5) * step - 0.5``.
    """

    box: Box
    step: int = 1


@dataclass(frozen=True)
class Side:
    """A region's columns, or rows, on those of a raster, which count from 0.

    Parameters
    ----------
    first, end : int
        Pixels that share base pixels with the region.
    shift : float
        Centre of pixel 0, base pixels from the region's centre.
    reach : float
        Centre of the region's last base pixel, likewise.
    weights : (end - first,) float32 array
        Raised cosine: 1 inside, MIN_WEIGHT at the border. Those of regions that overlap
        by RAMP of their side sum to 1 up to MIN_WEIGHT.
    """

    first: int
    end: int
    shift: float
    reach: float
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, start: int, length: int, raster: tuple[int, int], step: int) -> "Side":
        """Of a region from base pixel `start` on a raster of (first, count) pixels."""
        origin, count = raster
        first, end = (
            min(max(edge - origin, 0), count)
            for edge in (start // step, -(-(start + length) // step))
        )
        shift = (origin + 0.5) * step - 0.5 - start - (length - 1) / 2
        inside = (origin + np.arange(first, end) + 0.5) * step - start
        inward = np.minimum(inside, length - inside) / max(RAMP * length, 1)
        rise = (1 - np.cos(np.pi * np.clip(inward, 0, 1))) / 2  # centres may be outside
        weights = np.maximum(rise, MIN_WEIGHT).astype(np.float32)
        return cls(first, end, shift, (length - 1) / 2, weights)

    def places(self, pixels: slice, step: int) -> NDArray[np.float64]:
        """Centres of pixels, base pixels from the region's; clipped to its own."""
        places = np.arange(pixels.start, pixels.stop) * step + self.shift
        return np.clip(places, -self.reach, self.reach)

    def weights_of(self, pixels: slice) -> NDArray[np.float32]:
        """Weights of some of the region's pixels."""
        return self.weights[pixels.start - self.first : pixels.stop - self.first]


@dataclass(frozen=True)
class Footprint:
    """A region on a raster.

    Parameters
    ----------
    region : int
        Its number.
    kind : int
        DETAIL or COARSE.
    x, y : Side
        Columns and rows.
    """

    region: int
    kind: int
    x: Side
    y: Side

    @classmethod
    def of(cls, region: int, box: Box, kind: int, raster: Raster) -> "Footprint":
        """Of a region given by its box in base pixels."""
        whole = raster.box
        return cls(
            region,
            kind,
            Side.of(box.x, box.w, (whole.x, whole.w), raster.step),
            Side.of(box.y, box.h, (whole.y, whole.h), raster.step),
        )

    def weigh(self, rows: slice) -> NDArray[np.float32]:
        """Weights in some of its rows, (m, columns) float32."""
        return np.outer(self.y.weights_of(rows), self.x.weights)


@dataclass(frozen=True)
class Part:
    """Columns of a footprint in a band of rows.

    Parameters
    ----------
    footprint : Footprint
    left, right : int
        Columns of the raster.
    own_left, own_right : int
        Those that no other part covers, if any.
    share : (m, W) float32 array or None
        Factor of its weights; None is 1 everywhere.
    """

    footprint: Footprint
    left: int
    right: int
    own_left: int = 0
    own_right: int = 0
    share: NDArray[np.float32] | None = None

    def weigh(self, rows: slice) -> NDArray[np.float32]:
        """Weights of its pixels in the band's rows, (m, columns) float32."""
        columns = slice(self.left, self.right)
        x, y = self.footprint.x, self.footprint.y
        weights = np.outer(y.weights_of(rows), x.weights_of(columns))
        return weights if self.share is None else weights * self.share[:, columns]


@dataclass(frozen=True)
class Band:
    """Rows of a raster that the same regions cover.

    Parameters
    ----------
    rows : slice
    parts : tuple of Part
        Empty where there is no region.
    kinds : int or (m, W) uint8 array
        DETAIL where regions in detail weigh more than coarse ones, else COARSE.
    """

    rows: slice
    parts: tuple[Part, ...]
    kinds: int | NDArray[np.uint8]


def lay_bands(
    boxes: Sequence[Box], kinds: Sequence[int], raster: Raster
) -> Iterator[Band]:
    """Cut a raster into bands, each with the regions on it.

    Parameters
    ----------
    boxes : sequence of Box
        Of the regions, base pixels.
    kinds : sequence of int
        DETAIL or COARSE.
    raster : Raster

    Yields
    ------
    Band
        From top to bottom, BAND_PX rows at most; all rows are in one of them.

    Notes
    -----
    The coarse mean fills what the weights of the regions in detail leave of 1, so a
    coarse region shows through only towards their border: where they leave nothing,
    it has no part.
    """
    prints = [
        Footprint.of(i, box, kind, raster)
        for i, (box, kind) in enumerate(zip(boxes, kinds, strict=True))
    ]
    prints = [p for p in prints if p.x.first < p.x.end and p.y.first < p.y.end]
    height = raster.box.h
    edges = {height, *range(0, height, BAND_PX)}
    edges |= {edge for p in prints for edge in (p.y.first, p.y.end)}
    top = 0
    for bottom in sorted(edges - {0}):
        rows = slice(top, bottom)
        on = [p for p in prints if p.y.first <= top and p.y.end >= bottom]
        yield _lay_band(rows, on, raster.box.w)
        top = bottom


def _lay_band(rows: slice, prints: Sequence[Footprint], width: int) -> Band:
    kinds = {p.kind for p in prints}
    if len(kinds) < 2:
        parts = [Part(p, p.x.first, p.x.end) for p in prints]
        return Band(rows, _separate(parts), kinds.pop() if kinds else DETAIL)
    weights = {
        kind: np.zeros((rows.stop - rows.start, width), np.float32)
        for kind in (DETAIL, COARSE)
    }
    for p in prints:
        weights[p.kind][:, p.x.first : p.x.end] += p.weigh(rows)
    fine, coarse = weights[DETAIL], weights[COARSE]
    left = np.clip(1 - fine, 0, None)
    share = np.divide(left, coarse, out=np.zeros_like(left), where=coarse > 0)
    detailed = (fine >= 0.5) | ((fine > 0) & (coarse == 0))
    seen = (share > 0).any(axis=0)
    parts = [Part(p, p.x.first, p.x.end) for p in prints if p.kind == DETAIL]
    for p in prints:
        if p.kind == COARSE:
            runs = np.flatnonzero(
                np.diff(seen[p.x.first : p.x.end], prepend=False, append=False)
            )
            parts += [
                Part(p, p.x.first + int(a), p.x.first + int(b), share=share)
                for a, b in runs.reshape(-1, 2)
            ]
    return Band(
        rows, _separate(parts), np.where(detailed, DETAIL, COARSE).astype(np.uint8)
    )


def _separate(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Find the columns that each part has for itself, those in one piece."""
    found = []
    for part in parts:
        left, right = part.left, part.right
        for other in parts:
            first, end = max(left, other.left), min(right, other.right)
            if other is part or first >= end:
                continue
            if first == left:
                left = end
            elif end == right:
                right = first
            else:
                right = left
        found.append(replace(part, own_left=left, own_right=max(left, right)))
    return tuple(found)
