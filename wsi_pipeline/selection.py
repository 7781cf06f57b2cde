"""Selects the salient patches of a slide: Pyramid and PatchGrid to Selection."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.auditing import estimate_misses
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.feeding import Ids, PatchSource, PyramidSource
from wsi_pipeline.geometry import Scale
from wsi_pipeline.models.cards import ModelFolder, SelectorCard
from wsi_pipeline.models.choosing import Choice, choose_as_published, choose_patches
from wsi_pipeline.models.scorer import PatchScorer, Scored
from wsi_pipeline.models.scoring import open_scorer, settle
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.resuming import Done, LogitJournal
from wsi_pipeline.screening import Screening, Tick, coarse_grid, screen_patches


def select_patches(
    pyramid: Pyramid,
    grid: PatchGrid,
    model: ModelFolder,
    options: SelectOptions = SelectOptions(),  # noqa: B008  # frozen
    *,
    progress: Tick | None = None,
    journal: LogitJournal | None = None,
    cache: Path | None = None,
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
        Mode, M, screen, device, memory, precision.
    progress : callable, optional
        Called with (patches done, patches to examine); with a screen it is first told
        of a pass over all n.
    journal : LogitJournal, optional
        Keeps what is found, and gives it back after a kill.
    cache : Path, optional
        File of measured peaks of memory; see `planned`.

    Returns
    -------
    Selection
        Independent of the order in which patches were read and of the number of
        readers; of the batch but for the rounding of the net. After a kill the same.
        With a screen that rejects patches it has weights, and estimates of what was
        missed among its facts.

    Raises
    ------
    RegionError
        If the grid's patches are not those of the model.
    BudgetError
        If the stated memory does not allow a single patch; before any pixel is read.
    ConfigError
        If there is no such device, or the encoder does not take the precision.
    ModelError
        If the model folder is incomplete or does not fit, or has no screen to use.
    PyramidError
        If the pyramid cannot be read.
    ExportError
        If the journal cannot be written.

    Notes
    -----
    Memory: the planned batch on the device; on the host the queue of pixels, and n x C
    float32 logits (8 MB for 250,000 x 8), which alone grow with n.
    """
    _check_grid(grid, model.card.selector)
    queue = settle(options).queue_bytes
    source, coarse = PyramidSource(pyramid, grid, queue), None
    if options.screen != "off":
        screen = model.card.need_screen()
        coarse = PyramidSource(pyramid, coarse_grid(grid, screen), queue)
    return select_from(
        source,
        grid,
        pyramid.source.scale,
        model,
        options,
        coarse=coarse,
        progress=progress,
        journal=journal,
        cache=cache,
    )


def select_from(
    source: PatchSource,
    grid: PatchGrid,
    scale: Scale,
    model: ModelFolder,
    options: SelectOptions = SelectOptions(),  # noqa: B008  # frozen
    *,
    coarse: PatchSource | None = None,
    progress: Tick | None = None,
    journal: LogitJournal | None = None,
    cache: Path | None = None,
) -> Selection:
    """Score what a source gives for every patch, pixels or features; choose M of them.

    Parameters
    ----------
    source : PatchSource
        What the model's encoder reads of the grid's patches.
    grid : PatchGrid
        n patches.
    scale : Scale
        um/px of level 0, for selectors that see places.
    coarse : PatchSource, optional
        What the model's screen reads of them.
    model, options, progress, journal, cache
        See `select_patches`.

    Returns
    -------
    Selection

    Raises
    ------
    BudgetError, ConfigError, ModelError, ExportError
        See `select_patches`; and whatever the source raises. ConfigError also where
        there is nothing that a screen could read.
    """
    n, top_m = len(grid), options.top_m or model.card.selector.top_m
    places = grid.corners * np.array([scale.x, scale.y])
    order, screened = source.order, None
    if options.screen != "off":
        if coarse is None:
            raise ConfigError(
                "a screen reads the slide's pixels to save the encoder's work, and "
                "features were extracted before: set --screen off"
            )
        screened = screen_patches(
            coarse, grid, model, options, progress=progress, cache=cache
        )
        order = order[(screened.kept | screened.audited)[order]]
    key = _key(order, places, grid, model, options)
    done = journal.load(key) if journal else None
    with open_scorer(
        model, options, len(order), batch=done.batch if done else None, cache=cache
    ) as scorer:
        if done and done.batch != scorer.plan.batch:
            done = None  # the batch of then does not fit any more
        if options.mode == "full":
            scorer.pool_all()
        logits = np.full((n, scorer.channels), np.nan, np.float32)
        resumed = _restore(done, order, logits, scorer)
        start = time.perf_counter()
        left = order[resumed:]
        batches = scorer.score_all(source.batches(left, scorer.plan.batch), places)
        with _kept(journal, key, scorer, done) as keep:
            count = resumed
            for scored in batches:
                logits[scored.ids] = scored.logits
                keep(scored)
                count += len(scored.ids)
                if progress is not None:
                    progress(count, len(order))
        seconds = time.perf_counter() - start
        weight = screened.weight if screened else None
        choice = _choose(logits, weight, top_m, options)
        predictions = _predict(source, places, choice, scorer, options)
        facts = _facts(options, top_m, scorer)
    facts["selector_sha256"] = model.card.selector.sha256
    facts["captured_mass"] = float(choice.score[choice.chosen].sum())
    facts["predictions"] = predictions
    facts["reading"] = source.facts()
    facts["resumed_patches"] = resumed
    facts["patches_per_s"] = round(len(left) / max(seconds, 1e-9), 1)
    if screened:
        facts["screen"] = _judge(screened, choice)
    return Selection(grid, logits, *choice, facts, weight)


def _check_grid(grid: PatchGrid, card: SelectorCard) -> None:
    """The encoder must see patches as in training."""
    if grid.patch_px != card.patch_px or abs(grid.mpp / card.mpp - 1) > 0.01:
        raise RegionError(
            f"the patches are {grid.patch_px} px at {grid.mpp:g} um/px, the model "
            f"wants {card.patch_px} px at {card.mpp:g} um/px; lay the grid with the "
            "model that selects (`wsi tissue --model`)"
        )


def _key(
    order: Ids,
    places: NDArray[np.float64],
    grid: PatchGrid,
    model: ModelFolder,
    options: SelectOptions,
) -> bytes:
    """Digest of all that decides logits, but slide and batch, which a journal knows."""
    setting = settle(options)
    digest = hashlib.sha256()
    for part in (
        model.card.selector.sha256,
        setting.device,
        setting.precision,
        options.compile,
        options.mode == "full",
        grid.header(),
    ):
        digest.update(repr(part).encode() + b"\n")
    digest.update(order.tobytes())
    digest.update(places.tobytes())
    return digest.digest()


def _restore(
    done: Done | None,
    order: Ids,
    logits: NDArray[np.float32],
    scorer: PatchScorer,
) -> int:
    """Put what a killed pass found in its place; return how many patches it did."""
    if done is None:
        return 0
    count = len(done.logits)
    logits[order[:count]] = done.logits
    scorer.continue_at(done.batch_now, count, done.state)
    return count


@contextmanager
def _kept(
    journal: LogitJournal | None, key: bytes, scorer: PatchScorer, done: Done | None
) -> Iterator[Callable[[Scored], None]]:
    """Yield what adds a batch to the journal, if there is one."""

    def keep(scored: Scored) -> None:
        if journal is not None:
            journal.add(scored.logits, scorer.elastic.size, scored.state)

    if journal is not None:
        journal.start(key, scorer.channels, scorer.plan.batch, done)
    try:
        yield keep
    finally:
        if journal is not None:
            journal.close()


def _choose(
    logits: NDArray[np.float32],
    weight: NDArray[np.float64] | None,
    top_m: int,
    options: SelectOptions,
) -> Choice:
    """The M patches that the mode chooses, among those that were examined."""
    if weight is not None:
        ids = np.flatnonzero(weight)
        inner = _choose_among(logits[ids], weight[ids], top_m, options)
        return inner.spread(ids, len(weight))
    return _choose_among(logits, None, top_m, options)


def _choose_among(
    logits: NDArray[np.float32],
    weight: NDArray[np.float64] | None,
    top_m: int,
    options: SelectOptions,
) -> Choice:
    if options.mode != "ips":
        return choose_patches(logits, top_m, weight)
    order = np.random.default_rng(options.seed or 0).permutation(len(logits))
    chunk = options.chunk or top_m
    return choose_as_published(logits, top_m, chunk, order, weight)


def _judge(screened: Screening, choice: Choice) -> dict[str, object]:
    """What was screened, and how many of the top M it missed."""
    top_m = int(choice.chosen.sum())
    missed = estimate_misses(choice.score, screened.kept, screened.audited, top_m)
    return screened.told(missed, top_m)


def _predict(
    source: PatchSource,
    places: NDArray[np.float64],
    choice: Choice,
    scorer: PatchScorer,
    options: SelectOptions,
) -> dict[str, float]:
    """The slide's probability per task; the chosen patches are read once more.

    Not so in mode full, where all patches were pooled as they came.
    """
    if not len(choice.rank):
        return {}
    if options.mode == "full":
        return scorer.predict_all()
    ids = source.order[choice.chosen[source.order]]
    parts = scorer.embed_all(source.batches(ids, scorer.plan.batch))
    return scorer.predict(np.concatenate([x for _, x in parts]), places[ids])


def _facts(
    options: SelectOptions, top_m: int, scorer: PatchScorer
) -> dict[str, object]:
    """What was planned and measured (JSON values)."""
    plan, peaks = scorer.plan, scorer.report()
    facts: dict[str, object] = {
        "mode": options.mode,
        "top_m": top_m,
        "batch": plan.batch,
        "device": scorer.device.type,
        "precision": scorer.precision,
        "compiled": options.compile,
        "budget_bytes": plan.budget_bytes,
        "fit": {"intercept_bytes": plan.intercept, "slope_bytes": plan.slope},
        "measured_bytes": plan.measured_bytes,
        "counted_bytes": plan.counted_bytes,
        "peak_allocated_bytes": peaks.allocated,
        "peak_reserved_bytes": peaks.reserved,
        "downgrades": [list(step) for step in scorer.elastic.downgrades],
    }
    if options.mode == "ips":
        facts |= {"chunk": options.chunk or top_m, "seed": options.seed or 0}
    return facts
