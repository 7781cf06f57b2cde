"""Turns region predictions into the slide-level mask and its coverage label.

Each region is un-deformed at the pixels of the base, blended with its neighbours, and
the likeliest class is kept. Blocks are independent of each other.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import (
    COVERAGE_CLASSES,
    NOT_COMPUTED,
    SKIPPED,
    UNREADABLE,
    MaskClass,
)
from wsi_pipeline.config import StitchOptions
from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import LABEL_SHARD_PX
from wsi_pipeline.models.blending import Blender
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.footprints import Raster
from wsi_pipeline.models.meshes import MIXED, NO_REGION, OFF_TISSUE
from wsi_pipeline.process import cpu_count, keep_freed_memory
from wsi_pipeline.publishing import discard, staged
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import COARSE, DETAIL, RegionPrediction, Tissue

Progress = Callable[[int, int], None]

CONFIDENCE_STEP = 4
"""Pixels of the base per pixel of the confidence label, a power of two."""


@dataclass(frozen=True)
class Stitched:
    """A slide's published labels.

    Parameters
    ----------
    masks : MaskPyramid
        0..K, and 255 on tissue that no region covers and on tiles of the slide that
        could not be decoded.
    pixels, coverage : dict of int to int
        Pixels of the base per value of the mask, and of its coverage label.
    """

    masks: MaskPyramid
    pixels: dict[int, int]
    coverage: dict[int, int]


def stitch_masks(
    pyramid: Pyramid,
    store: RegionStore,
    tissue: Tissue,
    classes: Sequence[MaskClass],
    mask_path: Path,
    coverage_path: Path,
    options: StitchOptions = StitchOptions(),  # noqa: B008  # frozen
    *,
    facts: dict[str, Any] | None = None,
    confidence_path: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Stitched:
    """Blend all regions of a slide into a mask of its base.

    Parameters
    ----------
    pyramid : Pyramid
        The image; gives the grid of the labels.
    store : RegionStore
        Predictions; deleted at the end unless `options.keep_predictions`.
    tissue : Tissue
        Decides between background and 255 where no region lies.
    classes : sequence of MaskClass
        Channel i of the probabilities is ``classes[i]``.
    mask_path, coverage_path : Path
        Label groups to publish.
    options : StitchOptions
    facts : dict, optional
        JSON values to keep with the labels (model name and sha256).
    confidence_path : Path, optional
        Third label group: 254 * probability of the likeliest class in the middle of
        each CONFIDENCE_STEP x CONFIDENCE_STEP pixels, 255 where no region lies.
    workers : int
        Threads, which change no byte; 0 = one per CPU.
    progress : callable, optional
        Called with (blocks done, blocks in all).

    Returns
    -------
    Stitched

    Raises
    ------
    RegionError
        If regions do not lie on the base's grid, do not fit the classes, or hold
        values that are not finite.
    ConfigError
        If there is no such device.
    ExportError
        If a label cannot be written.

    Notes
    -----
    Weights are raised cosines, the same for a region wherever blocks end. Regions in
    detail hide coarse ones by the sum of their weights, so a coarse region shows
    through only towards the border of those in detail.
    Memory: per worker a block of mask and coverage with its coarser levels (50 MB), and
    what `Blender` states for the regions on the block, 110 for regions of 512 px (60 MB
    for 6 classes and 64 x 64 nodes).
    """
    if len(classes) > MIXED:
        raise RegionError(
            f"at most {MIXED} classes can be stitched, got {len(classes)}"
        )
    keep_freed_memory()
    rows: list[Sequence[MaskClass]] = [classes, COVERAGE_CLASSES, ()]
    paths = (mask_path, coverage_path, confidence_path)
    with ExitStack() as stack:
        labels = [
            _create(stack.enter_context(staged(path)), pyramid, row, facts, step)
            for path, row, step in zip(
                paths, rows, (1, 1, CONFIDENCE_STEP), strict=True
            )
            if path is not None
        ]
        stitcher = _Stitcher(
            store,
            _edges(pyramid, store),
            tissue,
            classes,
            pyramid.levels[0].downsample,
            _base_edges(
                tile.scaled_down(pyramid.levels[0].downsample)
                for tile in pyramid.unreadable
            ),
            labels,
            str(resolve_device(options.device)),
        )
        blocks = list(pyramid.levels[0].box.blocks(LABEL_SHARD_PX))
        counts = _run(stitcher, blocks, workers or cpu_count(), progress)
        for label in labels:
            label.write_coarser(filled=True, workers=workers or cpu_count())
    if not options.keep_predictions:
        discard(store.path)
    pixels, coverage = (
        {int(value): int(row[value]) for value in np.flatnonzero(row)} for row in counts
    )
    return Stitched(MaskPyramid(mask_path), pixels, coverage)


def _create(
    path: Path,
    pyramid: Pyramid,
    classes: Sequence[MaskClass],
    facts: dict[str, Any] | None,
    step: int,
) -> MaskPyramid:
    """An empty label, its base `step` times coarser than that of a pyramid."""
    return MaskPyramid.create(
        path,
        pyramid.source,
        int(pyramid.levels[0].downsample) * step,
        classes,
        facts,
        version=pyramid.version,
        levels=len(pyramid.levels),
        block_px=LABEL_SHARD_PX // step,
    )


def _edges(pyramid: Pyramid, store: RegionStore) -> NDArray[np.int64]:
    """Where regions lie: (n, 4) left, top, right, bottom in pixels of the base."""
    boxes, kinds = store.boxes()
    strange = sorted({int(kind) for kind in kinds} - {DETAIL, COARSE})
    if strange:
        raise RegionError(
            f"{store.path}: regions of kind {strange}, expected {DETAIL} or "
            f"{COARSE}; was every region written? `wsi segment` writes them"
        )
    factor = int(pyramid.levels[0].downsample)
    edges = _base_edges(boxes)
    if (edges % factor).any():
        raise RegionError(
            f"{store.path}: regions must start and end at multiples of {factor} "
            f"level-0 px, the pixels of {pyramid.path}'s base"
        )
    return edges // factor


def _base_edges(boxes: Iterable[Box]) -> NDArray[np.int64]:
    """(n, 4) left, top, right, bottom of boxes."""
    rows = [(box.x, box.y, box.right, box.bottom) for box in boxes]
    return np.array(rows, np.int64).reshape(-1, 4)


def _touching(edges: NDArray[np.int64], box: Box) -> NDArray[np.int64]:
    """Which of (n, 4) edges share pixels with a box."""
    left, top, right, bottom = edges.T
    hit = (left < box.right) & (right > box.x)
    hit &= (top < box.bottom) & (bottom > box.y)
    return np.flatnonzero(hit)


def _run(
    stitcher: "_Stitcher",
    blocks: Sequence[Box],
    workers: int,
    progress: Progress | None,
) -> NDArray[np.int64]:
    """Stitch all blocks; pixels per value of mask and coverage, (2, 256).

    An error waits for the blocks under way: none writes into a folder that is about to
    be removed.
    """
    counts = np.zeros((2, 256), np.int64)
    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(stitcher.stitch, block) for block in blocks]
        for done, future in enumerate(as_completed(futures), 1):
            counts += future.result()
            if progress is not None:
                progress(done, len(blocks))
    finally:
        pool.shutdown(cancel_futures=True)
    return counts


@dataclass(frozen=True)
class _Stitcher:
    """What every block needs; labels as of `stitch_masks`.

    `edges` are those of regions, `unreadable` those of tiles that could not be decoded:
    (n, 4) left, top, right, bottom in pixels of the base.
    """

    store: RegionStore
    edges: NDArray[np.int64]
    tissue: Tissue
    classes: Sequence[MaskClass]
    downsample: float
    unreadable: NDArray[np.int64]
    labels: Sequence[MaskPyramid]
    device: str

    def stitch(self, block: Box) -> NDArray[np.int64]:
        """Write a block of the labels; pixels per value of mask and coverage."""
        blender = Blender(self._regions(block), self.device)
        mask, coverage, *confidence = self.labels
        best = _tissue_at(self.tissue, block, self.downsample)
        kinds = np.zeros_like(best)
        blender.choose(Raster(block), best, kinds)
        # kinds are numbered as in the coverage label, where no tissue is 0
        kinds *= best < MIXED
        kinds += np.uint8(SKIPPED) * (best == NO_REGION)
        names = np.arange(256, dtype=np.uint8)
        names[: len(self.classes)] = [kind.value for kind in self.classes]
        names[[OFF_TISSUE, NO_REGION]] = 0, NOT_COMPUTED
        cv2.LUT(best, names, best)
        lost = self._unreadable(block)
        for tile in lost:
            best[tile.rows, tile.columns] = NOT_COMPUTED
            kinds[tile.rows, tile.columns] = UNREADABLE
        counts = [mask.fill(0, block, best), coverage.fill(0, block, kinds)]
        for label in confidence:
            part = block.scaled_down(CONFIDENCE_STEP)
            best, kinds, sure = np.full((3, part.h, part.w), NO_REGION, np.uint8)
            blender.choose(Raster(part, CONFIDENCE_STEP), best, kinds, sure)
            for tile in lost:
                small = tile.scaled_down(CONFIDENCE_STEP)
                sure[small.rows, small.columns] = NOT_COMPUTED
            label.fill(0, part, sure)
        return np.array(counts)

    def _unreadable(self, block: Box) -> list[Box]:
        """Parts of a block that could not be decoded, from its corner."""
        rows = self.unreadable[_touching(self.unreadable, block)].tolist()
        tiles = [Box(x, y, right - x, bottom - y) for x, y, right, bottom in rows]
        return [tile.intersect(block).shift(-block.x, -block.y) for tile in tiles]

    def _regions(self, box: Box) -> list[RegionPrediction]:
        """The regions that share pixels with a box of the base, checked."""
        which = _touching(self.edges, box).tolist()
        found = self.store.read(which)
        _check(found, self.classes, self.store.path)
        return [
            replace(region, box=Box(x, y, right - x, bottom - y))
            for region, (x, y, right, bottom) in zip(
                found, self.edges[which].tolist(), strict=True
            )
        ]


def _check(
    regions: Sequence[RegionPrediction], classes: Sequence[MaskClass], path: Path
) -> None:
    for region in regions:
        found = len(region.probabilities)
        if found != len(classes):
            raise RegionError(
                f"{path}: {found} probabilities per node, but the model names "
                f"{len(classes)} classes; segment with the same model"
            )
        if not np.isfinite(region.probabilities).all():
            raise RegionError(
                f"{path}: the region at {region.box} holds values that are not finite; "
                "segment again"
            )


def _tissue_at(tissue: Tissue, box: Box, downsample: float) -> NDArray[np.uint8]:
    """NO_REGION on tissue, by the centres of a box's pixels, elsewhere OFF_TISSUE."""
    h, w = tissue.mask.shape
    ratio = downsample / tissue.downsample
    columns = np.floor((np.arange(box.x, box.right) + 0.5) * ratio).astype(np.int64)
    rows = np.floor((np.arange(box.y, box.bottom) + 0.5) * ratio).astype(np.int64)
    values = np.where(tissue.mask, np.uint8(NO_REGION), np.uint8(OFF_TISSUE))
    few, again = np.unique(np.clip(rows, 0, h - 1), return_inverse=True)
    lines = values[few[:, None], np.clip(columns, 0, w - 1)]
    return lines[again]  # whole rows at a time
