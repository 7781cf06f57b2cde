"""Turns region predictions into the slide-level mask and its coverage label.

Each region is un-deformed at the pixels of the base, blended with its neighbours, and
the likeliest class is kept.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import (
    CERTAIN,
    COARSELY,
    COVERAGE_CLASSES,
    IN_DETAIL,
    NO_TISSUE,
    NOT_COMPUTED,
    SKIPPED,
    MaskClass,
)
from wsi_pipeline.config import StitchOptions
from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box
from wsi_pipeline.models.sampling import sample_at
from wsi_pipeline.publishing import discard, staged
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.regions import COARSE, DETAIL, RegionPrediction, RegionStore, Tissue

Progress = Callable[[int, int], None]

TILE_PX = 1024
"""Side of what is blended at once: bounds the float accumulators."""

RAMP = 0.125
"""Share of a region's side over which its weight falls towards the border."""

MIN_WEIGHT = 1e-3
"""Weight at a region's border: one region alone still counts there."""


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
    progress: Progress | None = None,
) -> MaskPyramid:
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
        Third label group: 254 * probability of the class in the mask, 255 where
        nothing was segmented.
    progress : callable, optional
        Called with (blocks done, blocks in all).

    Returns
    -------
    MaskPyramid
        0..K, and 255 on tissue that no region covers.

    Raises
    ------
    RegionError
        If regions do not lie on the base's grid, do not fit the classes, or hold
        values that are not finite.
    ExportError
        If a label cannot be written.

    Notes
    -----
    Weights are raised cosines, the same for a region wherever blocks end. Regions in
    detail hide coarse ones by the sum of their weights, so a coarse region shows
    through only towards the border of those in detail.
    Memory: for C classes 16 * C * TILE_PX**2 bytes of accumulators (100 MB for 6),
    three label shards (48 MB), and the predictions that touch one shard.
    """
    layout = _Layout.of(pyramid, store)
    base = pyramid.levels[0]
    rows: list[Sequence[MaskClass]] = [classes, COVERAGE_CLASSES, ()]
    paths = (mask_path, coverage_path, confidence_path)
    with ExitStack() as stack:
        labels = [
            _create(stack.enter_context(staged(path)), pyramid, row, facts)
            for path, row in zip(paths, rows, strict=True)
            if path is not None
        ]
        blocks = list(base.box.blocks(labels[0].shard_px(0)))
        for done, block in enumerate(blocks, 1):
            regions = layout.regions(store, block, classes)
            layers = _stitch_block(block, regions, tissue, classes, base.downsample)
            for label, layer in zip(labels, layers, strict=False):
                label.put(0, block, layer)
            if progress is not None:
                progress(done, len(blocks))
        for label in labels:
            label.write_coarser()
    if not options.keep_predictions:
        discard(store.path)
    return MaskPyramid(mask_path)


def _create(
    path: Path,
    pyramid: Pyramid,
    classes: Sequence[MaskClass],
    facts: dict[str, Any] | None,
) -> MaskPyramid:
    """An empty label on the grid of a pyramid."""
    base = int(pyramid.levels[0].downsample)
    return MaskPyramid.create(
        path, pyramid.source, base, classes, facts, version=pyramid.version
    )


@dataclass(frozen=True)
class _Layout:
    """Where regions lie: (n, 4) left, top, right, bottom in pixels of the base."""

    edges: NDArray[np.int64]

    @classmethod
    def of(cls, pyramid: Pyramid, store: RegionStore) -> "_Layout":
        boxes, kinds = store.boxes()
        strange = sorted({int(kind) for kind in kinds} - {DETAIL, COARSE})
        if strange:
            raise RegionError(
                f"{store.path}: regions of kind {strange}, expected {DETAIL} or "
                f"{COARSE}; was every region written? `wsi segment` writes them"
            )
        factor = int(pyramid.levels[0].downsample)
        edges = np.array(
            [(b.x, b.y, b.right, b.bottom) for b in boxes], np.int64
        ).reshape(-1, 4)
        if (edges % factor).any():
            raise RegionError(
                f"{store.path}: regions must start and end at multiples of {factor} "
                f"level-0 px, the pixels of {pyramid.path}'s base"
            )
        return cls(edges // factor)

    def regions(
        self, store: RegionStore, box: Box, classes: Sequence[MaskClass]
    ) -> list[RegionPrediction]:
        """The regions that share pixels with a box of the base, checked."""
        left, top, right, bottom = self.edges.T
        hit = (left < box.right) & (right > box.x)
        hit &= (top < box.bottom) & (bottom > box.y)
        found = [store.get(int(i)) for i in np.flatnonzero(hit)]
        _check(found, classes, store.path)
        return found


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


def _stitch_block(
    block: Box,
    regions: Sequence[RegionPrediction],
    tissue: Tissue,
    classes: Sequence[MaskClass],
    downsample: float,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Mask, coverage and confidence of a block of the base, (h, w) uint8 each."""
    on_tissue = _tissue_at(tissue, block, downsample)
    mask = np.where(on_tissue, NOT_COMPUTED, 0).astype(np.uint8)
    coverage = np.where(on_tissue, SKIPPED, NO_TISSUE).astype(np.uint8)
    confidence = np.full(mask.shape, NOT_COMPUTED, np.uint8)
    values = np.array([kind.value for kind in classes], np.uint8)
    for tile in block.blocks(TILE_PX):
        near = [
            r for r in regions if r.box.scaled_down(downsample).intersect(tile).area_px
        ]
        if not near:
            continue
        blend = _Blend.of(tile, near, len(classes), downsample)
        best = blend.mean.argmax(axis=0)
        sure = np.take_along_axis(blend.mean, best[None], axis=0)[0]
        place = tile.shift(-block.x, -block.y)
        here = place.rows, place.columns
        # a region also sees glass, pen and what a person's mask leaves out
        seen = blend.any & on_tissue[here]
        np.copyto(mask[here], values[best], where=seen)
        how = np.where(blend.detailed, IN_DETAIL, COARSELY).astype(np.uint8)
        np.copyto(coverage[here], how, where=seen)
        share = np.rint(np.clip(sure, 0, 1) * CERTAIN).astype(np.uint8)
        np.copyto(confidence[here], share, where=seen)
    return mask, coverage, confidence


@dataclass(frozen=True)
class _Blend:
    """A tile's blended probabilities.

    `mean` is (c, h, w) float32 and sums to 1 over c where `any`, (h, w) bool, is true;
    `detailed`, (h, w) bool, is where regions in detail weigh more than coarse ones.
    """

    mean: NDArray[np.float32]
    any: NDArray[np.bool_]
    detailed: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        tile: Box,
        regions: Sequence[RegionPrediction],
        count: int,
        downsample: float,
    ) -> "_Blend":
        fine, fine_weight = _sum(tile, regions, DETAIL, count, downsample)
        total, weight = _sum(tile, regions, COARSE, count, downsample)
        # the coarse mean fills what the detailed weights leave of 1
        left = np.clip(1 - fine_weight, 0, None)
        total *= np.divide(left, weight, out=np.zeros_like(left), where=weight > 0)
        total += fine
        norm = total.sum(axis=0)
        np.divide(total, norm, out=total, where=norm > 0)
        detailed = (fine_weight >= 0.5) | ((fine_weight > 0) & (weight == 0))
        return cls(total, (fine_weight > 0) | (weight > 0), detailed)


def _sum(
    tile: Box,
    regions: Sequence[RegionPrediction],
    kind: int,
    count: int,
    downsample: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weighted sum (c, h, w) and weights (h, w) of the regions of a kind."""
    total = np.zeros((count, tile.h, tile.w), np.float32)
    weight = np.zeros((tile.h, tile.w), np.float32)
    for region in regions:
        own = region.box.scaled_down(downsample)
        part = own.intersect(tile)
        if region.kind != kind or not part.area_px:
            continue
        xs = np.arange(part.x, part.right) - own.x
        ys = np.arange(part.y, part.bottom) - own.y
        found = sample_at(
            region.probabilities,
            region.grid,
            xs / max(own.w - 1, 1),
            ys / max(own.h - 1, 1),
        )
        window = np.outer(_window(own.h)[ys], _window(own.w)[xs]).astype(np.float32)
        place = part.shift(-tile.x, -tile.y)
        total[:, place.rows, place.columns] += found * window
        weight[place.rows, place.columns] += window
    return total, weight


def _window(size_px: int) -> NDArray[np.float64]:
    """Raised-cosine weights along a side: 1 inside, MIN_WEIGHT at the border.

    Two windows that overlap by RAMP of the side sum to 1 up to MIN_WEIGHT.
    """
    centres = np.arange(size_px) + 0.5
    inward = np.minimum(centres, size_px - centres) / max(RAMP * size_px, 1)
    rise = (1 - np.cos(np.pi * np.clip(inward, 0, 1))) / 2
    return np.asarray(np.maximum(rise, MIN_WEIGHT))


def _tissue_at(tissue: Tissue, tile: Box, downsample: float) -> NDArray[np.bool_]:
    """Tissue at the centre of each base pixel of a tile, (h, w) bool."""
    h, w = tissue.mask.shape
    ratio = downsample / tissue.downsample
    columns = np.floor((np.arange(tile.x, tile.right) + 0.5) * ratio).astype(np.int64)
    rows = np.floor((np.arange(tile.y, tile.bottom) + 0.5) * ratio).astype(np.int64)
    return tissue.mask[
        np.clip(rows, 0, h - 1)[:, None], np.clip(columns, 0, w - 1)[None]
    ]
