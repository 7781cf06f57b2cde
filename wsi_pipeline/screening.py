"""Screens the patches of a slide on a coarser level: which are looked at in full.

A small net scores all patches several times coarser. The best and their neighbours are
kept; of the rest, which it rejects, some are drawn at random as an audit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from wsi_pipeline.auditing import MissEstimate
from wsi_pipeline.config import AUDIT, SelectOptions
from wsi_pipeline.feeding import PatchSource
from wsi_pipeline.models.cards import ModelFolder, SelectorCard
from wsi_pipeline.models.choosing import finite
from wsi_pipeline.models.scorer import PatchScorer
from wsi_pipeline.models.scoring import open_scorer, patch_flops
from wsi_pipeline.regions import PatchGrid

type Tick = Callable[[int, int], None]

_HALO = 8  # patches around one on a lattice


@dataclass(frozen=True)
class Screening:
    """Which patches of a slide are examined.

    Parameters
    ----------
    kept : (n,) bool array
        By their coarse score, or as neighbours of such.
    audited : (n,) bool array
        Drawn at random from the others.
    facts : dict
        How they were found, JSON values.
    """

    kept: NDArray[np.bool_]
    audited: NDArray[np.bool_]
    facts: dict[str, Any]

    @property
    def weight(self) -> NDArray[np.float64] | None:
        """See `Selection.weight`; None where all patches are examined."""
        rejected, audited = int((~self.kept).sum()), int(self.audited.sum())
        if audited == rejected:
            return None
        return self.kept + self.audited * (rejected / audited)

    def told(self, missed: MissEstimate, top_m: int) -> dict[str, Any]:
        """The facts with what the audit found of the top M."""
        return self.facts | {
            "missed": missed._asdict(),
            "recall_estimate": round(1 - missed.estimate / max(top_m, 1), 4),
        }


def screen_patches(
    source: PatchSource,
    grid: PatchGrid,
    model: ModelFolder,
    options: SelectOptions,
    *,
    progress: Tick | None = None,
    cache: Path | None = None,
) -> Screening:
    """Choose the patches that are worth a look in full, for the recall that is wanted.

    Parameters
    ----------
    source : PatchSource
        Pixels of the patches of `coarse_grid`.
    grid : PatchGrid
        n patches, as the selector sees them.
    model : ModelFolder
        With a screen.
    options : SelectOptions
        Recall (`screen`), M, audit, seed, device, memory.
    progress : callable, optional
        Called with (patches done, n).
    cache : Path, optional
        File of measured peaks of memory; see `planned`.

    Raises
    ------
    BudgetError, ConfigError, ModelError
        As `open_scorer`; ModelError also if the model has no screen.
    """
    card = model.card.need_screen()
    n, top_m = len(grid), options.top_m or model.card.selector.top_m
    fraction = card.calibration.fraction_for(float(options.screen), top_m)
    kept, audited = np.ones(n, np.bool_), np.zeros(n, np.bool_)
    start = time.perf_counter()
    looked = fraction < 1 and n > 0
    if looked:
        # compiling takes longer than so small a net runs
        plain = options.model_copy(update={"compile": False})
        with open_scorer(model, plain, n, part=card, cache=cache) as scorer:
            score = score_coarsely(source, scorer, progress)
        kept = keep_best(reach(score, grid), fraction, top_m)
        rejected = np.flatnonzero(~kept)
        count = min(options.audit or AUDIT, len(rejected))
        draw = np.random.default_rng(options.seed or 0)
        audited[draw.choice(rejected, count, replace=False)] = True
    in_full = int((kept | audited).sum())
    extra = patch_flops(card) / patch_flops(model.card.selector) if looked else 0.0
    facts = {
        "recall": options.screen,
        "fraction": fraction,
        "calibrated_slides": card.calibration.slides,
        "calibrated_top_m": card.calibration.table_for(top_m).top_m,
        "factor": model.card.selector.patch_px / card.patch_px,
        "sha256": card.sha256,
        "kept": int(kept.sum()),
        "rejected": n - int(kept.sum()),
        "audited": int(audited.sum()),
        "coarse_s": round(time.perf_counter() - start, 3),
        # of what the encoder would do without a screen, by FLOPs
        "encoder_work": round(extra + in_full / max(n, 1), 4),
    }
    return Screening(kept, audited, facts)


def coarse_grid(grid: PatchGrid, card: SelectorCard) -> PatchGrid:
    """The same patches with the pixels that a screen sees."""
    return replace(grid, patch_px=card.patch_px, mpp=card.mpp)


def score_coarsely(
    source: PatchSource, scorer: PatchScorer, progress: Tick | None = None
) -> NDArray[np.float64]:
    """What a screen says of all n patches, (n,): the more, the better.

    Parameters
    ----------
    source : PatchSource
        Pixels of the patches of `coarse_grid`.
    scorer : PatchScorer
        The screen.
    progress : callable, optional
        Called with (patches done, n).

    Raises
    ------
    BudgetError
        If memory runs out with a single patch.
    ModelError
        If a score is not finite.
    """
    n, done = len(source.order), 0
    logits = np.empty((n, 1), np.float32)
    for scored in scorer.score_all(source.batches(source.order, scorer.plan.batch)):
        logits[scored.ids] = scored.logits
        done += len(scored.ids)
        if progress is not None:
            progress(done, n)
    return finite(logits, "screen")[:, 0]


def reach(score: NDArray[np.floating], grid: PatchGrid) -> NDArray[np.int64]:
    """The smallest k so that a patch is among the best k, or in their halo; from 0.

    The halo are those that touch or overlap the best k / 8: eight each on a lattice, so
    that it at most doubles what is kept. What is kept is `reach(...) < k`: a larger k
    never loses any.

    Parameters
    ----------
    score : (n,) float array
        The more, the better; equal ones go to the lower patch id.
    grid : PatchGrid
        The n patches.

    Returns
    -------
    (n,) int64 array

    Notes
    -----
    A halo around all of the best k would hold most of what is kept: on painted slides
    it took twice as many patches for the same recall as no halo did, this one hardly
    more, and far fewer than none where the screen errs. Memory: 16 bytes per pair of
    neighbours, of which a lattice has four per patch.
    """
    n = len(score)
    place = np.empty(n, np.int64)
    place[np.lexsort((np.arange(n), -score))] = np.arange(n)
    best = place.copy()
    if n:
        tree = cKDTree(grid.corners)
        pairs = tree.query_pairs(grid.size_px, p=np.inf, output_type="ndarray")
        for one, other in (pairs.T, pairs.T[::-1]):
            np.minimum.at(best, one, _HALO * (place[other] + 1) - 1)
    return best


def keep_best(
    reached: NDArray[np.int64], fraction: float, top_m: int
) -> NDArray[np.bool_]:
    """The best share of patches and their neighbours, but M patches at least.

    Parameters
    ----------
    reached : (n,) int64 array
        See `reach`.
    fraction : float
        Share of the patches to keep by score, 0 to 1; neighbours come on top.
    top_m : int
        M: with fewer there would be nothing to choose from.

    Returns
    -------
    (n,) bool array
    """
    if not len(reached):
        return np.zeros(0, np.bool_)
    last = min(top_m, len(reached)) - 1
    least = int(np.partition(reached, last)[last]) + 1
    kept: NDArray[np.bool_] = reached < max(np.ceil(fraction * len(reached)), least)
    return kept
