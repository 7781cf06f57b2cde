"""Segments regions around chosen patches: Pyramid and Selection to RegionStore."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import SegmentOptions
from wsi_pipeline.errors import ModelError
from wsi_pipeline.filling import FilledStore
from wsi_pipeline.geometry import Box
from wsi_pipeline.models.cards import ModelFolder, SegmenterCard
from wsi_pipeline.models.segmenting import (
    COARSER_LEVELS,
    RegionSegmenter,
    open_segmenter,
)
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import (
    COARSE,
    DETAIL,
    RegionPrediction,
    Selection,
    Tissue,
)

_READERS = 2
_COARSEST = 2.0
"""How much coarser than the model's pixels the pyramid's base may be: one tap."""


def segment_regions(
    pyramid: Pyramid,
    selection: Selection,
    tissue: Tissue,
    model: ModelFolder,
    store_path: Path,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008  # frozen
    *,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
    key: str = "",
) -> tuple[RegionStore, dict[str, Any]]:
    """Segment regions of fixed physical size on a lattice over the slide.

    Parameters
    ----------
    pyramid : Pyramid
        The slide's pixels.
    selection : Selection
        Regions that hold a part of a chosen patch are segmented in detail.
    tissue : Tissue
        With coverage "all", tissue outside of them is segmented coarsely: regions of
        twice the side on the same number of nodes.
    model : ModelFolder
        Its segmenter is used.
    store_path : Path
        Folder of the store; appears whole or not at all.
    options : SegmentOptions
        Strategy, coverage, overlap, device, memory.
    progress : callable, optional
        Called with (regions done, regions in all).
    cache : Path, optional
        File of peaks that were measured before, for planning the batch.
    key : str, optional
        Digest of all that decides what is found, but batch, device and precision. With
        it, a call after a kill goes on with the regions that are whole.

    Returns
    -------
    store : RegionStore
        Regions in detail first, then coarse ones, each sorted by y, then x. The same
        for every batch size but for the rounding of the nets.
    facts : dict
        What was planned and measured, JSON values.

    Raises
    ------
    ModelError
        If the model folder does not fit, or the pyramid is too coarse for it.
    BudgetError
        If the stated memory does not allow a single region; before a pixel is read.
    PyramidError
        If a region cannot be read: nothing is published, no region is left out.
    ExportError
        If the store cannot be written.

    Notes
    -----
    Memory: the planned batch on the device, four batches of uint8 regions on the host,
    which the budget counts on the CPU.
    """
    side_px = _side_px(pyramid, model.card.need_segmenter())
    with open_segmenter(model, options, side_px, cache=cache) as segmenter:
        plan = _Plan.make(pyramid, selection, tissue, segmenter, side_px, options)
        regions = plan.detail + plan.coarse
        with staged(store_path, key and _mixed(key, segmenter)) as path:
            store = FilledStore(
                path,
                [region.box for region in regions],
                [region.kind for region in regions],
                segmenter.classes,
                (segmenter.nodes, segmenter.nodes),
                lasting=bool(key),
            )
            parts = {
                start: part
                for start, part in _cut(regions, segmenter.batch)
                if start not in store.done
            }
            done = len(regions) - sum(map(len, parts.values()))
            batches = _read_batches(pyramid, list(parts.values()))
            for start, pixels in zip(parts, batches, strict=True):
                rows = _segment(segmenter, parts[start], pixels)
                store.put(start, rows)
                done += len(rows)
                if progress is not None:
                    progress(done, len(regions))
        return RegionStore(store_path), _facts(options, segmenter, plan)


def _mixed(key: str, segmenter: RegionSegmenter) -> str:
    """A key, and what else decides the last digits of what the nets find."""
    parts = (key, segmenter.batch, segmenter.device.type, segmenter.precision)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Lattice:
    """Overlapping square regions over a slide; their cores tile it without overlap.

    Parameters
    ----------
    side_px : int
        Side of a region, level-0 pixels.
    xs, ys : tuple of int
        Left and top edges of the regions, level-0 pixels.
    x_edges, y_edges : arrays of float64
        Borders between cores: halfway through each overlap.
    """

    side_px: int
    xs: tuple[int, ...]
    ys: tuple[int, ...]
    x_edges: NDArray[np.float64]
    y_edges: NDArray[np.float64]

    @classmethod
    def over(
        cls, size_px: tuple[int, int], side_px: int, overlap: float, snap_px: int
    ) -> "Lattice":
        """Spread regions evenly over a slide.

        Parameters
        ----------
        size_px : tuple of int
            (width, height) of level 0. Regions stay inside (but for less than
            `snap_px`) where it is large enough, and hang over it otherwise.
        side_px : int
            Side of a region, a multiple of `snap_px`.
        overlap : float
            Least share of the side that neighbours have in common.
        snap_px : int
            Edges are multiples of it.
        """
        axes = [_starts(length, side_px, overlap, snap_px) for length in size_px]
        xs, ys = axes
        edges = [
            np.array([(a + b + side_px) / 2 for a, b in pairwise(s)]) for s in axes
        ]
        return cls(side_px, xs, ys, *edges)

    def none(self) -> NDArray[np.bool_]:
        """(rows, columns) bool array of no region."""
        return np.zeros((len(self.ys), len(self.xs)), np.bool_)

    def row_of(self, y: NDArray[np.floating]) -> NDArray[np.int64]:
        """Row of the core that holds a level-0 y."""
        return np.searchsorted(self.y_edges, y, side="right")

    def column_of(self, x: NDArray[np.floating]) -> NDArray[np.int64]:
        """Column of the core that holds a level-0 x."""
        return np.searchsorted(self.x_edges, x, side="right")

    def boxes(self, wanted: NDArray[np.bool_]) -> tuple[Box, ...]:
        """Boxes of the wanted regions, sorted by y, then x."""
        side = self.side_px
        return tuple(
            Box(self.xs[column], self.ys[row], side, side)
            for row, column in np.argwhere(wanted)
        )


@dataclass(frozen=True)
class _Region:
    """A region to read: level-0 box, level of the pyramid, and how it is segmented."""

    box: Box
    level: int
    kind: int


@dataclass(frozen=True)
class _Plan:
    """Which regions are segmented, and how."""

    side_px: int
    detail: tuple[_Region, ...]
    coarse: tuple[_Region, ...]

    @classmethod
    def make(
        cls,
        pyramid: Pyramid,
        selection: Selection,
        tissue: Tissue,
        segmenter: RegionSegmenter,
        side_px: float,
        options: SegmentOptions,
    ) -> "_Plan":
        """Lay both lattices and choose from them."""
        level = segmenter.level_for(side_px)
        snap = int(pyramid.levels[0].downsample) * 2**level
        # the mip levels above the one that is read must divide the region evenly
        unit = 2**COARSER_LEVELS
        side = max(1, round(side_px / 2**level / unit)) * unit * snap
        size = pyramid.source.size_px
        fine = Lattice.over(size, side, options.overlap, snap)
        wanted = choose_detail(fine, selection, size)
        detail = tuple(_Region(box, level, DETAIL) for box in fine.boxes(wanted))
        if options.coverage == "selected":
            return cls(side, detail, ())
        wide = Lattice.over(size, 2 * side, options.overlap, 2 * snap)
        rest = choose_coarse(wide, tissue, fine, wanted)
        coarse = (_Region(box, level + 1, COARSE) for box in wide.boxes(rest))
        return cls(side, detail, tuple(coarse))


def choose_detail(
    lattice: Lattice, selection: Selection, size_px: tuple[int, int]
) -> NDArray[np.bool_]:
    """Regions whose core holds a part of a chosen patch: (rows, columns) bool."""
    wanted = lattice.none()
    whole = Box(0, 0, *size_px)
    for patch in np.flatnonzero(selection.chosen):
        box = selection.grid.box(int(patch)).intersect(whole)
        if box.area_px:
            top, bottom = lattice.row_of(np.array([box.y, box.bottom - 1.0]))
            left, right = lattice.column_of(np.array([box.x, box.right - 1.0]))
            wanted[top : bottom + 1, left : right + 1] = True
    return wanted


def choose_coarse(
    lattice: Lattice, tissue: Tissue, fine: Lattice, detail: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Regions whose core holds tissue outside the cores segmented in detail."""
    h, w = tissue.mask.shape
    factor = tissue.downsample
    # both ends of a mask pixel count, so that none is covered in part only
    tops, lefts = np.arange(h) * factor, np.arange(w) * factor
    rows = [fine.row_of(tops + shift) for shift in (0, factor - 1e-6)]
    columns = [fine.column_of(lefts + shift) for shift in (0, factor - 1e-6)]
    left_out = tissue.mask.copy()
    covered = np.ones_like(tissue.mask)
    for row in rows:
        for column in columns:
            covered &= detail[row[:, None], column]
    left_out &= ~covered
    y, x = np.nonzero(left_out)
    wanted = lattice.none()
    for dy in (0, factor - 1e-6):
        for dx in (0, factor - 1e-6):
            cells = lattice.row_of(tops[y] + dy), lattice.column_of(lefts[x] + dx)
            wanted[cells] = True
    return wanted


def _side_px(pyramid: Pyramid, card: SegmenterCard) -> float:
    """Side of a region in pixels of the pyramid's base."""
    mpp = pyramid.scale.mean
    if mpp > card.mpp * _COARSEST:
        raise ModelError(
            f"{pyramid.path}: its base has {mpp:.3g} um/px, the model needs at most "
            f"{card.mpp * _COARSEST:.3g}; tile with --mpp {card.mpp:g}, or choose a "
            "model for coarser slides"
        )
    return card.region_px * card.mpp / mpp


def _starts(length: int, side: int, overlap: float, snap: int) -> tuple[int, ...]:
    """Edges of evenly spread regions along one axis, multiples of `snap`."""
    last = max(0, -(-(length - side) // snap))
    stride = max(1, math.floor(side * (1 - overlap) / snap))
    count = -(-last // stride) + 1
    return tuple(snap * (last * i // max(1, count - 1)) for i in range(count))


def _cut(
    regions: Sequence[_Region], batch: int
) -> Iterator[tuple[int, Sequence[_Region]]]:
    """Yield batches of one level each, with the row at which each begins."""
    start = 0
    # detail and coarse regions lie on different levels and never share a batch
    for kind in (DETAIL, COARSE):
        run = [region for region in regions if region.kind == kind]
        for i in range(0, len(run), max(1, batch)):
            yield start + i, run[i : i + batch]
        start += len(run)


def _read_batches(
    pyramid: Pyramid, parts: Sequence[Sequence[_Region]]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of batches, the next one read ahead."""
    pool = ThreadPoolExecutor(_READERS)
    try:
        ahead = [pool.submit(_read, pyramid, r) for r in parts[0]] if parts else []
        for index in range(len(parts)):
            reads = ahead
            following = parts[index + 1] if index + 1 < len(parts) else []
            ahead = [pool.submit(_read, pyramid, r) for r in following]
            yield np.stack([read.result() for read in reads])
    finally:
        pool.shutdown(cancel_futures=True)


def _read(pyramid: Pyramid, region: _Region) -> NDArray[np.uint8]:
    """Pixels of a region on its level, (3, s, s) uint8; white outside the slide."""
    level = min(region.level, len(pyramid.levels) - 1)
    pixels = pyramid.read_padded(
        region.box.scaled_down(pyramid.levels[level].downsample), level
    )
    for _ in range(region.level - level):
        # a small slide has no such level: 2 x 2 means, as when it was tiled
        c, h, w = pixels.shape
        blocks = pixels.reshape(c, h // 2, 2, w // 2, 2).astype(np.uint16)
        pixels = ((blocks.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8)
    return pixels


def _segment(
    segmenter: RegionSegmenter, part: Sequence[_Region], pixels: NDArray[np.uint8]
) -> list[RegionPrediction]:
    probabilities, grids = segmenter(pixels, part[0].level)
    return [
        RegionPrediction(region.box, values, grid, region.kind)
        for region, values, grid in zip(part, probabilities, grids, strict=True)
    ]


def _facts(
    options: SegmentOptions, segmenter: RegionSegmenter, regions: _Plan
) -> dict[str, Any]:
    """What was planned and measured; only numbers that a second run repeats."""
    peaks = segmenter.report()
    facts: dict[str, Any] = {
        "strategy": options.strategy,
        "coverage": options.coverage,
        "region_side_px": regions.side_px,
        "regions_detail": len(regions.detail),
        "regions_coarse": len(regions.coarse),
        "batch": segmenter.batch,
        "device": segmenter.device.type,
        "precision": segmenter.precision,
        "peak_allocated_bytes": peaks.allocated,
        "peak_reserved_bytes": peaks.reserved,
        "downgrades": [list(step) for step in segmenter.elastic.downgrades],
    }
    plan = segmenter.plan
    if plan is not None:
        facts["budget_bytes"] = plan.budget_bytes
        facts["measured_bytes"] = plan.measured_bytes
        facts["fit"] = {"intercept_bytes": plan.intercept, "slope_bytes": plan.slope}
    return facts
