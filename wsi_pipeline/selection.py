"""Selects the salient patches of a slide: Pyramid and PatchGrid to Selection."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box
from wsi_pipeline.models.cards import ModelFolder, SelectorCard
from wsi_pipeline.models.scoring import PatchScorer, open_scorer
from wsi_pipeline.models.selector import choose_patches
from wsi_pipeline.places import Place
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection

_READERS = 2
_AHEAD = 3  # batches that are read ahead of the net
# Patches are cut from blocks of this side: reading one alone costs 25 times as much.
_BLOCK_PX = 1024
_BLOCKS_KEPT = 4


def select_patches(
    pyramid: Pyramid,
    grid: PatchGrid,
    model: ModelFolder,
    options: SelectOptions = SelectOptions(),  # noqa: B008  # frozen
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Score every patch and choose the M most salient.

    Parameters
    ----------
    pyramid : Pyramid
        The slide's pixels.
    grid : PatchGrid
        n patches of the size and um/px that the model was made for.
    model : ModelFolder
        Its selector scores the patches.
    options : SelectOptions
        M, device and memory.
    progress : callable, optional
        Called with (patches done, n).

    Returns
    -------
    Selection
        Independent of the batch and of the order in which patches were read, but for
        the rounding of the net's float32 logits.

    Raises
    ------
    RegionError
        If the grid's patches are not those of the model.
    BudgetError
        If the stated memory does not allow a single patch; before any pixel is read.
    ConfigError
        If there is no such device.
    ModelError
        If the model folder is incomplete or does not fit.
    PyramidError
        If the pyramid cannot be read.

    Notes
    -----
    Memory: the planned batch on the device; on the host four batches of uint8 patches,
    25 MB of blocks, and n x C float32 logits (8 MB for 250,000 x 8), which alone grow
    with n.
    """
    card = model.card.selector
    _check_grid(grid, card)
    top_m = options.top_m or card.top_m
    n = len(grid)
    with open_scorer(model, options, n) as scorer:
        logits = np.empty((n, scorer.channels), np.float32)
        done = 0
        order = _reading_order(pyramid, grid)
        for ids, patches in _read_batches(pyramid, grid, order, scorer.plan.batch):
            logits[ids] = scorer.score(patches)
            done += len(ids)
            if progress is not None:
                progress(done, n)
        choice = choose_patches(logits, top_m)
        predictions = _predict(pyramid, grid, order[choice.chosen[order]], scorer)
        facts = _facts(options, top_m, scorer)
    facts["captured_mass"] = float(choice.score[choice.chosen].sum())
    facts["predictions"] = predictions
    return Selection(grid, logits, choice.score, choice.rank, choice.chosen, facts)


def _check_grid(grid: PatchGrid, card: SelectorCard) -> None:
    """The encoder must see patches as in training."""
    if grid.patch_px != card.patch_px or abs(grid.mpp / card.mpp - 1) > 0.01:
        raise RegionError(
            f"the patches are {grid.patch_px} px at {grid.mpp:g} um/px, the model "
            f"wants {card.patch_px} px at {card.mpp:g} um/px; lay the grid with the "
            "model that selects (`wsi tissue --model`)"
        )


def _reading_order(pyramid: Pyramid, grid: PatchGrid) -> NDArray[np.int64]:
    """Patch ids sorted by the shard of their corner, the block in it, and the id."""
    level = pyramid.level_for(grid.mpp)
    factor = pyramid.levels[level].downsample
    shard = np.floor_divide(grid.corners, pyramid.shard_px(level) * factor)
    block = np.floor_divide(grid.corners, _BLOCK_PX * factor)
    keys = (block[:, 0], block[:, 1], shard[:, 0], shard[:, 1])
    return np.lexsort((np.arange(len(grid)), *keys))


def _read_batches(
    pyramid: Pyramid, grid: PatchGrid, order: NDArray[np.int64], batch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield ids and patches, read by a few threads at most `_AHEAD` batches ahead."""
    parts = [order[i : i + batch] for i in range(0, len(order), batch)]
    waiting: deque[tuple[NDArray[np.int64], Future[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for ids in parts:
                waiting.append((ids, pool.submit(_read_patches, pyramid, grid, ids)))
                if len(waiting) == _AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class _BlockReader(Pyramid):
    """A pyramid that is read in whole blocks, the last few of which are kept."""

    def __init__(self, path: Place) -> None:
        super().__init__(path)
        self._kept: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()

    def read_level(self, box: Box, level: int) -> NDArray[np.uint8]:
        """As `Pyramid.read_level`, put together from blocks."""
        inside = self.levels[level].box.intersect(box)
        out = np.empty((3, inside.h, inside.w), np.uint8)
        for cell in inside.blocks(_BLOCK_PX):
            x, y = cell.x // _BLOCK_PX * _BLOCK_PX, cell.y // _BLOCK_PX * _BLOCK_PX
            place, local = cell.shift(-inside.x, -inside.y), cell.shift(-x, -y)
            block = self._block(x, y, level)
            out[:, place.rows, place.columns] = block[:, local.rows, local.columns]
        return out

    def _block(self, x: int, y: int, level: int) -> NDArray[np.uint8]:
        key = level, x, y
        if key not in self._kept:
            block = super().read_level(Box(x, y, _BLOCK_PX, _BLOCK_PX), level)
            self._kept[key] = block
            if len(self._kept) > _BLOCKS_KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]


def _read_patches(
    pyramid: Pyramid, grid: PatchGrid, ids: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Pixels of some patches, (k, 3, p, p) uint8."""
    side = grid.patch_px
    blocks = _BlockReader(pyramid.path)
    out = np.empty((len(ids), 3, side, side), np.uint8)
    for row, patch in enumerate(ids):
        out[row] = blocks.read(grid.box(int(patch)), grid.mpp, (side, side))
    return out


def _predict(
    pyramid: Pyramid,
    grid: PatchGrid,
    order: NDArray[np.int64],
    scorer: PatchScorer,
) -> dict[str, float]:
    """The slide's probability per task; the chosen patches are read once more."""
    batches = _read_batches(pyramid, grid, order, scorer.plan.batch)
    parts = [scorer.embed(patches) for _, patches in batches]
    return scorer.predict(np.concatenate(parts)) if parts else {}


def _facts(
    options: SelectOptions, top_m: int, scorer: PatchScorer
) -> dict[str, object]:
    """What was planned and measured; only numbers that a second run repeats."""
    plan, peaks = scorer.plan, scorer.report()
    return {
        "mode": options.mode,
        "top_m": top_m,
        "batch": plan.batch,
        "device": scorer.device.type,
        "dtype": scorer.dtype,
        "budget_bytes": plan.budget_bytes,
        "fit": {"intercept_bytes": plan.intercept, "slope_bytes": plan.slope},
        "measured_bytes": plan.measured_bytes,
        "peak_allocated_bytes": peaks.allocated,
        "peak_reserved_bytes": peaks.reserved,
        "downgrades": [list(step) for step in scorer.elastic.downgrades],
    }
